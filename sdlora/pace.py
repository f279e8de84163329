"""How long the rest of a training takes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from sdlora.cadence import times_left


@dataclass
class Pace:
    """Steps at their smoothed pace, and each round of samples as long as the last one took."""

    steps: int
    sample_every: int | None  # 0: never
    step_s: float = 0.0
    sample_s: float = 0.0
    _step: int = 0
    _at: float = field(default_factory=time.monotonic)

    def stepped(self, step: int) -> None:
        """The device has finished `step`."""
        now = time.monotonic()
        fresh = (now - self._at) / (step - self._step)
        self.step_s = 0.7 * self.step_s + 0.3 * fresh if self.step_s else fresh
        self._step, self._at = step, now

    def go_on(self, step: int) -> None:
        """The first `step` steps were done by another process."""
        self._step, self._at = step, time.monotonic()

    def sampled(self) -> None:
        """A round of samples has ended; it began when the last step was finished."""
        now = time.monotonic()
        self.sample_s, self._at = now - self._at, now

    def seconds_left(self, step: int) -> float:
        """From `step` to the end."""
        rounds = times_left(step, self.sample_every, self.steps)
        return self.step_s * (self.steps - step) + self.sample_s * rounds
