"""The kinds of adapter that can learn: how each is put beside one layer, and what a file keeps.

They are peft's layers, with peft's names for their tensors; a file has LyCORIS' (arXiv:2309.14859).
The papers: LoRA arXiv:2106.09685, DoRA arXiv:2402.09353, rsLoRA arXiv:2312.03732, PiSSA
arXiv:2404.02948, LoHa arXiv:2108.06098, LoKr arXiv:2212.10650, OFT arXiv:2306.07280.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig
from peft.tuners import loha, lokr, lora
from peft.tuners.oft.layer import OFTRotationModule
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.functional import linear

from sdlora.adapters.dora import dora_scale, magnitudes
from sdlora.lora.format.layer import Adapter
from sdlora.lora.tools.svd import Spectrum
from sdlora.settings.adapter_and_loss import DoraAxis

ADAPTER = "sdlora"
START = "start"  # what PiSSA's adapter begins as, which is taken off again
MOST_WEIGHT = 4  # numbers of a weight to numbers of its input, up to which LoRA learns at once


@dataclass(frozen=True)
class AdapterSpec:
    """What is wanted of one layer's adapter."""

    rank: int  # at most what the layer can hold
    alpha: float
    dropout: float
    factor: int  # of lokr; -1: as even as can be
    dora_axis: DoraAxis  # of dora: which side of the weight has the magnitudes


@dataclass(frozen=True)
class AdapterType:
    """One kind: `build` puts it beside a linear layer or a convolution so that nothing changes yet,
    `read` is what it has learnt, as a file holds it; `factors` are what its change is a product of.
    """

    build: Callable[[nn.Module, AdapterSpec], nn.Module]
    read: Callable[[Any], Adapter]
    factors: Callable[[Any], list[Tensor]]


class _Rotation(OFTRotationModule):
    """peft's, by the exact Cayley transform and without its question to the device whether I + Q
    can be inverted: of a skew Q it always can."""

    def _cayley_batch(self, Q: Tensor, block_size: int, *_: Any) -> Tensor:
        skew = self._pytorch_skew_symmetric(Q, block_size)
        one = torch.eye(block_size, device=Q.device, dtype=Q.dtype).expand_as(skew)
        return torch.linalg.solve_ex(one + skew, one - skew, left=False).result


