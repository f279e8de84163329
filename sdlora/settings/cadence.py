"""Steps of a run whose length is given in epochs, and what happens every so many of them.

How many steps an epoch has is known once the pictures are read. Empty cadences follow the length
of the run, so that a short one is sampled, validated and saved often enough to choose from.
"""

from __future__ import annotations

from dataclasses import dataclass

from sdlora.errors import SettingsError
from sdlora.messages import Setting
from sdlora.settings.train import MOST_STEPS, TrainSettings

LEAST = 10  # steps, of an empty cadence: looking at what is learnt waits for the device


@dataclass(frozen=True)
class Cadence:
    """A setting of steps between two times of the same: about `times` in a run when it is empty,
    and every `at_least` steps where the run is long."""

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
    """The settings with their epochs and empty cadences as steps; those in steps stay as they are.
    Idempotent, so that a checkpoint's settings may pass again. SettingsError: too many steps."""
    steps = settings.epochs * steps_per_epoch if settings.epochs else settings.steps
    if steps > MOST_STEPS:
        raise SettingsError(
            "{setting} = {epochs} are {steps} steps of these pictures; a run has {most} at most",
            setting=Setting("epochs"), epochs=settings.epochs, steps=steps, most=MOST_STEPS,
        )  # fmt: skip
    return settings.model_copy(
        update={
            "steps": steps,
            **{row.every: _every(row, settings, steps, steps_per_epoch) for row in CADENCES},
        }
    )


def is_due(step: int, every: int | None, steps: int) -> bool:
    """True when what happens every so many steps happens after `step`; after the last in any case,
    unless it never does."""
    return bool(every) and (step % (every or 1) == 0 or step == steps)


def times_left(step: int, every: int | None, steps: int) -> int:
    """How often it will still happen after `step`, the last step included."""
    if not every or step >= steps:
        return 0
    return -(-steps // every) - step // every


def _every(row: Cadence, settings: TrainSettings, steps: int, steps_per_epoch: int) -> int:
    if epochs := getattr(settings, row.every_epochs):
        return int(epochs * steps_per_epoch)
    every = getattr(settings, row.every)
    return min(max(-(-steps // row.times), LEAST), row.at_least) if every is None else int(every)
