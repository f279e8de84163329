"""What to do when the device's memory is not enough: the next rung down, until there is none.

Every rung gives the same steps: the same pictures in the same order, gradients of the same sum.
"""

from __future__ import annotations

import gc

import torch

from sdlora.errors import DeviceError
from sdlora.settings import TrainSettings

OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)


def next_rung(settings: TrainSettings) -> tuple[TrainSettings, str]:
    """Settings that need less memory, and how they do. DeviceError: there are none."""
    whole = settings.batch_size * settings.gradient_accumulation
    if not settings.gradient_checkpointing:
        return (
            settings.model_copy(update={"gradient_checkpointing": True}),
            "gradient_checkpointing is on: what a step remembers is computed twice instead",
        )
    if settings.batch_size > 1:
        smaller = max(n for n in range(1, settings.batch_size) if whole % n == 0)
        parts = {"batch_size": smaller, "gradient_accumulation": whole // smaller}
        told = f"{whole} pictures per step are computed {smaller} at a time"
        return settings.model_copy(update=parts), told
    if not settings.offload:
        told = "offload is on: what a step remembers is kept in main memory"
        return settings.model_copy(update={"offload": True}), told
    raise DeviceError(
        "the device ran out of memory, with gradient_checkpointing, offload and one picture at a "
        "time. Use a smaller resolution or rank, train fewer layers, or close what else uses it"
    )


def free_memory() -> None:
    """Give back what a failed step left behind."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
