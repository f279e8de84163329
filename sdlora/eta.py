"""How long the rest of a training takes.

The first step of a process is not measured: it loads and compiles what the others find ready. No
time is told before a few more were.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from sdlora.settings.cadence import times_left

MEASURED_FIRST = 3  # steps, before a time is told


@dataclass
class Pace:
    """Steps at their smoothed pace, and each round of samples as long as the last one took."""

    steps: int
    sample_every: int | None  # 0: never
    step_s: float = 0.0
    sample_s: float = 0.0
    _step: int = 0
    _is_warm: bool = False
    _measured: int = 0
    _at: float = field(default_factory=time.monotonic)

    def stepped(self, step: int) -> None:
        """The device has finished `step`."""
        now = time.monotonic()
        if self._is_warm and step > self._step:
            fresh = (now - self._at) / (step - self._step)
            self.step_s = 0.7 * self.step_s + 0.3 * fresh if self.step_s else fresh
            self._measured += step - self._step
        self._step, self._at, self._is_warm = step, now, True

    def go_on(self, step: int) -> None:
        """The first `step` steps were done by another process."""
        self._step, self._at, self._is_warm = step, time.monotonic(), False

    def sampled(self) -> None:
        """A round of samples has ended; it began when the last step was finished."""
        now = time.monotonic()
        self.sample_s, self._at = now - self._at, now

    def seconds_left(self, step: int) -> float | None:
        """From `step` to the end; None: too few steps were measured to tell."""
        if self._measured < MEASURED_FIRST:
            return None if step < self.steps else 0.0
        rounds = times_left(step, self.sample_every, self.steps)
        return self.step_s * (self.steps - step) + self.sample_s * rounds
