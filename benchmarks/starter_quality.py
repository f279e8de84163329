"""The quality table of the starter model: `python -m benchmarks.starter_quality [--prompts 300]`.

Right thing, colour and background over random prompts at 20 steps, told by the judge; PSNR of the
autoencoder on plain and styled pictures; seconds for a picture.
"""

from __future__ import annotations

import random
import tempfile
import time

import torch
from diffusers import AutoencoderKL
from PIL import Image

from benchmarks.judge import Judge, accuracy_on_drawn, trained_judge
from benchmarks.report import asked, show
from sdlora.events import SampleReady
from sdlora.settings.image_request import ImageRequest
from sdlora.starter.draw import STYLES, caption, draw, random_scene
from sdlora.starter.measure import to_pixels
from sdlora.worker.worker import open_engine
from sdlora.workspace import STARTER_MODEL, Workspace


@torch.no_grad()
def psnr_table(count: int = 60) -> dict[str, float]:
    """Mean decibels of restored pictures: plain ones, and in every generic style."""
    vae = AutoencoderKL.from_pretrained(STARTER_MODEL, subfolder="vae").float().eval()
    rng = random.Random(99)
    table: dict[str, float] = {}
    for name in ("plain", *STYLES):
        images = [draw(random_scene(rng)) for _ in range(count)]
        if name != "plain":
            images = [STYLES[name](image, rng).convert("RGB") for image in images]
        pixels = to_pixels(images)
        restored = vae.decode(vae.encode(pixels).latent_dist.mean).sample.clamp(-1, 1)
        error = ((restored - pixels) / 2).square().mean((1, 2, 3))
        table[name] = round((-10 * error.log10()).mean().item(), 2)
    styled = [value for name, value in table.items() if name != "plain"]
    return {**table, "styled_mean": round(sum(styled) / len(styled), 2)}


def prompt_accuracy(judge: Judge, prompts: int, workspace: Workspace) -> dict[str, float]:
    """Share of generated pictures that show what their prompt says, and seconds a picture."""
    rng, engine = random.Random(5), open_engine(workspace)
    right = {"thing": 0, "colour": 0, "background": 0}
    named_background, began = 0, time.monotonic()
    for number in range(prompts):
        scene = random_scene(rng)
        words = caption(scene, rng)
        made = [
            event.path
            for event in engine.generate(ImageRequest(prompt=words, seed=number, upscaler="none"))
            if isinstance(event, SampleReady)
        ]
        with Image.open(made[0]) as image:
            said = judge.answers([image])[0]
        right["thing"] += said["thing"] == scene.thing
        right["colour"] += said["colour"] == scene.colour
        if scene.background in words:
            named_background += 1
            right["background"] += said["background"] == scene.background
    seconds = (time.monotonic() - began) / prompts
    totals = {"thing": prompts, "colour": prompts, "background": named_background}
    return {**{k: round(right[k] / totals[k], 4) for k in right}, "seconds": round(seconds, 3)}


def main() -> None:
    """Measure and print the table."""
    options = asked(__doc__, prompts=300)
    judge = trained_judge(options.judge)
    with tempfile.TemporaryDirectory() as folder:
        accuracy = prompt_accuracy(judge, options.prompts, Workspace.open(folder))
    show(
        {
            "judge on drawn pictures": accuracy_on_drawn(judge),
            "psnr": psnr_table(),
            "prompts": options.prompts,
            "right": accuracy,
        }
    )


if __name__ == "__main__":
    main()
