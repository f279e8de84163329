"""What a training takes on this machine, as far as earlier work of its shape has told."""

from __future__ import annotations

from dataclasses import dataclass

from sdlora.errors import SettingsError
from sdlora.events import Measured
from sdlora.jobs import run_folder
from sdlora.jobs.kinds import MeasureSettings
from sdlora.settings.presets import with_preset
from sdlora.settings.train import TrainSettings
from webui.app_state import AppState, Run

# What the time and the memory of a step depend on, beside the machine and the pictures
COSTLY = (
    *("model", "batch_size", "gradient_accumulation", "resolution", "targets", "rank"),
    *("adapter", "conv_rank", "group_rank", "optimizer", "ema_decay", "compile_blocks"),
    *("train_unet", "train_text_encoder", "precision", "gradient_checkpointing", "offload"),
)


@dataclass(frozen=True)
class Cost:
    """Seconds of a step on the average; GiB that it takes at most and that were free, where
    somebody has measured them."""

    step_s: float
    memory: tuple[float, float] | None = None


def known_cost(studio: AppState, settings: TrainSettings) -> Cost | None:
    """By the last training like this one, its samples included, or a measurement since; the memory
    by the last measurement. None: there was neither."""
    trained = next((run for run in studio.trainings() if _told(studio, run, settings)), None)
    measured = next((r for r in studio.latest("measure") if _told(studio, r, settings)), None)
    known = cost_of(measured.state.measured) if measured and measured.state.measured else None
    if trained is None or (measured and begun(measured) > begun(trained)):
        return known
    return Cost(trained.state.seconds / trained.state.total, known.memory if known else None)


def begun(run: Run) -> int:
    """When a run was asked for, for comparing."""
    try:
        return (run.folder / run_folder.SETTINGS_FILE).stat().st_mtime_ns
    except OSError:  # deleted meanwhile
        return 0


def cost_of(measured: Measured) -> Cost:
    """What a measurement tells."""
    return Cost(
        measured.training_s / max(1, measured.steps), (measured.peak_gib, measured.free_gib)
    )


def _told(studio: AppState, run: Run, settings: TrainSettings) -> bool:
    """Whether a run has come to an end, and was one of the same shape."""
    if run.state.status != "done" or not (run.state.total or run.state.measured):
        return False
    kind = MeasureSettings if run.state.measured else TrainSettings
    try:
        given = kind.load(run.folder / run_folder.SETTINGS_FILE)
        past = with_preset(given, studio.workspace.preset_family(given.model))
    except SettingsError:
        return False
    return all(getattr(past, name) == getattr(settings, name) for name in COSTLY)
