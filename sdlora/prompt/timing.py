"""When something holds during the sampling of a picture: moments, windows, and weights that move.

A moment is so many steps done, or a fraction of all steps: 5 is after five steps, 0.5 half-way.
In the second pass of hires-fix the fractions go on from 1 to 2 and the steps from those of the
first pass, as in A1111 (modules/prompt_parser.py, get_learned_conditioning_prompt_schedules).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from sdlora.prompt.scanner import number

_FAR = 1_000_000  # beyond every step there is, and far from where numbers end


class StepTime(NamedTuple):
    """`value` steps done, or that fraction of all steps."""

    value: float
    is_fraction: bool = False

    @classmethod
    def read(cls, text: str) -> StepTime | None:
        """'5' is a number of steps, '0.5' and '1.0' are fractions; None for what is no number."""
        value = number(text)
        return None if value is None else cls(max(-_FAR, min(value, _FAR)), "." in text)

    def step(self, steps: int, first_pass: int = 0) -> int:
        """How many of the `steps` are done then.

        `first_pass` is the number of steps before, when the second pass of hires-fix is asked for.
        """
        if self.is_fraction:
            return int((self.value - bool(first_pass)) * steps)
        return int(self.value) - first_pass


class StepRange(NamedTuple):
    """The steps at which one part of a [...] stands in the text: from `start`, until `end`, and of
    every `turns` steps the one numbered `turn`."""

    start: StepTime | None = None
    end: StepTime | None = None
    turn: int = 0
    turns: int = 1

    def shows(self, step: int, steps: int, first_pass: int = 0) -> bool:
        """Whether at `step`, the first being 0."""
        return (
            step % self.turns == self.turn
            and not (self.start and step < self.start.step(steps, first_pass))
            and not (self.end and step >= self.end.step(steps, first_pass))
        )


ALWAYS = StepRange()
NEVER = StepRange(turn=-1)


class Point(NamedTuple):
    """A LoRA's weights at a moment. Between two points they change linearly; before the first and
    after the last they stay; where two points share a place they jump."""

    at: StepTime
    unet: float
    text_encoder: float


def weights_at(
    points: Sequence[Point], step: int, steps: int, first_pass: int = 0
) -> tuple[float, float]:
    """(UNet, text encoder) at `step`, the first being 0; `points` is not empty."""
    placed = sorted(((point.at.step(steps, first_pass), point) for point in points), key=_place)
    after = bisect_right(placed, step, key=_place)
    (begin, one), (end, two) = placed[max(after - 1, 0)], placed[min(after, len(placed) - 1)]
    share = (step - begin) / (end - begin) if begin < end else 0.0
    return (
        one.unet + share * (two.unet - one.unet),
        one.text_encoder + share * (two.text_encoder - one.text_encoder),
    )


def _place(placed: tuple[int, Point]) -> int:
    return placed[0]
