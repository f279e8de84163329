"""The time left is told only once enough steps were measured, and not from the slow first one."""

import pytest

from sdlora import eta
from sdlora.eta import Pace


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(eta.time, "monotonic", lambda: now[0])
    return now


def test_no_time_is_told_before_enough_steps(clock: list[float]) -> None:
    measured = Pace(100, sample_every=0)
    clock[0] = 500.0  # the first step compiles and loads
    for step in range(1, 4):
        measured.stepped(step)
        assert measured.seconds_left(step) is None
        clock[0] += 2.0
    measured.stepped(4)
    assert measured.seconds_left(4) == pytest.approx(96 * 2.0)


def test_a_resumed_run_measures_its_own_first_steps(clock: list[float]) -> None:
    measured = Pace(100, sample_every=0)
    measured.resume_from(50)
    clock[0] = 300.0
    measured.stepped(51)
    assert measured.seconds_left(51) is None
    clock[0] += 4.0
    measured.stepped(55)
    assert measured.seconds_left(55) == pytest.approx(45.0)


def test_the_end_is_the_end_however_short_the_work(clock: list[float]) -> None:
    measured = Pace(1, sample_every=0)
    measured.stepped(1)
    assert measured.seconds_left(1) == 0.0
