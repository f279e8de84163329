"""What one layer of a LoRA file does to the layer of a model: its delta, of any kind, in float32.

The formulas are those of LyCORIS 4.1 (arXiv:2309.14859) and, for what it shares with it, peft.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sdlora.lora.format.adapter_types import KIND, Shape, Told, glora_order
from sdlora.lora.format.errors import refusal

Tensors = Mapping[str, Tensor]  # role -> tensor
_BIAS = ("diff_b", "b_norm")


@dataclass(frozen=True, eq=False)
class Adapter:
    """One layer of a LoRA file: its kind, and its tensors by role, as the file has them.

    Alpha is there if the file says it; without it the scale is 1, as everywhere. What a layer adds
    is strength · delta, whatever its kind.
    """

    kind: str
    tensors: Tensors

    @classmethod
    def lora(cls, down: Tensor, up: Tensor, alpha: float) -> Adapter:
        """A LoRA of down (r,in[,k,k]) and up (out,r[,1,1]), scaled by alpha / r."""
        return cls("LoRA", {"down": down, "up": up, "alpha": torch.tensor(float(alpha))})

    @cached_property
    def _told(self) -> Told:
        shapes = {role: tuple(tensor.shape) for role, tensor in self.tensors.items()}
        if told := KIND[self.kind].measure(shapes):
            return told
        raise refusal("unfit_tensors", layer=self.kind, shapes=shapes)

    @property
    def shape(self) -> Shape:
        """(out,in[,k,k]) of the weight; () when the tensors do not tell it.

        LoHa and LoKr can leave a convolution's window open; it is then (out, in k k).
        """
        return self._told[0]

    @cached_property
    def rank(self) -> int:
        """r; 0 when nothing is factored."""
        return self._told[1]

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """What it changes of its module: the weight, the bias or both."""
        bias = self.tensors.keys() & set(_BIAS)
        return ("weight",) * (bias != self.tensors.keys()) + ("bias",) * bool(bias)

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether it can change a module whose weight has this shape; 1 x 1 or linear is one."""
        theirs, ours = _plain(shape), _plain(self.shape)
        if not ours:
            return bool(theirs) and _FITS[self.kind](self.tensors, theirs)
        window = len(theirs) > 2 and KIND[self.kind].flat
        flat = window and ours == (theirs[0], math.prod(theirs[1:]))
        return (theirs == ours or flat) and self._splits(theirs)

    def _splits(self, theirs: Shape) -> bool:
        """Whether the inputs that a flat shape leaves open come out right."""
        inner = [t.shape[1] for r, t in self.tensors.items() if r in ("lokr_w1", "lokr_w1_b")]
        scale = self.tensors.get("dora_scale")
        if scale is not None and tuple(scale.shape[:2]) not in ((theirs[0], 1), (1, theirs[1])):
            return False
        return not any(theirs[1] % size for size in inner)

    def delta(self, weight: Tensor, parameter: str = "weight") -> Tensor:
        """What strength 1 adds to a parameter: float32, of its shape, on its device.

        `weight` is the pristine parameter, of any float type. DoRA, GLoRA, IA3, OFT and BOFT build
        on its numbers, the others ask for its shape only.
        """
        of = {role: t.to(weight.device, torch.float32) for role, t in self.tensors.items()}
        if parameter == "bias":
            return next(of[role] for role in _BIAS if role in of).reshape(weight.shape)
        delta = _DELTAS[self.kind](of, weight, self._scale).reshape(weight.shape)
        if of.keys() & {"dora_scale", "magnitude"}:
            return _decomposed(of, weight.float(), delta)
        return delta

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
        if not self.is_product:
            return None
        down, up, scale = self.product
        inner = (self.tensors["mid"] if "mid" in self.tensors else self.tensors["down"]).shape[2:]
        return down.float().unflatten(1, (-1, *inner)), up.float() * scale

    @cached_property
    def is_product(self) -> bool:
        """Whether the delta is a low-rank product and all that it does."""
        return self.kind == "LoRA" and self.parameters == ("weight",)

    @cached_property
    def product(self) -> tuple[Tensor, Tensor, float]:
        """down (r, in[ k k]) and up (out,r) in the file's own numbers, and the scale of up · down;
        of one that `is_product`."""
        down, up, mid = self.tensors["down"], self.tensors["up"], self.tensors.get("mid")
        whole = down if mid is None else _cored(down.float(), mid.float())
        return whole.flatten(1), up.flatten(1), self._scale

    def rows(self, first: int, last: int, of: int) -> Adapter:
        """The part for some of the outputs: of `of` equal shares, those from `first` up to `last`.

        Shares beyond the end go on at the start. LoraFileError for a kind that mixes outputs.
        """
        axes = {role: axis for role, axis in self._row_axes().items() if role in self.tensors}
        sizes = [self.tensors[role].shape[axis] for role, axis in axes.items()]
        if not axes or any(size % of for size in sizes):
            raise refusal("stacked", kind=self.kind)
        cut = {
            role: _shares(self.tensors[role], axis, first, last, of) for role, axis in axes.items()
        }
        return Adapter(self.kind, {**self.tensors, **cut})

    def _row_axes(self) -> dict[str, int]:
        """Role -> axis, of the tensors that alone decide an output's row; {} when none can be."""
        if self.kind not in ("LoRA", "DoRA", "LoHa", "LoKr", "GLoRA", "full"):
            return {}
        scale = self.tensors.get("dora_scale")
        if scale is not None and scale.shape[0] != self.shape[0]:
            return {}  # it asks for the norm of whole columns
        tucker = int("hada_t1" in self.tensors)
        magnitude = int("magnitude" in self.tensors and self.tensors["magnitude"].shape[0] == 1)
        shapes = {role: tuple(tensor.shape) for role, tensor in self.tensors.items()}
        output = glora_order(shapes)[2] if self.kind == "GLoRA" else "up"
        return {
            **dict.fromkeys(("lokr_w1", "lokr_w1_a", "diff", "diff_b", "dora_scale", output), 0),
            **dict.fromkeys(("hada_w1_a", "hada_w2_a"), tucker),
            "magnitude": magnitude,
        }


