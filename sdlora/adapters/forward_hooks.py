"""Unmerged LoRAs as forward hooks, for what merging cannot do: one more product per layer call.

y = layer(x) + ((x A^T) * w) B^T, where A and B are the factors of all adapters of the layer, one
below and beside the other, and w has a weight per row of the batch and adapter. So a quantised
base stays as it is, and weights that change over the steps or differ between the images of a batch
cost a small tensor and nothing else. Types without factors run as their whole change: every layer
here is linear in its parameters, so f(x; W0 + sum of w D) = f(x; W0) + sum of w f(x; D).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from sdlora.adapters.matching import ParameterPath, weight_shape
from sdlora.lora.format.errors import refusal
from sdlora.lora.format.layer import Adapter
from sdlora.models.base import ModelFamily
from sdlora.models.frozen_weights import FrozenLinear

# The adapters that change a parameter, each with its column in the table of weights
Stack = tuple[tuple[Adapter, int], ...]

# The computation of a layer with another weight and no bias
OPERATIONS: dict[type, Callable[[Any, Tensor, Tensor], Tensor]] = {
    nn.Linear: lambda _, x, weight: functional.linear(x, weight),
    nn.Conv2d: lambda layer, x, weight: layer._conv_forward(x, weight, None),
    nn.GroupNorm: lambda layer, x, weight: functional.group_norm(
        x, layer.num_groups, weight, None, layer.eps
    ),
    nn.LayerNorm: lambda layer, x, weight: functional.layer_norm(
        x, layer.normalized_shape, weight, None, layer.eps
    ),
}
_CHANNELS_FIRST = nn.Conv2d | nn.GroupNorm


@dataclass(frozen=True)
class _LayerHook:
    """The changes of one layer as a forward hook computes them; `columns`: the adapter of each row.

    The joined factors, if any: down (R,in[,k,k]), up (out,R[,1,1]); changes of the weight that have
    none; changes of the bias.
    """

    layer: Any
    factors: tuple[Tensor, Tensor, Tensor] | None
    whole: list[tuple[Tensor, int]]
    biases: list[tuple[Tensor, int]]

    def answers(self, x: Tensor, weights: Tensor) -> Iterator[Tensor]:
        """Yield the terms to add to the layer's answer to `x` (B,...); `weights` (B,adapters)."""
        operation = next(run for kind, run in OPERATIONS.items() if isinstance(self.layer, kind))
        if self.factors:
            down, up, columns = self.factors
            inner = operation(self.layer, x, down.to(x.dtype))
            inner = inner * self._spread(weights[:, columns], inner)
            last = functional.conv2d if up.dim() == 4 else functional.linear
            yield last(inner, up.to(x.dtype))
        for change, column in self.whole:
            answer = operation(self.layer, x, change.to(x.dtype))
            yield answer * self._spread(weights[:, [column]], answer)
        for change, column in self.biases:
            yield self._spread(weights[:, [column]] * change, x)

    def _spread(self, rows: Tensor, like: Tensor) -> Tensor:
        """(B,R) as (B,1,...,R), or as (B,R,1,1) where channels come first; as `like` otherwise."""
        ones = (1,) * (like.dim() - 2)
        channels_first = isinstance(self.layer, _CHANNELS_FIRST)
        shape = (*rows.shape, *ones) if channels_first else (len(rows), *ones, rows.shape[1])
        return rows.to(like.dtype).view(shape)


@torch.no_grad()
def dequantized_weight(family: ModelFamily, place: ParameterPath) -> Tensor:
    """Return the weight that a quantised linear layer or a streamed layer computes with: of another
    library's, its answer to unit vectors."""
    part, path, _ = place
    layer = family.adaptable_layers[part][path]
    if isinstance(layer, FrozenLinear) or family.is_streamed(part, path):
        family.fetch_weight(part, path)
        weight: Tensor = layer.weight
        return weight.detach()
    if not isinstance(layer, nn.Linear):
        raise refusal("quantised", layer=path)
    unit = torch.eye(layer.in_features, device=family.device, dtype=family.dtype)
    # `forward`, not the call: hooks on it are no part of it
    return (layer.forward(unit) - layer.forward(torch.zeros_like(unit[:1]))).T


class UnmergedLoras:
    """Adapters that run as forward hooks on an open family, and their present weights."""

    def __init__(self, family: ModelFamily) -> None:
        self.family = family
        self._current: dict[ParameterPath, Stack] = {}
        self._hooks: list[RemovableHandle] = []
        self._denoiser = self._text_encoders = torch.ones(1, 0)

    def set_adapters(
        self, stacks: Mapping[ParameterPath, Stack], pristine: Callable[[ParameterPath], Tensor]
    ) -> None:
        """Make exactly these adapters run, at the weights of `set_weights`.

        `pristine` gives the parameter that changes build on where they are no plain product.
        """
        if dict(stacks) == self._current:
            return
        self.clear()
        self._current = dict(stacks)
        for part, path in dict.fromkeys(place[:2] for place in stacks):
            hook = self._build_hook(part, path, pristine)
            self._hooks.append(hook.layer.register_forward_hook(self._forward_hook(part, hook)))

    def set_weights(self, denoiser: Tensor, text_encoders: Tensor) -> None:
        """(rows,adapters) each: a row per image of a batch, or one for all; nothing is computed.

        Where a batch holds its images more than once, as with guidance, so do the rows.
        """
        device = self.family.device
        self._denoiser, self._text_encoders = denoiser.to(device), text_encoders.to(device)

    def clear(self) -> None:
        """Remove all hooks; the layers are what they were."""
        while self._hooks:
            self._hooks[-1].remove()
            self._hooks.pop()
        self._current = {}

    @torch.no_grad()
    def _build_hook(
        self, part: str, path: str, pristine: Callable[[ParameterPath], Tensor]
    ) -> _LayerHook:
        products: list[tuple[Tensor, Tensor, int]] = []
        changes: dict[str, list[tuple[Tensor, int]]] = {"weight": [], "bias": []}
        for parameter, rows in changes.items():
            place = (part, path, parameter)
            for adapter, column in self._current.get(place, ()):
                factors = adapter.factors() if parameter == "weight" else None
                if factors:
                    products.append((*factors, column))
                else:
                    change = adapter.delta(pristine(place), parameter)
                    rows.append((change.to(self.family.device, self.family.dtype), column))
        layer = self.family.adaptable_layers[part][path]
        joined = self._join(layer, products) if products else None
        return _LayerHook(layer, joined, changes["weight"], changes["bias"])

    def _join(
        self, layer: Any, products: list[tuple[Tensor, Tensor, int]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        inner = weight_shape(layer)[1:]
        down = torch.cat([down.flatten(1) for down, _, _ in products]).view(-1, *inner)
        up = torch.cat([up.flatten(1) for _, up, _ in products], 1)
        columns = torch.tensor([column for down, _, column in products for _ in down])
        device, dtype = self.family.device, self.family.dtype
        up = up.view(*up.shape, *(1 for _ in inner[1:]))
        return down.to(device, dtype), up.to(device, dtype), columns.to(device)

    def _forward_hook(self, part: str, hook: _LayerHook) -> Callable[..., Tensor]:
        def add(_layer: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
            (x, *_) = arguments
            rows = self._denoiser if part == "denoiser" else self._text_encoders
            times, rest = divmod(len(x), len(rows))
            if rest:
                raise ValueError(
                    f"a batch of {len(x)} does not divide into {len(rows)} rows of weights"
                )
            for answer in hook.answers(x, rows.repeat(times, 1)):
                output = output + answer.to(output.dtype)
            return output

        return add
