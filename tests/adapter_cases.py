"""Adapters of every kind as their trainers write them, and what LyCORIS says that they do."""

from collections.abc import Callable
from typing import Any

import torch
from lycoris.functional import boft, diag_oft, locon, loha, lokr
from lycoris.functional.general import weight_decompose
from lycoris.modules.full import FullModule
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.ia3 import IA3Module
from lycoris.modules.norms import NormModule
from torch import Tensor, nn

LAYER = "lora_unet_mid_block_attentions_0_proj_in"
OUT, IN, RANK, ALPHA = 12, 8, 3, 1.5
SHAPES: dict[str, tuple[int, ...]] = {
    "linear": (OUT, IN), "conv 1x1": (OUT, IN, 1, 1), "conv 3x3": (OUT, IN, 3, 3), "norm": (OUT,),
}  # fmt: skip
LAYERS = ("linear", "conv 1x1", "conv 3x3")
Tensors = dict[str, Tensor]
Make = Callable[[tuple[int, ...], Callable[..., Tensor]], Tensors]
Oracle = Callable[[Tensors, Tensor], Tensor]


def random(seed: int = 0) -> Callable[..., Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=rng)


def module_of(weight: Tensor) -> Any:
    """The stock layer with this weight, and a bias of zeros."""
    if weight.dim() == 1:
        module: nn.Module = nn.LayerNorm(len(weight))
    elif weight.dim() == 2:
        module = nn.Linear(weight.shape[1], weight.shape[0])
    else:
        module = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2])  # type: ignore[arg-type]
    module.weight.data.copy_(weight)  # type: ignore[operator,union-attr]
    module.bias.data.zero_()  # type: ignore[operator,union-attr]
    return module


def error(ours: Tensor, theirs: Tensor) -> float:
    """Relative, in float64."""
    ours, theirs = ours.detach().double(), theirs.detach().double()
    return float((ours - theirs).norm() / theirs.norm())


# What a file holds, as its trainer writes it


def make_lora(shape: tuple[int, ...], rand: Callable[..., Tensor]) -> Tensors:
    ones = (1,) * len(shape[2:])
    alpha = torch.tensor(ALPHA)
    return {"down": rand(RANK, *shape[1:]), "up": rand(shape[0], RANK, *ones), "alpha": alpha}


def make_tucker_lora(shape: tuple[int, ...], rand: Callable[..., Tensor]) -> Tensors:
    sides = make_lora((*shape[:2], 1, 1), rand)
    return {**sides, "mid": rand(RANK, RANK, *shape[2:])}


def by_output(make: Make) -> Make:
    return lambda shape, rand: {
        **make(shape, rand), "dora_scale": 1 + rand(shape[0], *(1,) * len(shape[1:])).abs(),
    }  # fmt: skip


def by_input(make: Make) -> Make:
    return lambda shape, rand: {
        **make(shape, rand), "dora_scale": 1 + rand(1, shape[1], *(1,) * len(shape[2:])).abs(),
    }  # fmt: skip


def make_loha(shape: tuple[int, ...], rand: Callable[..., Tensor]) -> Tensors:
    columns = torch.Size(shape[1:]).numel()
    return {
        "hada_w1_a": rand(shape[0], RANK), "hada_w1_b": rand(RANK, columns),
        "hada_w2_a": rand(shape[0], RANK), "hada_w2_b": rand(RANK, columns),
        "alpha": torch.tensor(ALPHA),
    }  # fmt: skip


def make_tucker_loha(shape: tuple[int, ...], rand: Callable[..., Tensor]) -> Tensors:
    return {
        "hada_w1_a": rand(RANK, shape[0]), "hada_w1_b": rand(RANK, shape[1]),
        "hada_w2_a": rand(RANK, shape[0]), "hada_w2_b": rand(RANK, shape[1]),
        "hada_t1": rand(RANK, RANK, *shape[2:]), "hada_t2": rand(RANK, RANK, *shape[2:]),
        "alpha": torch.tensor(ALPHA),
    }  # fmt: skip


def make_lokr(small: bool, large: bool, tucker: bool = False) -> Make:
    """out/4 x in/4 by 4 x 4; `small`, `large`: whether that half is factored."""

    def make(shape: tuple[int, ...], rand: Callable[..., Tensor]) -> Tensors:
        window = torch.Size(shape[2:])
        rows, columns = shape[0] // 4, shape[1] // 4
        first = {"lokr_w1_a": rand(rows, RANK), "lokr_w1_b": rand(RANK, columns)}
        second = {"lokr_w2_a": rand(4, RANK), "lokr_w2_b": rand(RANK, 4 * window.numel())}
        if tucker:
            second = {"lokr_w2_a": rand(RANK, 4), "lokr_w2_b": rand(RANK, 4)}
            second["lokr_t2"] = rand(RANK, RANK, *window)
        return {
            **(first if small else {"lokr_w1": rand(rows, columns)}),
            **(second if large else {"lokr_w2": rand(4, 4, *window)}),
            "alpha": torch.tensor(ALPHA),
        }

    return make


