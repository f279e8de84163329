"""Memory plan: what a training does to fit into its device, decided before the model is loaded.

Four levels, each with what the one before does and more. `auto` takes the first whose prediction
fits the free memory with room to spare, since peaks lie above what can be predicted. What the user
has set is never changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

import torch

from sdlora.device import free_memory_gib
from sdlora.errors import SettingsError
from sdlora.messages import size_in_words
from sdlora.settings.train import MemoryLevel, TrainSettings
from sdlora.training.memory_prediction import MemoryPrediction, predict_memory
from sdlora.training.optim import check_optimizer

LEVELS: tuple[MemoryLevel, ...] = tuple(level for level in get_args(MemoryLevel) if level != "auto")
# What a level adds to the one before
ADDS: dict[str, dict[str, Any]] = {
    "high": {},
    "medium": {"gradient_checkpointing": True, "optimizer": "adamw8bit"},
    "low": {"base_precision": "int8"},
    "lowest": {"stream_blocks": 1.0},
}
SPARE = 1.25  # of the predicted memory has to be free, for `auto` to take a level


@dataclass(frozen=True)
class MemoryPlan:
    """Settings of a training with what its level decides; the prediction for these, None for a
    model that is not here yet; and why the level was taken."""

    level: MemoryLevel
    settings: TrainSettings
    prediction: MemoryPrediction | None
    reason: str

    def __str__(self) -> str:
        return f"{self.level}, {self.reason}: {', '.join(self.measures)}"

    @property
    def details(self) -> dict[str, str]:
        """The plan and its prediction, as facts to show when the training begins."""
        predicted = {"predicted memory": str(self.prediction)} if self.prediction else {}
        return {"memory": str(self), **predicted}

    @property
    def measures(self) -> list[str]:
        """Ways in which memory is saved, in words."""
        settings, share = self.settings, self.settings.stream_blocks
        small, eight = settings.base_precision != "full", settings.optimizer.endswith("8bit")
        measures = {
            "activations are computed twice": settings.gradient_checkpointing or share,
            f"{settings.optimizer} keeps its numbers in 8 bits": eight,
            f"the base model is held in {settings.base_precision}": small,
            f"{share:.0%} of the blocks come from main memory": share,
            "activations are kept in main memory": settings.offload,
        }  # fmt: skip
        used = [text for text, is_used in measures.items() if is_used]
        return used or ["everything on the device"]


def plan_memory(
    settings: TrainSettings, source: str, itemsize: int, device: torch.device
) -> MemoryPlan:
    """Return the plan of a training on the model in a file or folder, in numbers of `itemsize`
    bytes. ModelError: the model is damaged.

    On a processor `auto` changes no result: it goes no further than what gives the same bits.
    """
    on_gpu = device.type == "cuda"
    plans = {}
    for level in LEVELS:
        planned = with_level(settings, level, device)
        plans[level] = planned, predict_memory(planned, source, itemsize, on_gpu)
    if settings.memory != "auto":
        planned, prediction = plans[settings.memory]
        return MemoryPlan(settings.memory, planned, prediction, "as chosen")
    planned, first = plans["high"]
    if first is None:
        return MemoryPlan("high", planned, None, "for the model is not here yet to be measured")
    free = free_memory_gib(device)
    levels = LEVELS if device.type != "cpu" else LEVELS[:2]
    fitting = [level for level in levels if _fits(plans[level][1], free)]
    level = fitting[0] if fitting else levels[-1]
    need = "is needed" if level == "high" else "would be needed otherwise"
    reason = f"because {size_in_words(first.total)} or more {need} and {free:.1f} GiB are free"
    return MemoryPlan(level, *plans[level], reason)


def _fits(prediction: MemoryPrediction | None, free_gib: float) -> bool:
    return prediction is not None and prediction.total * SPARE <= free_gib * 2**30


def with_level(settings: TrainSettings, level: MemoryLevel, device: torch.device) -> TrainSettings:
    """Return settings with all that a level does on this device, but for what the user has set."""
    changes: dict[str, Any] = {}
    for step in LEVELS[: LEVELS.index(level) + 1]:
        changes |= ADDS[step]
    if settings.optimizer != "adamw" or not _has_small_adamw(device):
        changes.pop("optimizer", None)
    if settings.compile_blocks:  # compiled blocks cannot be streamed
        changes.pop("stream_blocks", None)
    chosen = settings.model_fields_set
    return settings.model_copy(update={n: v for n, v in changes.items() if n not in chosen})


def _has_small_adamw(device: torch.device) -> bool:
    """Return True where AdamW in 8 bits is installed and runs; a processor gains nothing by it."""
    if device.type != "cuda":
        return False
    try:
        check_optimizer(ADDS["medium"]["optimizer"], device)
    except SettingsError:
        return False
    return True
