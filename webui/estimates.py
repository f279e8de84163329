"""Time and memory of a training on this machine, from earlier trainings and measurements with the
same settings."""

from __future__ import annotations

from dataclasses import dataclass

from sdlora.errors import SettingsError
from sdlora.events import Measured
from sdlora.jobs import run_folder
from sdlora.jobs.kinds import MeasureSettings
from sdlora.models.registry import preset_family
from sdlora.settings.presets import with_preset
from sdlora.settings.train import TrainSettings
from webui.app_state import AppState, Run

# Settings that decide the time and the memory of a step, besides the machine and the pictures
COST_SETTINGS = (
    *("model", "batch_size", "gradient_accumulation", "resolution", "targets", "rank"),
    *("adapter", "conv_rank", "group_rank", "optimizer", "ema_decay", "compile_blocks"),
    *("train_unet", "train_text_encoder", "precision", "base_precision", "stream_blocks"),
    *("gradient_checkpointing", "offload", "memory"),
)


@dataclass(frozen=True)
class Cost:
    """Mean seconds of a step; peak and free memory in GiB where they were measured."""

    step_s: float
    memory: tuple[float, float] | None = None


def known_cost(app_state: AppState, settings: TrainSettings) -> Cost | None:
    """Cost by the last comparable training, its samples included, or by a later measurement; the
    memory by the last measurement. None: there is neither."""
    trained = next(
        (run for run in app_state.trainings() if _is_comparable(app_state, run, settings)), None
    )
    measured = next(
        (r for r in app_state.latest("measure") if _is_comparable(app_state, r, settings)), None
    )
    known = measured_cost(measured.state.measured) if measured and measured.state.measured else None
    if trained is None or (measured and queued_at_ns(measured) > queued_at_ns(trained)):
        return known
    return Cost(trained.state.seconds / trained.state.total, known.memory if known else None)


def queued_at_ns(run: Run) -> int:
    """Time at which a run was queued, in ns, for comparing; 0 when its folder was deleted."""
    try:
        return (run.folder / run_folder.SETTINGS_FILE).stat().st_mtime_ns
    except OSError:  # deleted meanwhile
        return 0


def measured_cost(measured: Measured) -> Cost:
    """Cost by a measurement."""
    return Cost(
        measured.training_s / max(1, measured.steps), (measured.peak_gib, measured.free_gib)
    )


def _is_comparable(app_state: AppState, run: Run, settings: TrainSettings) -> bool:
    """True for a finished run whose COST_SETTINGS equal these."""
    if run.state.status != "done" or not (run.state.total or run.state.measured):
        return False
    kind = MeasureSettings if run.state.measured else TrainSettings
    try:
        given = kind.load(run.folder / run_folder.SETTINGS_FILE)
        past = with_preset(given, preset_family(app_state.workspace.model_source(given.model)))
    except SettingsError:
        return False
    return all(getattr(past, name) == getattr(settings, name) for name in COST_SETTINGS)