def make_glora(shape: tuple[int, ...], rand: Callable[..., Tensor]) -> Tensors:
    ones = (1,) * len(shape[2:])
    return {
        "a1": rand(shape[1], RANK, *ones), "a2": rand(RANK, shape[1], *ones),
        "b1": rand(shape[0], RANK, *ones), "b2": rand(RANK, *shape[1:]),
        "alpha": torch.tensor(ALPHA),
    }  # fmt: skip


def make_old_glora(shape: tuple[int, ...], rand: Callable[..., Tensor]) -> Tensors:
    new = make_glora(shape, rand)
    return {**new, "a1": new["a2"], "a2": new["a1"], "b1": new["b2"], "b2": new["b1"]}


def make_tucker_glora(shape: tuple[int, ...], rand: Callable[..., Tensor]) -> Tensors:
    return {**make_glora((*shape[:2], 1, 1), rand), "bm": rand(RANK, RANK, *shape[2:])}


def make_ia3(on_input: bool) -> Make:
    def make(shape: tuple[int, ...], rand: Callable[..., Tensor]) -> Tensors:
        side = rand(shape[1] if on_input else shape[0])
        weight = side if len(shape) == 2 else side[None, :, None, None]
        return {"weight": weight.contiguous(), "on_input": torch.tensor(int(on_input))}

    return make


