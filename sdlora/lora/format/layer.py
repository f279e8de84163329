"""Adapter: one layer of a LoRA file, of any type, and its delta on a layer of a model in float32.

The formulas stand in `adapter_types`, a module for each type.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sdlora.lora.format.adapter_types import ADAPTER_TYPES, StoredType, dora
from sdlora.lora.format.adapter_types.stored_type import Measured, Shape
from sdlora.lora.format.errors import refusal


@dataclass(frozen=True, eq=False)
class Adapter:
    """One layer of a LoRA file: name of its adapter type, and its tensors by role as in the file.

    Alpha is there if the file has one; without it the scale is 1, as everywhere. A layer adds
    strength · delta, whatever its type.
    """

    kind: str
    tensors: Mapping[str, Tensor]

    @classmethod
    def lora(cls, down: Tensor, up: Tensor, alpha: float) -> Adapter:
        """A LoRA of down (r,in[,k,k]) and up (out,r[,1,1]), scaled by alpha / r."""
        return cls("LoRA", {"down": down, "up": up, "alpha": torch.tensor(float(alpha))})

    @property
    def type(self) -> StoredType:
        """The row of its adapter type."""
        return ADAPTER_TYPES[self.kind]

    @property
    def title(self) -> str:
        """The adapter type's name; of magnitudes per input that of such a DoRA."""
        return "DoRA by input" if dora.is_by_input(self.tensors, self.shape) else self.kind

    @cached_property
    def _measured(self) -> Measured:
        shapes = {role: tuple(tensor.shape) for role, tensor in self.tensors.items()}
        if measured := self.type.measure(shapes):
            return measured
        raise refusal("unfit_tensors", layer=self.kind, shapes=shapes)

    @property
    def shape(self) -> Shape:
        """(out,in[,k,k]) of the weight; () when the tensors leave it open.

        LoHa and LoKr can leave a convolution's window open; it is then (out, in k k).
        """
        return self._measured[0]

    @cached_property
    def rank(self) -> int:
        """r; 0 when nothing is factored."""
        return self._measured[1]

    @property
    def bias(self) -> Tensor | None:
        """The change of the module's bias, if there is one."""
        return self.tensors.get(self.type.bias)

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """The parameters of a module that it changes: "weight", "bias" or both."""
        bias = self.tensors.keys() & {self.type.bias}
        return ("weight",) * (bias != self.tensors.keys()) + ("bias",) * bool(bias)

    @property
    def needs_weight(self) -> bool:
        """True when the delta depends on the pristine weight's numbers, not on its shape only."""
        return self.type.needs_weight or "dora_scale" in self.tensors

    def fits(self, shape: Sequence[int]) -> bool:
        """Return whether it can change a module whose weight has this shape.

        A convolution of 1 x 1 and a linear layer are one.
        """
        theirs, ours = _without_window(shape), _without_window(self.shape)
        if not theirs:
            return False
        if ours and ours != theirs:
            has_window = len(theirs) > 2 and self.type.open_window
            if not (has_window and ours == (theirs[0], math.prod(theirs[1:]))):
                return False
        return self.type.fits(self.tensors, theirs)

    def delta(self, weight: Tensor, parameter: str = "weight") -> Tensor:
        """Return what strength 1 adds to a parameter: float32, of its shape, on its device.

        `weight` is the pristine parameter, of any float type; see `needs_weight`.
        """
        tensors = {role: t.to(weight.device, torch.float32) for role, t in self.tensors.items()}
        if parameter == "bias":
            return tensors[self.type.bias].reshape(weight.shape)
        return self.type.delta(tensors, weight, self._scale).reshape(weight.shape)

    @cached_property
    def _scale(self) -> float:
        """alpha / r; a LoKr of two whole halves has no r, and OFT's alpha is none of this sense."""
        alpha = self.tensors.get("alpha")
        scale = float(alpha) / self.rank if alpha is not None and self.rank else 1.0
        return scale * float(self.tensors.get("scalar", 1.0))

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """float32 down (r,in[,k,k]) and up (out,r) whose product is the delta, scale included.

        None when the delta is no such product, or a bias changes too.
        """
        if self.type.factors is None or not self.is_product:
            return None
        down, up = self.type.factors(self.tensors)
        return down.float(), up.float() * self._scale

    @cached_property
    def is_product(self) -> bool:
        """True when the delta is a low-rank product and all that it changes."""
        return self.type.factors is not None and self.parameters == ("weight",)

    @cached_property
    def product(self) -> tuple[Tensor, Tensor, float]:
        """down (r, in[ k k]) and up (out,r) in the file's own numbers, and the scale of up · down.

        LoraFileError when the delta is not one that `is_product`.
        """
        if self.type.factors is None:
            raise refusal("stacked", kind=self.kind)
        down, up = self.type.factors(self.tensors)
        return down.flatten(1), up, self._scale

    def rows(self, first: int, last: int, of: int) -> Adapter:
        """The part for some of the outputs: of `of` equal shares, those from `first` up to `last`.

        Shares beyond the end go on at the start. LoraFileError for a type that mixes outputs.
        """
        axes = {
            role: axis
            for role, axis in self.type.row_axes(self.tensors, self.shape).items()
            if role in self.tensors
        }
        sizes = [self.tensors[role].shape[axis] for role, axis in axes.items()]
        if not axes or any(size % of for size in sizes):
            raise refusal("stacked", kind=self.kind)
        cut = {
            role: _shares(self.tensors[role], axis, (first, last, of))
            for role, axis in axes.items()
        }
        return Adapter(self.kind, {**self.tensors, **cut})


def _without_window(shape: Sequence[int]) -> Shape:
    """The shape of a linear layer in place of a 1 x 1 convolution's: files write either."""
    return tuple(shape[:2]) if tuple(shape[2:]) == (1, 1) else tuple(shape)


def _shares(tensor: Tensor, axis: int, rows: tuple[int, int, int]) -> Tensor:
    first, last, of = rows
    share = tensor.shape[axis] // of
    parts = [tensor.narrow(axis, first * share, (min(last, of) - first) * share)]
    if last > of:
        parts.append(tensor.narrow(axis, 0, (last - of) * share))
    return torch.cat(parts, axis) if last > of else parts[0]
