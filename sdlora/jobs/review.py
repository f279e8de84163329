"""What a training came to: its curves as a picture, and which of its LoRAs to take; no torch."""

from __future__ import annotations

import glob
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor, log10
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from sdlora.errors import RunError, SettingsError
from sdlora.events import RunState
from sdlora.files import publish_new
from sdlora.lora.format.header import body_hash, checked_shapes, read_raw_header
from sdlora.messages import Message, PerSurface
from sdlora.settings.grid import GridSettings
from sdlora.settings.train import TrainSettings

_STEP = re.compile(r"-step-\d+$")  # what a checkpoint's LoRA has behind its name
Points = Sequence[tuple[int, float]]
INK, FAINT, RAIL = "#1f2430", "#7a8194", "#e4e7ee"
LOSS, SMOOTH, HELD_OUT, DRIFT = "#c7d0f7", "#4c6ef5", "#f08c00", "#7048e8"
WIDTH, PANEL, EDGE, SCALE = 900, 260, 60, 2  # SCALE: pixels per unit, for sharp displays


def columns(strengths: Sequence[float]) -> tuple[float, ...]:
    """The strengths to draw beside the base model's picture, which is that of strength 0: each
    other one once."""
    return tuple(dict.fromkeys(filter(None, strengths))) or tuple(strengths[:1])


@dataclass(frozen=True)
class Suggestion:
    """The LoRA to take, and after which step it was that."""

    step: int
    path: Path
    reason: str


def lora_files(folder: Path) -> list[tuple[int, Path]]:
    """(step, file) of every checkpoint's LoRA in a run's folder, by step."""
    files = (folder / "state").glob("step-*/*-step-*.safetensors")
    steps = ((path.stem.rpartition("-")[2], path) for path in files)
    return sorted((int(step), path) for step, path in steps if step.isascii() and step.isdigit())


def loras_by_step(folder: Path, state: RunState) -> dict[int, Path]:
    """Step -> LoRA, of every checkpoint and of the end. RunError: there is none."""
    files = dict(lora_files(folder))
    name = TrainSettings.load(folder / "settings.json").name
    last = folder / "lora" / f"{name}.safetensors"
    if state.result and last.is_file():
        files.setdefault(state.result_step, last)
    if not files:
        raise RunError(
            "the run {name!r} has no LoRA yet: {advice}", name=folder.name,
            advice=PerSurface("python launch.py runs save NAME", "press Save now while it runs"),
        )  # fmt: skip
    return dict(sorted(files.items()))


def chosen(files: Mapping[int, Path], step: int) -> Path:
    """The LoRA of a step. RunError: the run has none of that step."""
    if step not in files:
        raise RunError(
            "there is no LoRA of step {step}; the run has those of {steps}",
            step=step, steps=list(files),
        )  # fmt: skip
    return files[step]


def prompts_of(settings: GridSettings, state: RunState) -> tuple[str, ...]:
    """The prompts of a comparison: those asked for, else those that the run has sampled.
    SettingsError: there are neither."""
    prompts = settings.prompts or tuple(dict.fromkeys(one.prompt for one in state.samples))
    if not prompts:
        wrong = Message(
            "the run has drawn no samples whose prompts could be taken; name some in {setting}",
            setting=PerSurface("--prompts TEXT ...", "Prompts"),
        )
        raise SettingsError(wrong, fields={"prompts": wrong})
    return prompts


def keep(folder: Path, state: RunState, step: int, loras: Path) -> Path:
    """Put the LoRA of a step where prompts find it, as NAME-step-000120, byte for byte; returns
    that file. Where its numbers lie already, as the run's result or kept before, that is the one;
    another of its name is never replaced. RunError: there is none, or not any more, or the disk
    does not take it; LoraFileError: it is damaged."""
    source = chosen(loras_by_step(folder, state), step)
    wish = loras / f"{_STEP.sub('', source.stem)}-step-{step:06}.safetensors"
    before = [loras / Path(state.result).name] if state.result else []
    before += sorted(loras.glob(f"{glob.escape(wish.stem)}*.safetensors"))
    try:
        checked_shapes(read_raw_header(source))
        numbers = body_hash(source)
        same = (path for path in before if path.is_file() and body_hash(path) == numbers)
        return next(same, None) or publish_new(wish, lambda to: shutil.copyfile(source, to))
    except FileNotFoundError:
        raise RunError(
            "the checkpoint of step {step} is gone; newer ones took its place", step=step
        ) from None
    except OSError as error:
        raise RunError(
            "the LoRA of step {step} could not be copied: {why}", step=step, why=error.strerror
        ) from None