def _plain(shape: Sequence[int]) -> Shape:
    """Without the window of a 1 x 1 convolution: files write it and a linear layer either way."""
    return tuple(shape[:2]) if tuple(shape[2:]) == (1, 1) else tuple(shape)


def _shares(tensor: Tensor, axis: int, first: int, last: int, of: int) -> Tensor:
    share = tensor.shape[axis] // of
    parts = [tensor.narrow(axis, first * share, (min(last, of) - first) * share)]
    if last > of:
        parts.append(tensor.narrow(axis, 0, (last - of) * share))
    return torch.cat(parts, axis) if last > of else parts[0]


def _beside(vector: Tensor, weight: Tensor, axis: int) -> Tensor:
    """`vector` along an axis of `weight`, to be multiplied with it."""
    return vector.reshape([-1 if i == axis else 1 for i in range(weight.dim())])


def _cored(down: Tensor, core: Tensor | None) -> Tensor:
    """The core (p,q,k,k) of a Tucker decomposition times its inner side (q,in[,1,1])."""
    return down if core is None else torch.einsum("pq...,qi->pi...", core, down.flatten(1))


def _lora(of: Tensors, weight: Tensor, scale: float) -> Tensor:
    return (of["up"].flatten(1) * scale) @ _cored(of["down"], of.get("mid")).flatten(1)


def _side(of: Tensors, name: str, core: str) -> Tensor:
    """A side of LoHa or LoKr: whole, a · b, or aᵀ · core · b."""
    if name in of:
        return of[name]
    a, b = of[f"{name}_a"], of[f"{name}_b"]
    if core in of:
        return torch.einsum("po,pi...->oi...", a, _cored(b, of[core]))
    return a @ b.flatten(1)


def _loha(of: Tensors, weight: Tensor, scale: float) -> Tensor:
    return _side(of, "hada_w1", "hada_t1") * _side(of, "hada_w2", "hada_t2") * scale


