"""Loss log: losses that the device has not been asked for yet, and what reading them tells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from sdlora.errors import DataError
from sdlora.events import Warned
from sdlora.messages import Message, Setting
from sdlora.training.train_state import StepResult

MOST_UNSOUND, WITHIN = 2, 200  # steps left out among the last ones; one more and it has diverged
SHORTLY = 20  # steps
SPAN = 20  # steps that losses are averaged over: one is mostly its noise level
DOUBTFUL = 1.5  # times the loss that it began with


@dataclass(frozen=True)
class LossReading:
    """The mean loss of the steps since the last reading, None when none of them was sound; and the
    steps that were not, with their pictures."""

    loss: float | None
    unsound: list[tuple[int, Sequence[str]]]

    def warnings(self) -> Iterator[Warned]:
        """One for each step that was left out."""
        for step, names in self.unsound:
            yield Warned(
                Message(
                    "step {step} was left out, for its loss or gradient is not a number; pictures: "
                    "{names}", step=step, names=names,
                ),
                Message("look at these, or lower {rate}", rate=Setting("learning_rate")),
            )  # fmt: skip

    def diverged(self, step: int, reason: str, file: Path) -> DataError:
        """Return the error that ends a training here."""
        names = sorted({name for _, of_step in self.unsound for name in of_step})
        pictures = Message("; the last pictures: {names}", names=names) if names else ""
        return DataError(
            "the training diverged at step {step}: {why}, also at half the learning rate"
            "{pictures}. What was learnt is kept as {kept}. Lower {rate} or {alpha}{or_leave_out}",
            step=step, why=reason, pictures=pictures, kept=file,
            rate=Setting("learning_rate"), alpha=Setting("alpha"),
            or_leave_out=", or leave these pictures out" if names else "",
        )  # fmt: skip


@dataclass
class LossLog:
    """Log of losses: keeps what the steps computed until it is read, and which went wrong."""

    half_bits: bool  # a gradient may overflow in fp16: the scaler lowers itself, that is no fault
    unread: list[StepResult] = field(default_factory=list)
    unsound: list[int] = field(default_factory=list)
    first: list[float] = field(default_factory=list)  # losses of the first steps, nearly the base's
    late: list[float] = field(default_factory=list)  # of the last ones

    def read(self) -> LossReading:
        """Wait for the device; the unread steps are read then."""
        unread, self.unread = self.unread, []
        numbers = torch.stack([result.numbers for result in unread]).tolist() if unread else []
        sound, bad = [], []
        for result, (loss, norm) in zip(unread, numbers, strict=True):
            if isfinite(loss) and (self.half_bits or isfinite(norm)):
                sound.append(loss)
            else:
                bad.append((result.step, result.names))
        self.unsound += [step for step, _ in bad]
        for loss in sound:
            if len(self.first) < SPAN:
                self.first.append(loss)
            else:
                self.late = [*self.late, loss][-SPAN:]
        return LossReading(sum(sound) / len(sound) if sound else None, bad)

    def divergence_reason(self, step: int) -> str:
        """Return why it is not to go on like this; '' while it may."""
        if len([at for at in self.unsound if at > step - WITHIN]) > MOST_UNSOUND:
            return "again and again its loss is not a number"
        return ""

    def skipped_shortly_before(self, step: int) -> bool:
        """Return True when a step was skipped shortly before."""
        return any(at > step - SHORTLY for at in self.unsound)

    def climbs(self) -> bool:
        """Return True when the last losses are above the first, so that a closer look is worth its
        time; then not again before as many more."""
        enough = len(self.late) == SPAN
        risen = enough and fmean(self.late) > DOUBTFUL * fmean(self.first)
        if risen:
            self.late = []
        return risen

    def go_back(self) -> None:
        """Forget what was read after the step that the training goes back to."""
        self.unread, self.unsound, self.late = [], [], []

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of it; nothing may be unread."""
        return {
            "unsound": self.unsound[-MOST_UNSOUND - 1 :], "first": self.first, "late": self.late,
        }  # fmt: skip

    def load_state_dict(self, state: Any) -> None:
        """Go on from what `state_dict` gave."""
        saved = state if isinstance(state, dict) else {"unsound": state}  # older ones knew no more
        self.unread = []
        self.unsound, self.first, self.late = (
            [*saved.get(name, ())] for name in ("unsound", "first", "late")
        )
