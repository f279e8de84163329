"""Estimate of the remaining time of a training.

The first step of a process is not measured: it loads and compiles what later steps find ready. No
time is given before a few more steps were measured.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from sdlora.settings.cadence import times_left

MIN_MEASURED = 3  # steps, before a time is given


@dataclass
class Pace:
    """Smoothed seconds per step, and the seconds of the last round of samples."""

    steps: int
    sample_every: int | None  # 0: never
    step_s: float = 0.0
    sample_s: float = 0.0
    _step: int = 0
    _is_warm: bool = False
    _measured: int = 0
    _at: float = field(default_factory=time.monotonic)

    def stepped(self, step: int) -> None:
        """Note that the device has finished `step`."""
        now = time.monotonic()
        if self._is_warm and step > self._step:
            fresh = (now - self._at) / (step - self._step)
            self.step_s = 0.7 * self.step_s + 0.3 * fresh if self.step_s else fresh
            self._measured += step - self._step
        self._step, self._at, self._is_warm = step, now, True

    def resume_from(self, step: int) -> None:
        """Note that the first `step` steps were done by another process."""
        self._step, self._at, self._is_warm = step, time.monotonic(), False

    def sampled(self) -> None:
        """Note that a round of samples has ended; it began when the last step was finished."""
        now = time.monotonic()
        self.sample_s, self._at = now - self._at, now

    def seconds_left(self, step: int) -> float | None:
        """Return the seconds from `step` to the end; None: too few steps were measured."""
        if self._measured < MIN_MEASURED:
            return None if step < self.steps else 0.0
        rounds = times_left(step, self.sample_every, self.steps)
        return self.step_s * (self.steps - step) + self.sample_s * rounds
