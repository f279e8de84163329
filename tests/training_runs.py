"""Trainings on tiny models, run to their end or broken off, and what came of them."""

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

import sdlora.training.sample_images
import sdlora.training.train_state
from sdlora.events import (
    Event,
    Saved,
    Step,
)
from sdlora.lora.format.file import LoraFile, read_lora
from sdlora.settings.train import TrainSettings
from sdlora.training.loss import loss_of
from sdlora.training.train import train
from sdlora.workspace import Workspace
from tiny import tiny


class Run:
    """Runs trainings to their end, or until they are asked to stop; in folders run-1, run-2 ..."""

    def __init__(self, pictures: Path, space: Workspace, root: Path) -> None:
        self.pictures, self.space, self.root = pictures, space, root
        self.numbers = itertools.count(1)
        self.error = ""

    def settings(self, kind: str = "sd1", **values: Any) -> TrainSettings:
        said = {
            "data": str(self.pictures), "name": "zibo", "model": str(tiny(kind)), "steps": 4,
            "batch_size": 2, "rank": 2, "alpha": 2, "learning_rate": 1e-2, "warmup_steps": 0,
            "sample_every": 0, **values,
        }  # fmt: skip
        return TrainSettings.from_values(said)

    def __call__(
        self,
        kind: str = "sd1",
        stop_at: int | None = None,
        expect: type[Exception] | None = None,
        folder: Path | None = None,
        **values: Any,
    ) -> list[Event]:
        events: list[Event] = []
        folder = folder or self.root / f"run-{next(self.numbers)}"
        source = train(
            self.settings(kind, **values), self.space, folder, lambda: reached(events, stop_at)
        )
        with pytest.raises(expect) if expect else nullcontext() as caught:
            for event in source:
                events.append(event)
        self.error = str(caught.value) if caught else ""
        return events


def reached(events: list[Event], step: int | None) -> bool:
    return step == 0 or step in [event.step for event in events if isinstance(event, Step)]


def only(kind: type[Event], events: list[Event]) -> Any:
    """The one event of a kind."""
    (found,) = [event for event in events if isinstance(event, kind)]
    return found


def learnt(events: list[Event]) -> LoraFile:
    """The LoRA that a run left where prompts find it."""
    return read_lora(Path(only(Saved, events).path))


def numbers_of(file: LoraFile) -> torch.Tensor:
    halves = [it.tensors[half] for it in file.layers.values() for half in ("down", "up")]
    return torch.cat([half.flatten() for half in halves]).float()


class Breaks:
    """A loss that is not a number in some calls, or `times` what it is; `seen` are the pictures of
    every call."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, when: Callable[[int], bool], times: float = torch.nan
    ) -> None:
        self.seen: list[tuple[str, ...]] = []
        self.when, self.times = when, times
        monkeypatch.setattr(sdlora.training.train_state, "loss_of", self)

    def __call__(self, family: Any, batch: Any, *rest: Any) -> torch.Tensor:
        self.seen.append(batch.names)
        return loss_of(family, batch, *rest) * (self.times if self.when(len(self.seen)) else 1)


def result_of(job: Any) -> Any:
    """What a generator returns."""
    while True:
        try:
            next(job)
        except StopIteration as end:
            return end.value