class RotatedLinear(nn.Module):
    """A layer whose outputs, but for the bias, are turned in blocks: OFT, arXiv:2306.07280.

    peft's own OFT turns a layer's inputs, which no program reads from a file; its rotation is put
    behind the layer here, where the paper, kohya's and LyCORIS' files have it.
    """

    def __init__(self, base_layer: nn.Module, most: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        base: Any = base_layer
        outputs = base.weight.shape[0]
        size = _block_size(outputs, most)
        pairs = size * (size - 1) // 2
        self.turn = OFTRotationModule(
            outputs // size, pairs, size, outputs, use_cayley_neumann=False
        )
        nn.init.zeros_(self.turn.weight)
        self.turn.to(base.weight.device)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's answer, turned; exactly it while nothing is."""
        base: Any = self.base_layer
        y: Tensor = base(x, *args, **kwargs)
        axis = 1 if isinstance(base, nn.Conv2d) else -1
        plain = y.movedim(axis, -1)
        if base.bias is not None:
            plain = plain - base.bias
        change = self.turn(plain.flatten(0, -2)).reshape(plain.shape) - plain
        return y + change.movedim(-1, axis)


def _block_size(outputs: int, most: int) -> int:
    """The largest divisor of `outputs` up to `most`; the smallest above 1 if there is none."""
    sizes = [size for size in range(2, outputs + 1) if outputs % size == 0]
    return max((size for size in sizes if size <= most), default=sizes[0])


def _turned_blocks(layer: RotatedLinear) -> Adapter:
    """LyCORIS turns by (I + S)(I - S)^-1 with S = blocks - blocks^T, peft by that of -S."""
    turn: Any = layer.turn
    blocks = torch.zeros(turn.r, turn.block_size, turn.block_size)
    blocks[:, turn.rows.cpu(), turn.cols.cpu()] = -_kept(turn.weight)
    return Adapter("OFT", {"oft_blocks": blocks, "alpha": torch.tensor(0.0)})  # no limit


class _FusedLoraForward:
    """A LoRA that learns on a processor: one product with W + s B A in place of three, of which two
    are so thin that they cost as much as the third. The same but for rounding.

    Only in float32, where W + s B A keeps what the first steps learn, only where the weight is not
    much larger than what goes through it, and not where something stands beside the layer.
    """

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base = self.base_layer
        weight = base.weight
        if (
            not self.training
            or {x.dtype, weight.dtype} != {torch.float32}
            or weight.device.type != "cpu"
            or weight.numel() > MOST_WEIGHT * x.numel()
            or base._forward_hooks
            or torch.is_autocast_enabled("cpu")
        ):
            return super().forward(x, *args, **kwargs)  # type: ignore[misc]
        down, up = (half.flatten(1) for half in _halves(self))
        scale = self.scaling[ADAPTER]
        changed = torch.addmm(weight.flatten(1), up, down, alpha=scale).view_as(weight)
        for norms in self.lora_magnitude_vector.values():
            changed = norms.rescaled(changed)
        if weight.dim() == 2:
            return linear(x, changed, base.bias)
        return base._conv_forward(x, changed, base.bias)


class _FusedLinearForward(_FusedLoraForward, lora.Linear): ...


class _FusedConvForward(_FusedLoraForward, lora.Conv2d): ...


def _lora(base: nn.Module, ask: AdapterSpec) -> Any:
    """With a window, the thin products are not slower; dropout is of the inputs of A alone."""
    weight: Any = base.weight
    if ask.dropout or weight.shape[2:].numel() > 1:
        return _beside(base, ask)
    kinds = (_FusedLinearForward, _FusedConvForward)
    return _beside(base, ask, kinds)


def _beside(
    base: nn.Module, ask: AdapterSpec, kinds: Any = (lora.Linear, lora.Conv2d), **more: Any
) -> Any:
    config = LoraConfig(lora_dropout=ask.dropout, init_lora_weights="gaussian", **more)
    kind = kinds[not isinstance(base, nn.Linear)]
    return kind(base, ADAPTER, config, r=ask.rank, lora_alpha=ask.alpha)


def _pissa(base: nn.Module, ask: AdapterSpec) -> Any:
    """A and B from the largest singular values (eq. 2 and 3), and the same once more, fixed and
    taken off: W - B0 A0 + B A without touching W, so that the base is still the base.

    The SVD is a randomised one (arXiv:0909.4061). A layer's rank is at most half of what it can
    hold, for the change has twice that rank.
    """
    layer = _beside(base, ask)
    weight: Any = base.weight
    wide = min(ask.rank + 16, *weight.flatten(1).shape)
    left, values, right = torch.svd_lowrank(weight.float().flatten(1), q=wide, niter=4)
    root = (values[: ask.rank] / layer.scaling[ADAPTER]).sqrt()
    a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    a.data = (root[:, None] * right[:, : ask.rank].T).reshape(a.shape)
    b.data = (left[:, : ask.rank] * root).reshape(b.shape)
    config = LoraConfig(init_lora_weights="gaussian")
    layer.update_layer(START, ask.rank, ask.alpha, config)
    for halves in (layer.lora_A, layer.lora_B):
        halves[START].weight.data = halves[ADAPTER].weight.data.clone()
    layer.scaling[START] = -layer.scaling[ADAPTER]
    layer.set_adapter([ADAPTER, START])
    layer.lora_A[START].requires_grad_(False)
    layer.lora_B[START].requires_grad_(False)
    return layer


def _dora(base: nn.Module, ask: AdapterSpec) -> Any:
    """By output as peft computes it. By input at once, where that can be: beside, it takes a second
    product with W; with dropout, which is of the inputs of A alone, there is no other way."""
    at_once = ask.dora_axis == "input" and not ask.dropout
    kinds = (_FusedLinearForward, _FusedConvForward) if at_once else (lora.Linear, lora.Conv2d)
    layer = _beside(base, ask, kinds, use_dora=True)
    layer.lora_magnitude_vector[ADAPTER] = magnitudes(base, ask.dora_axis)
    return layer


def _loha(base: nn.Module, ask: AdapterSpec) -> Any:
    kind = loha.Linear if isinstance(base, nn.Linear) else loha.Conv2d
    config = LoHaConfig(rank_dropout=ask.dropout)
    return kind(base, ADAPTER, config, r=ask.rank, alpha=ask.alpha)


def _lokr(base: nn.Module, ask: AdapterSpec) -> Any:
    """The half that begins at zero is LyCORIS', so that its users' learning rates fit."""
    kind = lokr.Linear if isinstance(base, nn.Linear) else lokr.Conv2d
    config = LoKrConfig(
        rank_dropout=ask.dropout, decompose_factor=ask.factor, init_weights="lycoris"
    )
    return kind(base, ADAPTER, config, r=ask.rank, alpha=ask.alpha)


def _halves(layer: Any, name: str = ADAPTER) -> tuple[Tensor, Tensor]:
    return layer.lora_A[name].weight, layer.lora_B[name].weight


def _kept(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone()


def _as_lora(layer: Any) -> Adapter:
    """alpha / rank in the file is the scale as it is, also where training had another rule."""
    down, up = map(_kept, _halves(layer))
    return Adapter.lora(down, up, layer.scaling[ADAPTER] * down.shape[0])


def _as_dora(layer: Any) -> Adapter:
    scale = dora_scale(layer.lora_magnitude_vector[ADAPTER])
    return Adapter("DoRA", {**_as_lora(layer).tensors, "dora_scale": scale})


def _as_difference(layer: Any) -> Adapter:
    """B A - B0 A0 of twice the rank (PiSSA, app. C), which fits the base as it is.

    As its own singular vectors: next to B A itself, half numbers would round all of it away.
    """
    (down, up), (down0, up0) = _halves(layer), _halves(layer, START)
    scale = layer.scaling[ADAPTER]
    downs = torch.cat([_kept(down), _kept(down0)]).flatten(1)
    ups = torch.cat([_kept(up), -_kept(up0)], 1).flatten(1) * scale
    down2, up2 = Spectrum.of_factors(downs, ups).cut(len(downs)).factors()
    shape = down.shape[1:]
    return Adapter.lora(
        down2.reshape(-1, *shape), up2.reshape(*up2.shape, *up.shape[2:]), float(len(down2))
    )


def _as_lycoris(kind: str, layer: Any) -> Adapter:
    tensors = {name: _kept(tensor) for name, tensor in _tensors(layer).items()}
    if {"lokr_w1", "lokr_w2"} <= tensors.keys():  # nothing has a rank that alpha could go by
        tensors["lokr_w1"] *= layer.scaling[ADAPTER]
        return Adapter(kind, tensors)
    return Adapter(kind, {**tensors, "alpha": torch.tensor(float(layer.alpha[ADAPTER]))})


def _tensors(layer: Any) -> dict[str, Tensor]:
    """By peft's names, which are LyCORIS'."""
    named = ((name, getattr(layer, name)) for name in layer.adapter_layer_names)
    return {name: its[ADAPTER] for name, its in named if ADAPTER in its}


def _two(
    build: Callable[..., Any], read: Callable[[Any], Adapter] = _as_lora, **more: Any
) -> AdapterType:
    return AdapterType(partial(build, **more), read, lambda layer: [*_halves(layer)])


KINDS: dict[str, AdapterType] = {
    "lora": _two(_lora),
    "dora": _two(_dora, _as_dora),
    "rslora": _two(_beside, use_rslora=True),
    "pissa": _two(_pissa, _as_difference),
    "loha": AdapterType(
        _loha, partial(_as_lycoris, "LoHa"), lambda layer: [*_tensors(layer).values()]
    ),
    "lokr": AdapterType(
        _lokr, partial(_as_lycoris, "LoKr"), lambda layer: [*_tensors(layer).values()]
    ),
    "oft": AdapterType(
        lambda base, ask: RotatedLinear(base, ask.rank), _turned_blocks, lambda layer: []
    ),
}
AdapterLayer = BaseTunerLayer | RotatedLinear


def highest_rank(kind: str, weight: Tensor) -> int:
    """Above this a rank adds nothing but size to a layer of this weight (out,in[,k,k])."""
    most = min(weight.shape[0], math.prod(weight.shape[1:]))
    if kind == "pissa":
        return max(most // 2, 1)
    return most if kind in ("lora", "dora", "rslora", "loha") else 1024


@torch.no_grad()
def limit_norm(kind: AdapterType, layer: Any, most: float) -> None:
    """Make a layer's change no larger than `most`, its Frobenius norm (max-norm regularisation,
    Srebro et al. 2004, as kohya-ss/sd-scripts, networks/lora.py does it); nothing is read back.

    The change is a product of n factors, so each is multiplied by the n-th root.
    """
    factors = kind.factors(layer)
    if isinstance(layer, lora.LoraLayer):
        down, up = (factor.flatten(1) for factor in factors)
        # |BA|² = <BᵀB, AAᵀ>, both only (r,r)
        norm = ((up.T @ up) * (down @ down.T)).sum().clamp(min=0).sqrt() * layer.scaling[ADAPTER]
    else:
        norm = layer.get_delta_weight(ADAPTER).norm()
    share = (most / norm).clamp(max=1.0) ** (1 / len(factors))
    torch._foreach_mul_(factors, share)
