"""Step times, step ranges and LoRA weights that change over the sampling steps.

A step time is a number of completed steps, or a fraction of all: 5 is after five steps, 0.5
half-way. In the second pass of hires fix the fractions go on from 1 to 2 and the steps from those
of the first pass, as in A1111 (modules/prompt_parser.py,
get_learned_conditioning_prompt_schedules).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from sdlora.prompt.scanner import number

_FAR = 1_000_000  # more than any number of steps


class StepTime(NamedTuple):
    """A point in the sampling: `value` completed steps, or that fraction of all steps."""

    value: float
    is_fraction: bool = False

    @classmethod
    def read(cls, text: str) -> StepTime | None:
        """Parse '5' as a number of steps, '0.5' and '1.0' as fractions; None if not a number."""
        value = number(text)
        return None if value is None else cls(max(-_FAR, min(value, _FAR)), "." in text)

    def step(self, steps: int, first_pass: int = 0) -> int:
        """Return the number of completed steps, of `steps`, at this time.

        `first_pass` is the number of steps of the first pass, in the second pass of hires fix.
        """
        if self.is_fraction:
            return int((self.value - bool(first_pass)) * steps)
        return int(self.value) - first_pass


class StepRange(NamedTuple):
    """Steps at which one part of a [...] is in the text: from `start`, until `end`, and of every
    `turns` steps the one numbered `turn`."""

    start: StepTime | None = None
    end: StepTime | None = None
    turn: int = 0
    turns: int = 1

    def shows(self, step: int, steps: int, first_pass: int = 0) -> bool:
        """True if the part is in the text at `step`, the first being 0."""
        return (
            step % self.turns == self.turn
            and not (self.start and step < self.start.step(steps, first_pass))
            and not (self.end and step >= self.end.step(steps, first_pass))
        )


ALWAYS = StepRange()
NEVER = StepRange(turn=-1)


class Point(NamedTuple):
    """A LoRA's weights at a step time. Between two points they are interpolated linearly, before
    the first and after the last constant; two points at the same time make a jump."""

    at: StepTime
    unet: float
    text_encoder: float


def weights_at(
    points: Sequence[Point], step: int, steps: int, first_pass: int = 0
) -> tuple[float, float]:
    """Return (UNet, text encoder) weights at `step`, the first being 0; `points` is not empty."""
    by_step = sorted(((point.at.step(steps, first_pass), point) for point in points), key=_step_of)
    after = bisect_right(by_step, step, key=_step_of)
    (begin, left), (end, right) = by_step[max(after - 1, 0)], by_step[min(after, len(by_step) - 1)]
    share = (step - begin) / (end - begin) if begin < end else 0.0
    return (
        left.unet + share * (right.unet - left.unet),
        left.text_encoder + share * (right.text_encoder - left.text_encoder),
    )


def _step_of(by_step: tuple[int, Point]) -> int:
    return by_step[0]