def suggestion(folder: Path, state: RunState) -> Suggestion | None:
    """The best LoRA of a run, and why; None when it has none."""
    files, best = dict(lora_files(folder)), state.best
    if best and best.step in files and best.step != state.result_step:
        later = state.validations[-1]
        reason = Message(
            "after step {step} the loss on the pictures held out was lowest, {loss:.4f}; at the "
            "end it was {last:.4f}", step=best.step, loss=best.loss, last=later.loss or 0.0,
        )  # fmt: skip
        return Suggestion(best.step, files[best.step], reason)
    if state.result:
        reason = Message("it is the last, and no pictures were held out to compare it by")
        if best:
            template = "its loss on the pictures held out is the best, {loss:.4f}"
            reason = Message(template, loss=best.loss)
        return Suggestion(state.result_step, Path(state.result), reason)
    if files:
        step = max(files)
        return Suggestion(step, files[step], Message("step {step} is the last saved", step=step))
    return None


@dataclass(frozen=True)
class _ReviewLine:
    name: str
    points: Points
    colour: str
    width: int = 3


def draw_curves(state: RunState, title: str) -> Image.Image:
    """The training loss and its average, the loss on held-out pictures; below them the drift."""
    held = [(one.step, one.loss) for one in state.validations if one.loss is not None]
    drift = [(one.step, one.drift) for one in state.validations if one.drift is not None]
    panels = [
        [
            _ReviewLine("", state.losses, LOSS, 2),
            _ReviewLine("training loss, averaged", averaged(state.losses), SMOOTH),
            _ReviewLine("loss on pictures held out", held, HELD_OUT),
        ]
    ]
    panels += [[_ReviewLine("drift on unrelated prompts", drift, DRIFT)]] if drift else []
    size = (WIDTH * SCALE, (50 + len(panels) * (PANEL + 50)) * SCALE)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    _write(pen, (EDGE, 18), title, INK, 18)
    steps = [step for lines in panels for line in lines for step, _ in line.points]
    last = max(steps, default=1) or 1  # one axis for all panels
    for number, lines in enumerate(panels):
        top = 60 + number * (PANEL + 50)
        _panel(pen, top, [line for line in lines if line.points], last)
    return sheet


def averaged(points: Points, weight: float = 0.2) -> list[tuple[int, float]]:
    """Every point with those before it, each older one counting less."""
    smooth: list[tuple[int, float]] = []
    for step, value in points:
        before = smooth[-1][1] if smooth else value
        smooth.append((step, (1 - weight) * before + weight * value))
    return smooth


def _panel(pen: ImageDraw.ImageDraw, top: int, lines: Sequence[_ReviewLine], last: int) -> None:
    values = [value for line in lines for _, value in line.points]
    most = max(values, default=1.0) * 1.05 or 1.0

    def place(step: float, value: float) -> tuple[float, float]:
        x = EDGE + (WIDTH - 2 * EDGE) * step / last
        return SCALE * x, SCALE * (top + PANEL * (1 - value / most))

    tick = _round_step(most)
    for number in range(int(most / tick) + 1):
        pen.line([place(0, number * tick), place(last, number * tick)], RAIL, SCALE)
        _write(pen, (8, top + PANEL * (1 - number * tick / most) - 7), f"{number * tick:.3g}")
    for number in range(5):
        step = round(last * number / 4)
        _write(pen, (place(step, 0)[0] / SCALE - 10, top + PANEL + 6), str(step))
    for line in lines:
        spots = [place(*point) for point in line.points]
        if len(spots) > 1:
            pen.line(spots, line.colour, line.width * SCALE // 2, joint="curve")
        elif spots:
            (x, y), r = spots[0], 3 * SCALE
            pen.ellipse((x - r, y - r, x + r, y + r), line.colour)
    named = [line for line in lines if line.name]
    for number, line in enumerate(named):
        _write(pen, (WIDTH - 260, top + 6 + 20 * number), line.name, line.colour)


def _round_step(most: float) -> float:
    """A round distance of which about four to eight fit."""
    rough = most / 5
    unit = 10 ** floor(log10(rough))
    return float(unit * (1 if rough < 1.5 * unit else 2 if rough < 3.5 * unit else 5))


def _write(
    pen: ImageDraw.ImageDraw,
    at: tuple[float, float],
    words: str,
    colour: str = FAINT,
    size: int = 13,
) -> None:
    font = ImageFont.load_default(size * SCALE)
    pen.text((at[0] * SCALE, at[1] * SCALE), words, colour, font)
