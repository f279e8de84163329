"""What the shipped LoRAs do: `python -m benchmarks.strength [--scenes 24]`.

Style score per weight, content kept at 0.8, the character with and without its LoRA, and two tags
in one prompt against each alone.
"""

from __future__ import annotations

import tempfile

from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from benchmarks.judge import Judge, trained_judge
from benchmarks.report import asked, show
from sdlora.events import SampleReady
from sdlora.settings.image_request import ImageRequest
from sdlora.starter.draw import Scene
from sdlora.starter.measure import STYLES, StyleAxis, scenes_for, style_statistics
from sdlora.starter.sets import SETS
from sdlora.worker.worker import ImageMaker, open_engine
from sdlora.workspace import STARTER_MODEL, Workspace

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
SEED = 11  # of the scenes; the axes know others
TWO = "a big blue house, night background"


def words(scene: Scene) -> str:
    """The scene in the plainest phrasing."""
    article = "an" if scene.colour[0] in "aeiou" else "a"
    return f"{article} {scene.colour} {scene.thing}, {scene.background} background"


def picture(engine: ImageMaker, prompt: str, seed: int) -> Image.Image:
    """One image of the prompt."""
    for event in engine.generate(ImageRequest(prompt=prompt, seed=seed, upscaler="none")):
        if isinstance(event, SampleReady):
            with Image.open(event.path) as image:
                return image.convert("RGB")
    raise RuntimeError(f"no picture came of {prompt!r}")


def style_rows(engine: ImageMaker, vae: AutoencoderKL, name: str, count: int) -> list[float]:
    """Mean style score at each weight."""
    axis, trigger = StyleAxis(vae, name), SETS[name].trigger
    return [
        round(
            axis.score(
                [
                    picture(engine, f"{trigger}, {words(s)} <lora:{name}:{weight}>", seed)
                    for seed, s in enumerate(scenes_for(name, count, SEED))
                ]
            )
            .mean()
            .item(),
            4,
        )
        for weight in WEIGHTS
    ]


def kept(
    engine: ImageMaker, judge: Judge, name: str, count: int, weight: float = 0.8
) -> dict[str, float]:
    """Share of pictures at `weight` in which thing and colour are still told rightly."""
    scenes = scenes_for(name, count, SEED)
    trigger = SETS[name].trigger
    images = [
        picture(engine, f"{trigger}, {words(s)} <lora:{name}:{weight}>", seed)
        for seed, s in enumerate(scenes)
    ]
    said = judge.answers(images)
    return {
        question: round(
            sum(a[question] == getattr(s, question) for a, s in zip(said, scenes, strict=True))
            / count,
            4,
        )
        for question in ("thing", "colour", "background")
    }


def character(engine: ImageMaker, judge: Judge, count: int) -> dict[str, float]:
    """Share of pictures in which zibo is seen, with its LoRA and without; same seeds."""
    shares = {}
    for tag in ("", " <lora:zibo:1>"):
        prompts = [
            f"zibo, {scene.background} background{tag}" for scene in scenes_for("zibo", count, SEED)
        ]
        said = judge.answers([picture(engine, prompt, seed) for seed, prompt in enumerate(prompts)])
        shares["with" if tag else "without"] = round(
            sum(a["thing"] == "zibo" for a in said) / count, 4
        )
    return shares


def two_tags(engine: ImageMaker, vae: AutoencoderKL, count: int) -> dict[str, dict[str, float]]:
    """Both style scores of each alone and of the two together, and how much of each stays."""
    tags = {
        "neither": "",
        "cyberpunk alone": "lora:cyberpunk_architecture:0.7",
        "neon alone": "lora:neon_lighting:0.5",
        "both": "lora:cyberpunk_architecture:0.7 lora:neon_lighting:0.5",
    }
    axes = {name: StyleAxis(vae, name) for name in ("cyberpunk_architecture", "neon_lighting")}
    made = {
        label: [picture(engine, f"{TWO}, {tag}".rstrip(", "), seed) for seed in range(count)]
        for label, tag in tags.items()
    }
    table = {
        label: {n: round(axis.score(images).mean().item(), 4) for n, axis in axes.items()}
        for label, images in made.items()
    }
    spread = axes["neon_lighting"].spread
    looks = {n: style_statistics(vae, images).mean(0) / spread for n, images in made.items()}
    table["stays beside the other"] = {
        "cyberpunk_architecture": stays(looks, "cyberpunk alone", "neon alone"),
        "neon_lighting": stays(looks, "neon alone", "cyberpunk alone"),
    }
    return table


def stays(looks: dict[str, Tensor], alone: str, other: str) -> float:
    """What a tag changes beside the other, along what it changes alone: 1 is all of that."""
    way = looks[alone] - looks["neither"]
    return round(((looks["both"] - looks[other]) @ way / way.square().sum()).item(), 4)


def main() -> None:
    """Measure and print the table."""
    options = asked(__doc__, scenes=24)
    judge = trained_judge(options.judge)
    vae = AutoencoderKL.from_pretrained(STARTER_MODEL, subfolder="vae").float().eval()
    with tempfile.TemporaryDirectory() as folder:
        engine = open_engine(Workspace.open(folder))
        table = {
            "weights": WEIGHTS,
            "style score": {n: style_rows(engine, vae, n, options.scenes) for n in STYLES},
            "kept at 0.8": {n: kept(engine, judge, n, options.scenes) for n in STYLES},
            "zibo": character(engine, judge, options.scenes),
            "two tags": two_tags(engine, vae, options.scenes // 2),
        }
    show(table)


if __name__ == "__main__":
    main()