def make_blocks(
    size: int = 0, stages: int = 0, count: int = 0, rescaled: bool = False, limit: float = 0.0
) -> Make:
    """Rotations of `size` outputs, or `count` of them; of BOFT in `stages`."""

    def make(shape: tuple[int, ...], rand: Callable[..., Tensor]) -> Tensors:
        side = size or shape[0] // count
        blocks = (*(stages,)[: stages > 0], shape[0] // side, side, side)
        scale = {"rescale": 1 + rand(shape[0], *(1,) * len(shape[1:])).abs()} if rescaled else {}
        return {"oft_blocks": 0.3 * rand(*blocks), **scale, "alpha": torch.tensor(limit)}

    return make


# What it comes to, by the library that it comes from


def gamma(of: Tensors) -> float:
    return float(of["alpha"]) / RANK


def locon_says(of: Tensors, weight: Tensor) -> Tensor:
    return locon.diff_weight(of["down"], of["up"], of.get("mid"), gamma=gamma(of))


def loha_says(of: Tensors, weight: Tensor) -> Tensor:
    halves = [of[f"hada_w{i}_{side}"] for i in (1, 2) for side in "ba"]
    cores = (of.get("hada_t1"), of.get("hada_t2"))
    return loha.diff_weight(*halves, *cores, gamma=torch.tensor(gamma(of)))


def lokr_says(of: Tensors, weight: Tensor) -> Tensor:
    # what LokrModule.forward calls: its get_diff_weight multiplies by the scale a second time, and
    # lokr.diff_weight takes a Tucker side's outputs for its rank
    names = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
    scale = 1.0 if {"lokr_w1", "lokr_w2"} <= of.keys() else gamma(of)
    return lokr.kron_weight(*(of.get(f"lokr_{name}") for name in names), scale=scale)


def dora_says(inner: Oracle, on_output: bool) -> Oracle:
    def says(of: Tensors, weight: Tensor) -> Tensor:
        merged = weight + inner(of, weight).view(weight.shape)
        return weight_decompose(merged, of["dora_scale"], wd_on_out=on_output) - weight

    return says


def glora_says(of: Tensors, weight: Tensor) -> Tensor:
    factors = (of["a1"], of["a2"], of["b1"], of["b2"])
    module = GLoRAModule.make_module_from_state_dict(
        LAYER, module_of(weight), *factors, None, of["alpha"]
    )
    return module.get_diff_weight()[0]


def old_glora_says(of: Tensors, weight: Tensor) -> Tensor:
    """LyCORIS 1: b2 · b1 + W · a2 · a1, in float64."""
    a1, a2, b1, b2 = (of[role].double().flatten(1) for role in ("a1", "a2", "b1", "b2"))
    flat = weight.double().flatten(1)
    return (b2 @ b1 + flat @ a2 @ a1) * gamma(of)


def tucker_glora_says(of: Tensors, weight: Tensor) -> Tensor:
    a1, a2, b1, b2 = (of[role].double().flatten(1) for role in ("a1", "a2", "b1", "b2"))
    added = torch.einsum("op,pqkl,qi->oikl", b1, of["bm"].double(), b2)
    return (torch.einsum("ojkl,jr,ri->oikl", weight.double(), a1, a2) + added) * gamma(of)


def ia3_says(of: Tensors, weight: Tensor) -> Tensor:
    module = IA3Module(LAYER, module_of(weight), train_on_input=bool(of["on_input"]))
    module.weight.data.copy_(of["weight"])
    return module.get_diff_weight()[0]


def oft_says(of: Tensors, weight: Tensor) -> Tensor:
    limit = float(of["alpha"]) * weight.shape[0]
    return diag_oft.diff_weight(weight, of["oft_blocks"], of.get("rescale"), constraint=limit)


def boft_says(of: Tensors, weight: Tensor) -> Tensor:
    limit = float(of["alpha"]) * weight.shape[0]
    return boft.diff_weight(weight, of["oft_blocks"], of.get("rescale"), constraint=limit)


def full_says(of: Tensors, weight: Tensor) -> Tensor:
    with torch.no_grad():
        module = FullModule.make_module_from_state_dict(
            LAYER, module_of(weight), of["diff"], of["diff_b"]
        )
    return module.get_diff_weight()[0]


def norm_says(of: Tensors, weight: Tensor) -> Tensor:
    with torch.no_grad():
        module = NormModule.make_module_from_state_dict(
            LAYER, module_of(weight), of["w_norm"], of["b_norm"]
        )
    return module.get_diff_weight()[0]


# what -> (kind, its tensors, what its delta is, the layers it can be on)
CASES: dict[str, tuple[str, Make, Oracle, tuple[str, ...]]] = {
    "LoRA": ("LoRA", make_lora, locon_says, LAYERS),
    "LoRA, Tucker": ("LoRA", make_tucker_lora, locon_says, LAYERS[1:]),
    "DoRA by output": ("DoRA", by_output(make_lora), dora_says(locon_says, True), LAYERS),
    "DoRA by input": ("DoRA", by_input(make_lora), dora_says(locon_says, False), LAYERS),
    "DoRA, Tucker": ("DoRA", by_output(make_tucker_lora), dora_says(locon_says, True), LAYERS[1:]),
    "LoHa": ("LoHa", make_loha, loha_says, LAYERS),
    "LoHa, Tucker": ("LoHa", make_tucker_loha, loha_says, LAYERS[1:]),
    "LoHa, DoRA by output": ("LoHa", by_output(make_loha), dora_says(loha_says, True), LAYERS),
    "LoHa, DoRA by input": ("LoHa", by_input(make_loha), dora_says(loha_says, False), LAYERS),
    "LoKr, whole": ("LoKr", make_lokr(False, False), lokr_says, LAYERS),
    "LoKr, small factored": ("LoKr", make_lokr(True, False), lokr_says, LAYERS),
    "LoKr, large factored": ("LoKr", make_lokr(False, True), lokr_says, LAYERS),
    "LoKr, both factored": ("LoKr", make_lokr(True, True), lokr_says, LAYERS),
    "LoKr, Tucker": ("LoKr", make_lokr(False, True, True), lokr_says, LAYERS[1:]),
    "LoKr, DoRA by output": (
        "LoKr", by_output(make_lokr(False, True)), dora_says(lokr_says, True), LAYERS,
    ),
    "LoKr, DoRA by input": (
        "LoKr", by_input(make_lokr(False, True)), dora_says(lokr_says, False), LAYERS,
    ),
    "GLoRA": ("GLoRA", make_glora, glora_says, LAYERS),
    "GLoRA of LyCORIS 1": ("GLoRA", make_old_glora, old_glora_says, LAYERS[:2]),
    "GLoRA, Tucker": ("GLoRA", make_tucker_glora, tucker_glora_says, LAYERS[1:]),
    "IA3 on input": ("IA3", make_ia3(True), ia3_says, LAYERS),
    "IA3 on output": ("IA3", make_ia3(False), ia3_says, LAYERS),
    "OFT": ("OFT", make_blocks(4), oft_says, LAYERS),
    "OFT, limited": ("OFT", make_blocks(4, limit=0.01), oft_says, LAYERS),
    "OFT, rescaled": ("OFT", make_blocks(4, rescaled=True), oft_says, LAYERS),
    "BOFT": ("BOFT", make_blocks(stages=2, count=2), boft_says, LAYERS),
    "BOFT, deep": ("BOFT", make_blocks(2, stages=2, rescaled=True, limit=0.02), boft_says, LAYERS),
    "full": (
        "full", lambda shape, rand: {"diff": rand(*shape), "diff_b": rand(shape[0])}, full_says,
        LAYERS,
    ),
    "norm": (
        "norm", lambda shape, rand: {"w_norm": rand(*shape), "b_norm": rand(*shape)}, norm_says,
        ("norm",),
    ),
}  # fmt: skip
CELLS = [(case, layer) for case, row in CASES.items() for layer in row[3]]
