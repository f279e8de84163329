"""An Adam that remembers in 8 bits, as bitsandbytes lays its memory out: codes of a byte each, the
largest value of every block, and a table from code to value that all parameters share."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

BLOCK = 256


class EightBits(torch.optim.Optimizer):
    """Layers of less than 4096 numbers are remembered in 32 bits, there as here."""

    def __init__(self, groups: Iterable[Any], lr: float = 1e-3, weight_decay: float = 0.0) -> None:
        super().__init__(groups, {"lr": lr, "betas": (0.9, 0.999), "weight_decay": weight_decay})
        self.table = torch.linspace(-1, 1, 256).pow(3)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)

    def _move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter] or self._begun(parameter)
        state["step"] += 1
        moments = []
        for number, power in (("1", 1), ("2", 2)):
            beta = group["betas"][power - 1]
            moment = beta * self._read(state, number) + (1 - beta) * parameter.grad**power
            self._write(state, number, moment)
            moments.append(moment / (1 - beta ** state["step"]))
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(group["lr"] * moments[0] / (moments[1].sqrt() + 1e-8))

    def _begun(self, parameter: Tensor) -> dict[str, Any]:
        state = self.state[parameter]
        state["step"] = 0
        large = parameter.numel() >= 4096
        for number in ("1", "2"):
            kind = torch.uint8 if large else torch.float32
            state[f"state{number}"] = torch.zeros_like(parameter, dtype=kind)
            if large:
                state[f"qmap{number}"] = self.table
                state[f"absmax{number}"] = torch.zeros(-(-parameter.numel() // BLOCK))
        return state

    def _read(self, state: dict[str, Any], number: str) -> Tensor:
        codes = state[f"state{number}"]
        if codes.dtype == torch.float32:
            return codes
        most = state[f"absmax{number}"].repeat_interleave(BLOCK)[: codes.numel()]
        return state[f"qmap{number}"][codes.long()] * most.view(codes.shape)

    def _write(self, state: dict[str, Any], number: str, value: Tensor) -> None:
        codes = state[f"state{number}"]
        if codes.dtype == torch.float32:
            codes.copy_(value)
            return
        blocks = torch.nn.functional.pad(value.flatten(), (0, -value.numel() % BLOCK))
        most = blocks.view(-1, BLOCK).abs().amax(1)
        state[f"absmax{number}"].copy_(most)
        shares = blocks.view(-1, BLOCK) / most.clamp(min=1e-30)[:, None]
        near = torch.searchsorted(state[f"qmap{number}"], shares.contiguous()).clamp(max=255)
        codes.copy_(near.flatten()[: codes.numel()].view(codes.shape))
