"""Out-of-memory fallback: the next way to save memory, until there is none.

Each gives the same steps: the same pictures in the same order, gradients of the same sum.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator
from typing import Protocol, TypeVar

import torch

from sdlora.errors import DeviceError
from sdlora.events import Event, Warned
from sdlora.messages import Message, Setting
from sdlora.settings.train import TrainSettings

OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)
ResultT = TypeVar("ResultT")


class MemoryReducible(Protocol):
    """A training that can go on with settings that need less memory."""

    settings: TrainSettings

    def apply_settings(self, settings: TrainSettings) -> None:
        """Go on with these."""


def retry_with_less_memory(
    training: MemoryReducible, act: Callable[[], ResultT]
) -> Generator[Event, None, ResultT]:
    """Return the result of `act`, tried again with less memory for as long as there is a way.
    DeviceError: there is none."""
    while True:
        try:
            return act()
        except OUT_OF_MEMORY:
            pass  # outside of this block nothing holds on to what the failed step had made
        gc.collect()
        on_gpu = torch.cuda.is_available()
        if on_gpu:
            torch.cuda.empty_cache()
        settings, remedy = next_memory_saving(training.settings, on_gpu)
        training.apply_settings(settings)
        message = Message("the device ran out of memory; {remedy}", remedy=remedy)
        yield Warned(message, "pictures and order are the same")


def next_memory_saving(settings: TrainSettings, on_gpu: bool = False) -> tuple[TrainSettings, str]:
    """Return settings that need less memory, and how they do. DeviceError: there are none that give
    the same steps."""
    whole = settings.batch_size * settings.gradient_accumulation
    if not settings.gradient_checkpointing:
        return (
            settings.model_copy(update={"gradient_checkpointing": True}),
            Message(
                "{setting} is on: what a step remembers is computed twice instead",
                setting=Setting("gradient_checkpointing"),
            ),
        )
    if settings.batch_size > 1:
        smaller = max(n for n in range(1, settings.batch_size) if whole % n == 0)
        parts = {"batch_size": smaller, "gradient_accumulation": whole // smaller}
        remedy = Message(
            "{whole} pictures per step are computed {few} at a time", whole=whole, few=smaller
        )
        return settings.model_copy(update=parts), remedy
    if on_gpu and not settings.stream_blocks and not settings.compile_blocks:
        remedy = Message(
            "{setting} = 1: the base model's blocks are copied to the GPU while they are needed",
            setting=Setting("stream_blocks"),
        )
        return settings.model_copy(update={"stream_blocks": 1.0}), remedy
    if not settings.offload:
        remedy = Message(
            "{setting} is on: what a step remembers is kept in main memory",
            setting=Setting("offload"),
        )
        return settings.model_copy(update={"offload": True}), remedy
    raise DeviceError(
        "the device ran out of memory, with {checkpointing}, {offload} and one picture at a time. "
        "Begin anew with {memory} = low or lowest, a smaller {resolution} or {rank}, train fewer "
        "layers, or close what else uses it",
        checkpointing=Setting("gradient_checkpointing"), offload=Setting("offload"),
        memory=Setting("memory"), resolution=Setting("resolution"), rank=Setting("rank"),
    )  # fmt: skip
