"""The losses that the device has not been asked for yet, and what reading them tells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from sdlora.errors import DataError
from sdlora.events import Warned
from sdlora.training.learner import Learnt

MOST_UNSOUND, WITHIN = 2, 200  # steps left out among the last ones; one more and it has diverged
SHORTLY = 20  # steps


@dataclass(frozen=True)
class Reading:
    """The mean loss of the steps since the last reading, None when none of them was sound; and the
    steps that were not, with their pictures."""

    loss: float | None
    unsound: list[tuple[int, Sequence[str]]]

    def warnings(self) -> Iterator[Warned]:
        """One for each step that was left out."""
        for step, names in self.unsound:
            said = f"step {step} was left out, for its loss or gradient is not a number; pictures:"
            yield Warned(f"{said} {', '.join(names)}", "look at these, or lower the learning_rate")

    def diverged(self, step: int, kept: Path) -> DataError:
        """Why a training ends here."""
        names = sorted({name for _, some in self.unsound for name in some})
        return DataError(
            f"the training diverged at step {step}: again and again its loss is not a number, also "
            f"at half the learning rate; the last pictures: {', '.join(names)}. What was learnt is "
            f"kept as {kept}. Lower the learning_rate, or leave these pictures out"
        )


@dataclass
class Ledger:
    """Keeps what the steps computed until somebody asks; then remembers which went wrong."""

    half_bits: bool  # a gradient may overflow in fp16: the scaler lowers itself, that is no fault
    unread: list[Learnt] = field(default_factory=list)
    unsound: list[int] = field(default_factory=list)

    def read(self) -> Reading:
        """Wait for the device; the unread steps are read then."""
        unread, self.unread = self.unread, []
        numbers = torch.stack([one.numbers for one in unread]).tolist() if unread else []
        sound, bad = [], []
        for one, (loss, norm) in zip(unread, numbers, strict=True):
            if isfinite(loss) and (self.half_bits or isfinite(norm)):
                sound.append(loss)
            else:
                bad.append((one.step, one.names))
        self.unsound += [step for step, _ in bad]
        return Reading(sum(sound) / len(sound) if sound else None, bad)

    def diverged(self, step: int) -> bool:
        """Whether too many of the last steps were left out."""
        return len([at for at in self.unsound if at > step - WITHIN]) > MOST_UNSOUND

    def suspicious(self, step: int) -> bool:
        """Whether a step was left out shortly before."""
        return any(at > step - SHORTLY for at in self.unsound)

    def state(self) -> list[int]:
        """What a checkpoint keeps of it; nothing may be unread."""
        return self.unsound[-MOST_UNSOUND - 1 :]

    def restore(self, state: Any) -> None:
        """Go on from what `state` gave."""
        self.unread, self.unsound = [], [*state]