def _lokr(of: Tensors, weight: Tensor, scale: float) -> Tensor:
    small, large = _side(of, "lokr_w1", "") * scale, _side(of, "lokr_w2", "lokr_t2")
    window = weight.shape[2:]
    large = large.reshape(large.shape[0], weight.shape[1] // small.shape[1], *window)
    return torch.kron(small.reshape(*small.shape, *(1 for _ in window)), large)


def _glora(of: Tensors, weight: Tensor, scale: float) -> Tensor:
    order = glora_order({role: tuple(tensor.shape) for role, tensor in of.items()})
    a1, a2, b1, b2 = (of[role] for role in order)
    added = b1.flatten(1) @ _cored(b2, of.get("bm")).flatten(1)
    by_input = weight.float().movedim(1, -1) @ a1.flatten(1) @ a2.flatten(1)
    return (by_input.movedim(-1, 1) + added.reshape(weight.shape)) * scale


def _ia3(of: Tensors, weight: Tensor, scale: float) -> Tensor:
    return weight.float() * _beside(of["weight"], weight, int(bool(of["on_input"])))


def _rotations(of: Tensors, outputs: int) -> Tensor:
    """Cayley transform (I + Q)(I - Q)^-1 of the skew part of `oft_blocks`, its norm limited."""
    skew = of["oft_blocks"] - of["oft_blocks"].mT
    if (limit := float(of.get("alpha", 0.0)) * outputs) > 0:
        skew = skew * (limit / (skew.norm() + 1e-8)).clamp(max=1.0)
    one = torch.eye(skew.shape[-1], device=skew.device)
    # I - Q always has an inverse, but not in float32 when Q is huge: that overflows, as it were
    turn, failed = torch.linalg.solve_ex(one - skew, one + skew, left=False)
    return turn.masked_fill((failed != 0)[..., None, None], torch.nan)


def _oft(of: Tensors, weight: Tensor, scale: float) -> Tensor:
    turn = _rotations(of, weight.shape[0])
    before = weight.float()
    blocks = before.reshape(*turn.shape[:2], -1)
    return _rescaled(of, (turn.mT @ blocks).reshape(weight.shape)) - before


def _boft(of: Tensors, weight: Tensor, scale: float) -> Tensor:
    turn = _rotations(of, weight.shape[0])
    before = weight.float()
    after = before.flatten(1)
    for stage, blocks in enumerate(turn):
        half = blocks.shape[-1] // 2 * 2**stage
        paired = after.unflatten(0, (-1, 2, half)).transpose(1, 2)  # rows `half` apart, together
        turned = blocks @ paired.reshape(*blocks.shape[:2], -1)
        after = turned.reshape(paired.shape).transpose(1, 2).reshape(after.shape)
    return _rescaled(of, after.reshape(weight.shape)) - before


def _rescaled(of: Tensors, weight: Tensor) -> Tensor:
    return weight * _beside(of["rescale"], weight, 0) if "rescale" in of else weight


def _decomposed(of: Tensors, weight: Tensor, delta: Tensor) -> Tensor:
    """DoRA, arXiv:2402.09353, eq. 5: the changed weight, each side's norm set to what was learnt.

    The norm is that of the changed weight, as in LyCORIS and peft, per output or per input.
    """
    merged = weight + delta
    side = of.get("dora_scale")
    axis = 0 if side is None or tuple(side.shape[:2]) == (weight.shape[0], 1) else 1
    size = _beside(of["magnitude"] if side is None else side, weight, axis)
    others = [i for i in range(weight.dim()) if i != axis]
    norm = torch.linalg.vector_norm(merged, dim=others, keepdim=True)
    return merged * (size / (norm + torch.finfo(norm.dtype).eps)) - weight


_DELTAS: dict[str, Callable[[Tensors, Tensor, float], Tensor]] = {
    "LoRA": _lora,
    "DoRA": _lora,
    "LoHa": _loha,
    "LoKr": _lokr,
    "GLoRA": _glora,
    "IA3": _ia3,
    "OFT": _oft,
    "BOFT": _boft,
    "full": lambda of, weight, scale: of["diff"],
    "norm": lambda of, weight, scale: of["w_norm"],
}


def _fits_ia3(of: Tensors, shape: Shape) -> bool:
    axis = int(bool(of["on_input"]))
    return len(shape) > axis and shape[axis] == of["weight"].numel()


def _fits_blocks(of: Tensors, shape: Shape) -> bool:
    count, size = of["oft_blocks"].shape[-3:-1]
    return len(shape) > 1 and shape[0] == count * size


# of the kinds whose tensors do not tell the shape of the weight
_FITS: dict[str, Callable[[Tensors, Shape], bool]] = {
    "IA3": _fits_ia3,
    "OFT": _fits_blocks,
    "BOFT": _fits_blocks,
    "full": lambda of, shape: shape[0] == of["diff_b"].numel(),
}
