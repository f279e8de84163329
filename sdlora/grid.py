"""Every checkpoint of a training at every strength: one picture to choose from."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from sdlora.device import pick_device, pick_dtype
from sdlora.errors import RunError, SettingsError
from sdlora.events import Done, Event, Progress, RunState, Warned
from sdlora.families import open_family
from sdlora.generate import render
from sdlora.lora.library import Library
from sdlora.prompt.tags import written
from sdlora.review import GridSettings, lora_files
from sdlora.settings import ImageRequest, TrainSettings
from sdlora.workspace import Workspace, free_path, publish

Row = tuple[str, list[Image.Image]]  # words, and the pictures beside them
SIDE, GAP, HEAD, LEFT = 192, 8, 46, 150
INK, PAPER = "#1f2430", "#faf9f6"


def draw_grid(
    folder: Path, state: RunState, workspace: Workspace, settings: GridSettings
) -> Iterator[Event]:
    """Checkpoints down, strengths across, a block per prompt, all from one seed; the first column
    is the base model. Written into the run's folder. RunError: there is no LoRA to show."""
    began = time.monotonic()
    files = _files(folder, state)
    prompts = settings.prompts or tuple(dict.fromkeys(one.prompt for one in state.samples))
    if not prompts:
        raise SettingsError("the run has drawn no samples; name prompts with --prompts TEXT ...")
    model = TrainSettings.load(folder / "settings.json").model
    device, _ = pick_device()
    yield Progress("loading the model")
    family = open_family(workspace.model_source(model), pick_dtype(device)[0], device)
    library = Library(dict.fromkeys(path.parent for path in files.values()))
    asked = ImageRequest(seed=settings.seed, steps=settings.steps)
    rows: list[Row] = []
    for prompt in prompts:
        plain, _ = render(family, asked.model_copy(update={"prompt": prompt}))
        for step, path in files.items():
            yield Progress("drawing the grid", len(rows), len(prompts) * len(files))
            pictures = list(plain)
            for strength in settings.strengths:
                words = f"{prompt} {written(path.stem, strength)}"
                request = asked.model_copy(update={"prompt": words})
                images, report = render(family, request, library)
                yield from (Warned(problem) for problem in report["problems"])
                pictures += images
            rows.append((f"step {step}\n{_shortened(prompt)}", pictures))
    sheet = lay_out(rows, [f"{strength:g}" for strength in (0.0, *settings.strengths)])
    path = publish(free_path(folder / "grid.png"), lambda to: sheet.save(to, format="png"))
    yield Done(str(path), time.monotonic() - began)


def _files(folder: Path, state: RunState) -> dict[int, Path]:
    """Step -> LoRA, of every checkpoint and of the end."""
    files = dict(lora_files(folder))
    last = folder / "lora" / Path(state.result).name
    if state.result and last.is_file():
        files.setdefault(state.step, last)
    if not files:
        raise RunError(f"the run {folder.name!r} has no LoRA yet: python launch.py runs save NAME")
    return dict(sorted(files.items()))


def lay_out(rows: Sequence[Row], heads: list[str]) -> Image.Image:
    """Rows of pictures with words at their left, and over their columns."""
    size = (LEFT + len(heads) * (SIDE + GAP), HEAD + len(rows) * (SIDE + GAP))
    sheet = Image.new("RGB", size, PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for column, head in enumerate(heads):
        x = LEFT + column * (SIDE + GAP) + SIDE // 2
        pen.text((x, HEAD // 2), head, INK, font, anchor="mm")
    for number, (words, pictures) in enumerate(rows):
        y = HEAD + number * (SIDE + GAP)
        pen.multiline_text((10, y + SIDE // 2), words, INK, font, anchor="lm")
        for column, picture in enumerate(pictures):
            tile = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            sheet.paste(tile, (LEFT + column * (SIDE + GAP), y))
    return sheet


def _shortened(words: str, most: int = 18) -> str:
    """A prompt in lines of `most` letters, four at the most."""
    lines = [words[at : at + most] for at in range(0, len(words), most)]
    return "\n".join([*lines[:4], *["…"] * (len(lines) > 4)])
