"""Lengths in epochs and empty cadences become steps, and the last step always counts."""

import pytest

from sdlora.errors import SettingsError
from sdlora.settings.cadence import in_steps, is_due, times_left
from sdlora.settings.train import TrainSettings


def settings(**values: object) -> TrainSettings:
    return TrainSettings.from_values({"data": "x", "name": "x", **values})


def due(every: int | None, steps: int) -> list[int]:
    return [step for step in range(1, steps + 1) if is_due(step, every, steps)]


@pytest.mark.parametrize(
    ("steps", "sample", "validate", "save"),
    [
        (1, 10, 10, 10),
        (30, 10, 10, 10),
        (180, 45, 23, 23),
        (1000, 250, 125, 100),
        (9000, 250, 250, 100),
    ],
)  # fmt: skip
def test_empty_cadences_follow_the_length_of_the_run(
    steps: int, sample: int, validate: int, save: int
) -> None:
    planned = in_steps(settings(steps=steps), 5)
    assert (planned.sample_every, planned.validate_every, planned.save_every) == (
        sample, validate, save
    )  # fmt: skip
    assert len(due(planned.validate_every, steps)) >= min(-(-steps // 10), 8)


def test_given_cadences_stay_and_zero_is_never() -> None:
    planned = in_steps(settings(steps=100, sample_every=0, validate_every=7, save_every=1000), 5)
    assert (planned.sample_every, planned.validate_every, planned.save_every) == (0, 7, 1000)
    assert due(0, 100) == [] and due(None, 100) == []


@pytest.mark.parametrize(
    ("every", "steps", "at"),
    [(100, 180, [100, 180]), (90, 180, [90, 180]), (500, 180, [180]), (1, 3, [1, 2, 3])],
)
def test_the_last_step_is_always_due(every: int, steps: int, at: list[int]) -> None:
    assert due(every, steps) == at
    for step in range(steps + 1):
        assert times_left(step, every, steps) == len([later for later in at if later > step])


def test_epochs_count_in_place_of_steps() -> None:
    planned = in_steps(
        settings(epochs=10, save_every_epochs=2, sample_every_epochs=5, validate_every=3), 7
    )
    assert (planned.steps, planned.save_every, planned.sample_every) == (70, 14, 35)
    assert planned.validate_every == 3
    assert in_steps(planned, 7) == planned


def test_too_many_epochs_are_refused_in_numbers() -> None:
    with pytest.raises(SettingsError, match="epochs = 100000 are 700000 steps"):
        in_steps(settings(epochs=100_000), 7)


@pytest.mark.parametrize(
    ("warmup", "steps", "expected"), [(20, 1000, 20), (0.1, 1000, 100), (0, 50, 0), (0.5, 5, 2)]
)
def test_a_warm_up_below_one_is_a_share_of_the_steps(
    warmup: float, steps: int, expected: int
) -> None:
    assert settings(warmup_steps=warmup, steps=steps).warmup == expected


def test_a_warm_up_of_a_run_in_epochs_is_a_share_of_what_they_come_to() -> None:
    assert in_steps(settings(warmup_steps=0.1, epochs=10), 7).warmup == 7


@pytest.mark.parametrize("warmup", [1.5, 20.25, -1])
def test_a_warm_up_of_part_of_a_step_is_refused(warmup: float) -> None:
    with pytest.raises(SettingsError, match="warmup_steps"):
        settings(warmup_steps=warmup)
