"""Review of a training: its curves as a picture, and the best of its LoRAs; no torch."""

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
from sdlora.files import write_to_free_path
from sdlora.lora.format.header import body_hash, checked_shapes, read_raw_header
from sdlora.messages import Message, PerSurface
from sdlora.settings.grid import GridSettings
from sdlora.settings.train import TrainSettings

_STEP = re.compile(r"-step-\d+$")  # at the end of the name of a checkpoint's LoRA
Points = Sequence[tuple[int, float]]
INK, FAINT, RAIL = "#1f2430", "#7a8194", "#e4e7ee"
LOSS, SMOOTH, HELD_OUT, DRIFT = "#c7d0f7", "#4c6ef5", "#f08c00", "#7048e8"
WIDTH, PANEL, EDGE, SCALE = 900, 260, 60, 2  # SCALE: pixels per unit, for sharp displays


def grid_strengths(strengths: Sequence[float]) -> tuple[float, ...]:
    """Return the strengths to draw, each once, beside the base model's picture, which is that of
    strength 0."""
    return tuple(dict.fromkeys(filter(None, strengths))) or tuple(strengths[:1])


@dataclass(frozen=True)
class Suggestion:
    """The LoRA to take, the step that it was saved after, and the reason."""

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


def lora_of_step(files: Mapping[int, Path], step: int) -> Path:
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
    sampled = (sample.prompt for sample in state.samples)
    prompts = settings.prompts or tuple(dict.fromkeys(sampled))
    if not prompts:
        message = Message(
            "the run has drawn no samples whose prompts could be taken; name some in {setting}",
            setting=PerSurface("--prompts TEXT ...", "Prompts"),
        )
        raise SettingsError(message, fields={"prompts": message})
    return prompts


def copy_lora(folder: Path, state: RunState, step: int, loras: Path) -> Path:
    """Copy the LoRA of a step to where prompts find it, as NAME-step-000120, byte for byte; returns
    that file. A file with the same weights that is there already, as the run's result or from an
    earlier copy, is returned instead; another of its name is never replaced. RunError: there is no
    such LoRA, or no longer, or the disk does not take it; LoraFileError: it is damaged."""
    source = lora_of_step(loras_by_step(folder, state), step)
    target = loras / f"{_STEP.sub('', source.stem)}-step-{step:06}.safetensors"
    candidates = [loras / Path(state.result).name] if state.result else []
    candidates += sorted(loras.glob(f"{glob.escape(target.stem)}*.safetensors"))
    try:
        checked_shapes(read_raw_header(source))
        weights_hash = body_hash(source)
        same = (path for path in candidates if path.is_file() and body_hash(path) == weights_hash)
        return next(same, None) or write_to_free_path(
            target, lambda to: shutil.copyfile(source, to)
        )
    except FileNotFoundError:
        raise RunError(
            "the checkpoint of step {step} is gone; newer ones took its place", step=step
        ) from None
    except OSError as error:
        raise RunError(
            "the LoRA of step {step} could not be copied: {why}", step=step, why=error.strerror
        ) from None


def suggest_lora(folder: Path, state: RunState) -> Suggestion | None:
    """Return the best LoRA of a run, and the reason; None when it has none."""
    files, best = dict(lora_files(folder)), state.best
    if best and best.step in files and best.step != state.result_step:
        later = state.validations[-1]
        reason = Message(
            "after step {step} the validation loss was lowest, {loss:.4f}; at the "
            "end it was {last:.4f}", step=best.step, loss=best.loss, last=later.loss or 0.0,
        )  # fmt: skip
        return Suggestion(best.step, files[best.step], reason)
    if state.result:
        reason = Message("it is the last, and there was no validation split to compare it by")
        if best:
            template = "its validation loss is the best, {loss:.4f}"
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
    held = [(v.step, v.loss) for v in state.validations if v.loss is not None]
    drift = [(v.step, v.drift) for v in state.validations if v.drift is not None]
    panels = [
        [
            _ReviewLine("", state.losses, LOSS, 2),
            _ReviewLine("training loss, averaged", smoothed(state.losses), SMOOTH),
            _ReviewLine("validation loss", held, HELD_OUT),
        ]
    ]
    panels += [[_ReviewLine("drift on unrelated prompts", drift, DRIFT)]] if drift else []
    size = (WIDTH * SCALE, (50 + len(panels) * (PANEL + 50)) * SCALE)
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    _draw_text(draw, (EDGE, 18), title, INK, 18)
    steps = [step for lines in panels for line in lines for step, _ in line.points]
    last = max(steps, default=1) or 1  # one axis for all panels
    for number, lines in enumerate(panels):
        top = 60 + number * (PANEL + 50)
        _draw_panel(draw, top, [line for line in lines if line.points], last)
    return image


def smoothed(points: Points, weight: float = 0.2) -> list[tuple[int, float]]:
    """Return the exponential moving average of the points; `weight` is that of the older ones."""
    smooth: list[tuple[int, float]] = []
    for step, value in points:
        before = smooth[-1][1] if smooth else value
        smooth.append((step, (1 - weight) * before + weight * value))
    return smooth


def _draw_panel(
    draw: ImageDraw.ImageDraw, top: int, lines: Sequence[_ReviewLine], last: int
) -> None:
    values = [value for line in lines for _, value in line.points]
    maximum = max(values, default=1.0) * 1.05 or 1.0

    def position(step: float, value: float) -> tuple[float, float]:
        x = EDGE + (WIDTH - 2 * EDGE) * step / last
        return SCALE * x, SCALE * (top + PANEL * (1 - value / maximum))

    tick = _tick_distance(maximum)
    for number in range(int(maximum / tick) + 1):
        draw.line([position(0, number * tick), position(last, number * tick)], RAIL, SCALE)
        _draw_text(
            draw, (8, top + PANEL * (1 - number * tick / maximum) - 7), f"{number * tick:.3g}"
        )
    for number in range(5):
        step = round(last * number / 4)
        _draw_text(draw, (position(step, 0)[0] / SCALE - 10, top + PANEL + 6), str(step))
    for line in lines:
        spots = [position(*point) for point in line.points]
        if len(spots) > 1:
            draw.line(spots, line.colour, line.width * SCALE // 2, joint="curve")
        elif spots:
            (x, y), r = spots[0], 3 * SCALE
            draw.ellipse((x - r, y - r, x + r, y + r), line.colour)
    named = [line for line in lines if line.name]
    for number, line in enumerate(named):
        _draw_text(draw, (WIDTH - 260, top + 6 + 20 * number), line.name, line.colour)


def _tick_distance(maximum: float) -> float:
    """A round distance of which about four to eight fit."""
    rough = maximum / 5
    unit = 10 ** floor(log10(rough))
    return float(unit * (1 if rough < 1.5 * unit else 2 if rough < 3.5 * unit else 5))


def _draw_text(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    colour: str = FAINT,
    size: int = 13,
) -> None:
    font = ImageFont.load_default(size * SCALE)
    draw.text((at[0] * SCALE, at[1] * SCALE), text, colour, font)
