"""XY grid: every checkpoint of a training at every strength, one picture to choose from."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from sdlora.device import pick_device, pick_dtype
from sdlora.eta import Pace
from sdlora.events import Done, Event, Progress, SampleReady, Started, Step, Warned
from sdlora.files import write_atomically
from sdlora.inference.engine import render
from sdlora.jobs.review import grid_strengths, lora_of_step, loras_by_step, prompts_of
from sdlora.jobs.run_folder import SETTINGS_FILE, find_run, read
from sdlora.lora.library.library import Library
from sdlora.models.base import ModelFamily
from sdlora.models.options import model_options
from sdlora.models.registry import open_family
from sdlora.prompt.tags import format_tag
from sdlora.settings.grid import GridSettings
from sdlora.settings.image_request import ImageRequest
from sdlora.settings.train import TrainSettings
from sdlora.workspace import Workspace

Row = tuple[str, list[Image.Image]]  # words, and the pictures beside them
SIDE, GAP, HEAD, LEFT = 192, 8, 46, 150
INK, PAPER = "#1f2430", "#faf9f6"


@dataclass(frozen=True)
class Cell:
    """One picture: the LoRA of a step at a strength; at 0, after step 0, it is the base model."""

    prompt: str
    step: int = 0
    strength: float = 0.0
    lora: str = ""

    @property
    def full_prompt(self) -> str:
        """The prompt with the tag of its LoRA."""
        return f"{self.prompt} {format_tag(self.lora, self.strength)}" if self.lora else self.prompt


def _opened(run: Path, workspace: Workspace) -> ModelFamily:
    """The model that a run learnt on, making pictures as they were learnt."""
    training = TrainSettings.load(run / SETTINGS_FILE)
    device, _ = pick_device()
    source, options = workspace.checked_model(training.model), model_options(training, workspace)
    family = open_family(source, pick_dtype(device)[0], device, options)
    if training.zero_terminal_snr:
        family.use_zero_terminal_snr()
    return family


def draw_grid(settings: GridSettings, workspace: Workspace, into: Path) -> Iterator[Event]:
    """Checkpoints down, strengths across, a block per prompt, all from one seed; the first column
    is the base model. Every picture and the sheet of all are written into the folder `into`.
    RunError: there is no LoRA to show; SettingsError: there is no such run, or nothing to show."""
    began = time.monotonic()
    run = find_run(workspace.runs, settings.run)
    state = read(run)
    files = loras_by_step(run, state)
    if settings.checkpoints:
        files = {step: lora_of_step(files, step) for step in settings.checkpoints}
    strengths = grid_strengths(settings.strengths)
    cells = cells_of(prompts_of(settings, state), files, strengths)
    yield Progress("loading the model")
    family = _opened(run, workspace)
    library = Library(dict.fromkeys(path.parent for path in files.values()))
    asked = ImageRequest(seed=settings.seed, steps=settings.steps)
    yield Started("comparing", len(cells), {"seed": str(settings.seed), **family.details})
    pace, drawn = Pace(len(cells), sample_every=0), dict[Cell, Image.Image]()
    for number, cell in enumerate(cells, start=1):
        request = asked.model_copy(update={"prompt": cell.full_prompt})
        (drawn[cell],), report = render(family, request, library)
        yield from (Warned(problem) for problem in report["problems"])
        path = into / "pictures" / f"{number:04}.png"
        write_atomically(path, partial(drawn[cell].save, format="png"))
        at = {"strength": cell.strength}
        yield SampleReady(str(path), cell.step, cell.prompt, settings.seed, at)
        pace.stepped(number)
        yield Step(number, len(cells), seconds_left=pace.seconds_left(number))
    sheet = lay_out(rows_of(drawn), [f"{strength:g}" for strength in (0.0, *strengths)])
    path = write_atomically(into / "grid.png", partial(sheet.save, format="png"))
    yield Done(str(path), time.monotonic() - began)


def cells_of(
    prompts: Iterable[str], files: Mapping[int, Path], strengths: Sequence[float]
) -> list[Cell]:
    """Every picture of the grid, the base model's before the others of its prompt."""
    return [
        cell
        for prompt in prompts
        for cell in (
            Cell(prompt),
            *(Cell(prompt, at, s, path.stem) for at, path in files.items() for s in strengths),
        )
    ]


def rows_of(drawn: Mapping[Cell, Image.Image]) -> list[Row]:
    """A row for each prompt and step, the base model's picture at its beginning."""
    rows: dict[tuple[str, int], list[Image.Image]] = {}
    for cell, image in drawn.items():
        if cell.lora:
            plain = drawn[Cell(cell.prompt)]
            rows.setdefault((cell.prompt, cell.step), [plain]).append(image)
    return [
        (f"step {at}\n{_shortened(prompt)}", pictures) for (prompt, at), pictures in rows.items()
    ]


def lay_out(rows: Sequence[Row], heads: list[str]) -> Image.Image:
    """Rows of pictures with words at their left, and over their columns."""
    size = (LEFT + len(heads) * (SIDE + GAP), HEAD + len(rows) * (SIDE + GAP))
    sheet = Image.new("RGB", size, PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for column, head in enumerate(heads):
        x = LEFT + column * (SIDE + GAP) + SIDE // 2
        pen.text((x, HEAD // 2), head, INK, font, anchor="mm")
    for number, (label, pictures) in enumerate(rows):
        y = HEAD + number * (SIDE + GAP)
        pen.multiline_text((10, y + SIDE // 2), label, INK, font, anchor="lm")
        for column, picture in enumerate(pictures):
            tile = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            sheet.paste(tile, (LEFT + column * (SIDE + GAP), y))
    return sheet


def _shortened(text: str, width: int = 18) -> str:
    """A prompt in four lines of `width` letters at the most, broken between words; only a word that
    is longer than a line is broken itself."""
    lines = textwrap.wrap(text, width)
    return "\n".join([*lines[:4], *["…"] * (len(lines) > 4)])
