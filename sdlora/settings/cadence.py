"""Intervals of a run in steps: samples, validations and checkpoints, and lengths given in epochs.

The number of steps of an epoch is known once the pictures are read. Empty intervals follow the
length of the run, so that a short one is sampled, validated and saved often enough to choose from.
"""

from __future__ import annotations

from dataclasses import dataclass

from sdlora.errors import SettingsError
from sdlora.messages import Setting
from sdlora.settings.train import MOST_STEPS, TrainSettings

LEAST = 10  # steps, of an empty cadence: looking at what is learnt waits for the device


@dataclass(frozen=True)
class Cadence:
    """Setting of an interval in steps: about `times` in a run when it is empty, and every
    `at_least` steps where the run is long."""

    every: str
    every_epochs: str
    times: int
    at_least: int


CADENCES = (
    Cadence("sample_every", "sample_every_epochs", times=4, at_least=250),
    Cadence("validate_every", "validate_every_epochs", times=8, at_least=250),
    Cadence("save_every", "save_every_epochs", times=8, at_least=100),
)


def in_steps(settings: TrainSettings, steps_per_epoch: int) -> TrainSettings:
    """Return the settings with their epochs and empty intervals as steps; those in steps stay as
    they are. Idempotent, so that a checkpoint's settings may pass again. SettingsError: too many
    steps."""
    steps = settings.epochs * steps_per_epoch if settings.epochs else settings.steps
    if steps > MOST_STEPS:
        raise SettingsError(
            "{setting} = {epochs} are {steps} steps of these pictures; a run has {limit} at most",
            setting=Setting("epochs"), epochs=settings.epochs, steps=steps, limit=MOST_STEPS,
        )  # fmt: skip
    return settings.model_copy(
        update={
            "steps": steps,
            **{row.every: _every(row, settings, steps, steps_per_epoch) for row in CADENCES},
        }
    )


def is_due(step: int, every: int | None, steps: int) -> bool:
    """Return True if something with an interval of `every` steps is due after `step`; also after
    the last step, unless the interval is 0."""
    return bool(every) and (step % (every or 1) == 0 or step == steps)


def times_left(step: int, every: int | None, steps: int) -> int:
    """Return the number of times that it is still due after `step`, the last step included."""
    if not every or step >= steps:
        return 0
    return -(-steps // every) - step // every


def _every(row: Cadence, settings: TrainSettings, steps: int, steps_per_epoch: int) -> int:
    if epochs := getattr(settings, row.every_epochs):
        return int(epochs * steps_per_epoch)
    every = getattr(settings, row.every)
    return min(max(-(-steps // row.times), LEAST), row.at_least) if every is None else int(every)
