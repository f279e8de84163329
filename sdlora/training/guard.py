"""A step of any optimizer that is applied where the numbers are sound, and nowhere else.

Whether they are is known on the device only, and asking would make every step wait for it. So both
outcomes are computed there: the optimizer moves, and where the loss or a gradient was no number,
what it moved is put back.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def guarded_step(optimizer: torch.optim.Optimizer, sound: Tensor) -> None:
    """Step `optimizer` if `sound` (a bool on the device): else parameters and moments stay as they
    are, to the bit. Counters that an optimizer keeps as plain numbers advance either way."""
    if getattr(optimizer, "_step_supports_amp_scaling", False):  # fused kernels ask for themselves
        optimizer.found_inf = (~sound).float()  # type: ignore[attr-defined]
        optimizer.step()
        return
    moved = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    before = [(p, p.clone(), _tensors(optimizer, p, copied=True)) for p in moved]
    for (
        parameter
    ) in moved:  # some keep sums of gradients as plain numbers, which nothing could mend
        parameter.grad = torch.where(sound, parameter.grad, 0.0)
    optimizer.step()
    for parameter, value, moments in before:
        parameter.copy_(torch.where(sound, parameter, value))
        for name, tensor in _tensors(optimizer, parameter).items():
            # a moment that this step made began at zero and saw a gradient of zero
            if name in moments:
                tensor.copy_(torch.where(sound, tensor, moments[name]))


def _tensors(
    optimizer: torch.optim.Optimizer, parameter: Tensor, copied: bool = False
) -> dict[str, Tensor]:
    """What the optimizer remembers of a parameter on the parameter's device."""
    said = optimizer.state.get(parameter, {}).items()
    mine = {k: v for k, v in said if isinstance(v, Tensor) and v.device == parameter.device}
    return {name: tensor.clone() for name, tensor in mine.items()} if copied else mine
