"""Tables of optimizers and of learning-rate schedules. A new one is a new row."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from sdlora.errors import SettingsError, did_you_mean


@dataclass(frozen=True)
class OptimizerRow:
    """Where an optimizer is found and what it is told besides rate and weight decay."""

    module: str
    name: str
    package: str = ""  # what pip installs when it is not among our own requirements
    options: dict[str, Any] = field(default_factory=dict)


OPTIMIZERS = {
    "adamw": OptimizerRow("torch.optim", "AdamW"),
    "adamw8bit": OptimizerRow("bitsandbytes.optim", "AdamW8bit", "bitsandbytes"),
    "adafactor": OptimizerRow(
        "transformers.optimization",
        "Adafactor",
        options={"scale_parameter": False, "relative_step": False, "warmup_init": False},
    ),
    "prodigy": OptimizerRow("prodigyopt", "Prodigy", "prodigyopt"),
    "lion": OptimizerRow("lion_pytorch", "Lion", "lion-pytorch"),
}

# The share of the peak rate at `progress`, which runs from 0 to 1 once the rate has risen.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1 - progress,
}


def find_optimizer(name: str) -> Callable[..., torch.optim.Optimizer]:
    """The optimizer of that name, to be called with (groups, weight_decay=).
    SettingsError: there is none, or its package is not installed."""
    if name not in OPTIMIZERS:
        hint = did_you_mean(name, OPTIMIZERS)
        raise SettingsError(f"optimizer = {name!r}; choose one of {', '.join(OPTIMIZERS)}.{hint}")
    row = OPTIMIZERS[name]
    try:
        kind = getattr(importlib.import_module(row.module), row.name)
    except ImportError:
        raise SettingsError(
            f"optimizer = {name!r} needs the package {row.package}: install it with "
            f"`python -m pip install {row.package}`, or use adamw"
        ) from None
    return partial(kind, **row.options)


def make_optimizer(
    name: str, rates: Iterable[tuple[Sequence[nn.Parameter], float]], weight_decay: float
) -> torch.optim.Optimizer:
    """The optimizer `name` over groups of (parameters, peak rate); empty groups are left out."""
    groups = [{"params": [*some], "lr": rate, "peak": rate} for some, rate in rates if some]
    return find_optimizer(name)(groups, weight_decay=weight_decay)


def rate_share(schedule: str, step: int, steps: int, warmup: int) -> float:
    """The share of the peak rate, above 0 to 1, at `step` of 1..`steps`: a linear rise over
    `warmup` steps, then the schedule, which would reach its end one step after the last."""
    warmup = min(warmup, steps)
    if step <= warmup:
        return step / warmup
    return SCHEDULES[schedule]((step - 1 - warmup) / (steps - warmup))


def set_rates(optimizer: torch.optim.Optimizer, share: float) -> float:
    """Give every group its share of its peak rate; returns the first group's rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share
    return float(optimizer.param_groups[0]["lr"])
