"""The verb `demo`: train a style on the starter model, then draw it at several LoRA weights."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from sdlora.errors import ModelError
from sdlora.events import Done, Event, Failed, Progress, SampleReady, Warned
from sdlora.files import write_atomically
from sdlora.jobs import run_folder
from sdlora.settings.image_request import ImageRequest
from sdlora.settings.presets import with_preset
from sdlora.settings.train import TrainSettings
from sdlora.worker.worker import ImageMaker, open_engine
from sdlora.workspace import TRAINING_DATA, Workspace

SET = "impressionist_style"
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
PROMPTS = (
    "a red ball, meadow background",
    "a big blue house, night background",
    "a yellow fish, sea background",
    "a green tree in the snow",
)
SEED = 7


def demo(workspace: Workspace, folder: Path) -> Iterator[Event]:
    """Train `impressionist_style`, then write `strength.png` and `strength.json` to `folder`.

    Ends with Done, whose path is the grid; the JSON beside it holds the measured score per weight.
    """
    began = time.monotonic()
    name = ""
    for event in _training(workspace):
        if isinstance(event, Done):
            name = Path(event.path).stem
        else:
            yield event
        if isinstance(event, Failed):
            return
    engine = open_engine(workspace)
    rows: list[list[Image.Image]] = []
    for row, prompt in enumerate(PROMPTS):
        yield Progress("drawing the strength grid", row, len(PROMPTS))
        rows.append([])
        for event in _pictures(engine, prompt, name):
            if isinstance(event, SampleReady):
                with Image.open(event.path) as image:
                    rows[-1].append(image.convert("RGB"))
            elif isinstance(event, Failed | Warned):
                yield event
    if any(len(row) != len(WEIGHTS) for row in rows):
        raise ModelError("not every picture of the grid could be made; see the messages above")
    scores = _scores(rows)
    for weight, score in zip(WEIGHTS, scores, strict=True):
        yield Progress(f"weight {weight:.2f}: style score {score:.3f}")
    path = write_atomically(
        folder / "strength.png", lambda to: strength_grid(rows, scores).save(to)
    )
    seconds = round(time.monotonic() - began, 1)
    facts = {"weights": WEIGHTS, "style_score": scores, "seconds": seconds, "grid": str(path)}
    path.with_suffix(".json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
    yield Done(str(path), seconds)


def _training(workspace: Workspace) -> Iterator[Event]:
    from sdlora.training.train import train

    settings = with_preset(
        TrainSettings(data=str(TRAINING_DATA / SET), name="impressionist_demo", sample_every=0),
        "starter",
    )
    folder = run_folder.new_folder(settings, workspace)
    return run_folder.record(train(settings, workspace, folder), folder)


def _pictures(engine: ImageMaker, prompt: str, name: str) -> Iterator[Event]:
    """Generate the prompt at every weight, with the same seed."""
    for weight in WEIGHTS:
        full_prompt = f"{SET.replace('_', ' ')}, {prompt} <lora:{name}:{weight}>"
        yield from engine.generate(ImageRequest(prompt=full_prompt, seed=SEED, upscaler="none"))


def _scores(rows: list[list[Image.Image]]) -> list[float]:
    """Return the mean style score of each column, 0 for the starter model's own style, 1 for the
    training set."""
    from diffusers import AutoencoderKL

    from sdlora.starter.measure import StyleAxis
    from sdlora.workspace import STARTER_MODEL

    vae = AutoencoderKL.from_pretrained(STARTER_MODEL, subfolder="vae").float().eval()
    axis = StyleAxis(vae, SET)
    return [round(axis.score(column).mean().item(), 4) for column in zip(*rows, strict=True)]


def strength_grid(
    rows: list[list[Image.Image]], scores: list[float], side: int = 160, edge: int = 10
) -> Image.Image:
    """Return the grid as a picture: prompts down, weights across, the score under each weight."""
    head, foot, left = 40, 40, 190
    size = (left + len(WEIGHTS) * (side + edge), head + len(rows) * (side + edge) + foot)
    sheet = Image.new("RGB", size, (250, 249, 246))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for column, (weight, score) in enumerate(zip(WEIGHTS, scores, strict=True)):
        x = left + column * (side + edge) + side // 2
        pen.text((x, head // 2), f"{weight:g}", (40, 40, 48), font, anchor="mm")
        pen.text((x, size[1] - foot // 2), f"score {score:.2f}", (90, 90, 100), font, anchor="mm")
    for row, (prompt, images) in enumerate(zip(PROMPTS, rows, strict=True)):
        y = head + row * (side + edge)
        label = prompt.replace(", ", ",\n").replace(" in ", "\nin ")
        pen.multiline_text(
            (left - 14, y + side // 2), label, (40, 40, 48), font, anchor="rm", align="right"
        )
        for column, image in enumerate(images):
            tile = image.resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(tile, (left + column * (side + edge), y))
    return sheet
