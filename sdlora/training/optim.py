"""Tables of optimizers and of learning-rate schedules. A new one is a new row."""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from sdlora.errors import SettingsError, did_you_mean
from sdlora.messages import Message, Setting
from sdlora.settings.train import TrainSettings


@dataclass(frozen=True)
class OptimizerRow:
    """An optimizer: its module and class, and its options besides rate and weight decay."""

    module: str
    name: str
    package: str = ""  # what pip installs when it is not among our own requirements
    options: dict[str, Any] = field(default_factory=dict)
    finds_rate: bool = False  # learning_rate is not used: it multiplies a rate found by itself
    averages: bool = False  # no schedule is used: it averages its steps in place of one
    remembers: float = 2.0  # numbers of four bytes for each that learns, at most


OPTIMIZERS = {
    # fused: it can be told on the device that a step is not to be applied
    "adamw": OptimizerRow("torch.optim", "AdamW", options={"fused": True}),
    # Dozat 2016, "Incorporating Nesterov momentum into Adam", with AdamW's decay
    "nadamw": OptimizerRow("torch.optim", "NAdam", options={"decoupled_weight_decay": True}),
    # arXiv:2110.02861; a matrix of less than 4096 numbers is remembered in 32 bits
    "adamw8bit": OptimizerRow("bitsandbytes.optim", "AdamW8bit", "bitsandbytes"),
    "adafactor": OptimizerRow(
        "transformers.optimization",
        "Adafactor",
        options={"scale_parameter": False, "relative_step": False, "warmup_init": False},
        remembers=1.0,
    ),
    # arXiv:2306.06101; bias correction and safeguard as its authors advise for diffusion models
    "prodigy": OptimizerRow(
        "prodigyopt", "Prodigy", "prodigyopt",
        {"use_bias_correction": True, "safeguard_warmup": True}, finds_rate=True, remembers=4.0,
    ),
    # arXiv:2405.15682
    "schedule_free": OptimizerRow(
        "schedulefree", "AdamWScheduleFree", "schedulefree", averages=True
    ),
    "schedule_free_radam": OptimizerRow(
        "schedulefree", "RAdamScheduleFree", "schedulefree", averages=True
    ),
    # arXiv:2302.06675
    "lion": OptimizerRow("lion_pytorch", "Lion", "lion-pytorch", remembers=1.0),
    # arXiv:2307.02047, arXiv:2409.03137
    "came": OptimizerRow("pytorch_optimizer", "CAME", "pytorch-optimizer", remembers=3.0),
    "ademamix": OptimizerRow("pytorch_optimizer", "AdEMAMix", "pytorch-optimizer", remembers=3.0),
}  # fmt: skip

# The share of the peak rate at progress `p`, which runs from 0 to 1 once the rate has risen.
SCHEDULES: dict[str, Callable[[float, TrainSettings], float]] = {
    "constant": lambda p, settings: 1.0,
    "linear": lambda p, settings: 1 - p,
    "cosine": lambda p, settings: _cosine(p),  # arXiv:1608.03983, eq. 5
    "cosine_restarts": lambda p, settings: _cosine(p * settings.schedule_cycles % 1),
    "polynomial": lambda p, settings: (1 - p) ** settings.schedule_power,
    "rex": lambda p, settings: (1 - p) / (0.5 + 0.5 * (1 - p)),  # arXiv:2107.04197, eq. 2
}


def _cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def find_optimizer(name: str) -> Callable[..., torch.optim.Optimizer]:
    """Return the optimizer of that name, to be called with (groups, weight_decay=).
    SettingsError: there is none, or its package is not installed."""
    if name not in OPTIMIZERS:
        raise _about_optimizer(
            "{setting} = {name!r}; choose one of {known}.{near}", name=name,
            known=list(OPTIMIZERS), near=did_you_mean(name, OPTIMIZERS),
        )  # fmt: skip
    row = OPTIMIZERS[name]
    try:
        kind = getattr(importlib.import_module(row.module), row.name)
    except ImportError:
        raise _about_optimizer(
            "{setting} = {name!r} needs the package {package}: install it with `python -m pip "
            "install {package}`, or use adamw", name=name, package=row.package,
        ) from None  # fmt: skip
    return partial(kind, **row.options)


def _about_optimizer(template: str, **values: Any) -> SettingsError:
    message = Message(template, setting=Setting("optimizer"), **values)
    return SettingsError(message, fields={"optimizer": message})


def check_optimizer(name: str, device: torch.device) -> None:
    """Take a step with an optimizer, of nothing that matters. SettingsError: there is none of that
    name, its package is not installed, or it does not run on this device."""
    probe = nn.Parameter(torch.zeros(64, 64, device=device))
    probe.grad = torch.ones_like(probe)
    find_optimizer(name)
    try:
        make_optimizer(name, [([probe], 1e-4)], weight_decay=0.0).step()
    except (RuntimeError, OSError) as error:
        raise _about_optimizer(
            "{setting} = {name!r} does not run on this {device}, use adamw: {why}",
            name=name, device=device.type, why=error,
        ) from None  # fmt: skip


def make_optimizer(
    name: str, rates: Iterable[tuple[Sequence[nn.Parameter], float]], weight_decay: float
) -> torch.optim.Optimizer:
    """Return the optimizer `name` over groups of (parameters, peak rate), without empty groups."""
    make, row = find_optimizer(name), OPTIMIZERS[name]
    groups = [
        {"params": [*parameters], "lr": peak, "peak": peak}
        for parameters, rate in rates
        if parameters
        for peak in [1.0 if row.finds_rate else rate]
    ]
    with contextlib.redirect_stdout(None):  # one of them prints
        optimizer = make(groups, weight_decay=weight_decay)
    if row.averages:
        optimizer.train()  # type: ignore[attr-defined]
    return optimizer


def unused(settings: TrainSettings) -> dict[str, Message]:
    """Return the settings that the chosen optimizer does not use, with the reasons."""
    row, reasons = OPTIMIZERS[settings.optimizer], dict[str, Message]()
    if row.finds_rate:
        template = "{optimizer} finds its own; yours is not used"
        reasons["learning_rate"] = Message(template, optimizer=settings.optimizer)
    if row.averages:
        template = "none after the rise: {optimizer} averages its steps instead"
        reasons["schedule"] = Message(template, optimizer=settings.optimizer)
    return reasons


def lr_multiplier(settings: TrainSettings, step: int) -> float:
    """Return the share of the peak rate, above 0 to 1, at `step` of 1..`steps`: a linear rise over
    the warm-up, then the schedule, which would reach its end one step after the last."""
    warmup = settings.warmup
    if step <= warmup:
        return step / warmup
    name = "constant" if OPTIMIZERS[settings.optimizer].averages else settings.schedule
    return SCHEDULES[name]((step - 1 - warmup) / (settings.steps - warmup), settings)


def set_rates(optimizer: torch.optim.Optimizer, share: float) -> float:
    """Give every group its share of its peak rate; returns the first group's rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share
    return float(optimizer.param_groups[0]["lr"])
