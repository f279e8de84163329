"""Skipping of non-finite steps: any optimizer's step is applied where its numbers are finite.

Whether they are is known on the device only, and to ask at once would make every step wait for it.
So both outcomes are computed there: the optimizer moves, and where the loss or a gradient was no
number, what it moved is put back. What it counts in plain numbers is put back later, before anybody
looks at it: by then the device has long answered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class _Counted:
    """State of an optimizer beside tensors on the device: of each parameter, the names of all that
    it has and the values that are no such tensors; of each group."""

    names: dict[Tensor, tuple[str, ...]]
    plain: dict[Tensor, dict[str, Any]]
    groups: list[dict[str, Any]]


class NonFiniteSkip:
    """Steps an optimizer, or leaves it as it was."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self._last: tuple[Callable[[], bool], _Counted] | None = None

    @torch.no_grad()
    def step(self, sound: Tensor) -> None:
        """Take a step if `sound` (a bool on the device); else all stays as it is, to the bit, once
        it is settled."""
        self.settle()
        optimizer = self.optimizer
        if getattr(optimizer, "_step_supports_amp_scaling", False):  # fused kernels ask themselves
            optimizer.found_inf = (~sound).float()  # type: ignore[attr-defined]
            optimizer.step()
            return
        of_all = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        moved = [parameter for parameter in of_all if parameter.grad is not None]
        before = [(p, p.clone(), _moments(optimizer, p, copied=True)) for p in moved]
        counted = _counted(optimizer)
        for parameter in moved:  # where it is not a number, some would end with an error
            parameter.grad = torch.where(sound, parameter.grad, 0.0)
        optimizer.step()
        for parameter, value, moments in before:
            parameter.copy_(torch.where(sound, parameter, value))
            now = _moments(optimizer, parameter)
            for name, moment in moments.items():
                now[name].copy_(torch.where(sound, now[name], moment))
        self._last = _answer(sound), counted

    def settle(self) -> None:
        """Find out whether the last step was finite; to be called before the optimizer is read."""
        last, self._last = self._last, None
        if last is None or last[0]():
            return
        counted, state = last[1], self.optimizer.state
        for parameter in [p for p in state if p not in counted.names]:
            del state[parameter]  # what the step made is made again by the next
        for parameter, names in counted.names.items():
            values = {name: value for name, value in state[parameter].items() if name in names}
            state[parameter] = values | counted.plain[parameter]
        for group, before in zip(self.optimizer.param_groups, counted.groups, strict=True):
            group.clear()
            group.update(before)

    def forget(self) -> None:
        """The optimizer remembers something else now."""
        self._last = None


def _moments(
    optimizer: torch.optim.Optimizer, parameter: Tensor, copied: bool = False
) -> dict[str, Tensor]:
    """Return the optimizer's state of a parameter on the parameter's device."""
    state = optimizer.state.get(parameter, {}).items()
    mine = {k: v for k, v in state if isinstance(v, Tensor) and v.device == parameter.device}
    return {name: tensor.clone() for name, tensor in mine.items()} if copied else mine


def _counted(optimizer: torch.optim.Optimizer) -> _Counted:
    names, plain = {}, {}
    for parameter, state in optimizer.state.items():
        names[parameter] = tuple(state)
        plain[parameter] = {
            name: value.clone() if isinstance(value, Tensor) else value
            for name, value in state.items()
            if not (isinstance(value, Tensor) and value.device == parameter.device)
        }
    return _Counted(names, plain, [dict(group) for group in optimizer.param_groups])


def _answer(flag: Tensor) -> Callable[[], bool]:
    """Ask for a flag on the device. The answer waits for what was computed before it was asked, not
    for what was since."""
    if flag.device.type != "cuda":
        return lambda: bool(flag)
    here = torch.empty((), dtype=torch.bool, pin_memory=True)
    here.copy_(flag, non_blocking=True)
    asked = torch.cuda.Event()  # type: ignore[no-untyped-call]
    asked.record()

    def answer() -> bool:
        asked.synchronize()
        return bool(here)

    return answer
