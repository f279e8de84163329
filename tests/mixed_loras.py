"""LoRA files of every kind, with random numbers, that fit a given family: narrow and strong."""

from collections.abc import Callable

import torch
from torch import Tensor

from sdlora.adapters.matching import weight_shape
from sdlora.lora.format.file import LoraFile
from sdlora.lora.format.layer import Adapter
from sdlora.models.base import ModelFamily

RANK = 2
LINEAR = ("attentions_0_transformer_blocks_0_attn1_to_q", "attentions_0_proj_in")
CONV = ("resnets_0_conv1",)
NORM = ("resnets_0_norm1", "attentions_0_transformer_blocks_0_norm2")
TEXT = ("layers_0_mlp_fc1", "layers_1_self_attn_v_proj")
Shape = tuple[int, ...]
Maker = Callable[[Shape, Callable[..., Tensor]], dict[str, Tensor]]


def _lora(shape: Shape, rand: Callable[..., Tensor]) -> dict[str, Tensor]:
    ones = (1,) * (len(shape) - 2)
    down, up = rand(RANK, *shape[1:]), rand(shape[0], RANK, *ones)
    return {"down": down, "up": up, "alpha": torch.tensor(1.0)}


def _locon_mid(shape: Shape, rand: Callable[..., Tensor]) -> dict[str, Tensor]:
    ones = (1,) * (len(shape) - 2)
    return {
        "down": rand(RANK, shape[1], *ones),
        "mid": rand(RANK, RANK, *shape[2:]),
        "up": rand(shape[0], RANK, *ones),
        "alpha": torch.tensor(1.0),
    }


def _dora(shape: Shape, rand: Callable[..., Tensor]) -> dict[str, Tensor]:
    scale = 1 + rand(shape[0], *(1,) * (len(shape) - 1))
    return {**_lora(shape, rand), "dora_scale": scale}


def _loha(shape: Shape, rand: Callable[..., Tensor]) -> dict[str, Tensor]:
    columns = torch.Size(shape[1:]).numel()
    halves = {f"hada_w{i}_a": rand(shape[0], RANK) for i in (1, 2)}
    return {**halves, **{f"hada_w{i}_b": rand(RANK, columns) for i in (1, 2)}}


def _lokr(shape: Shape, rand: Callable[..., Tensor]) -> dict[str, Tensor]:
    return {"lokr_w1": rand(2, 2), "lokr_w2": rand(shape[0] // 2, shape[1] // 2, *shape[2:])}


def _glora(shape: Shape, rand: Callable[..., Tensor]) -> dict[str, Tensor]:
    out, inner = shape
    return {
        "a1": rand(inner, RANK), "a2": rand(RANK, inner),
        "b1": rand(out, RANK), "b2": rand(RANK, inner), "alpha": torch.tensor(1.0),
    }  # fmt: skip


def _ia3(shape: Shape, rand: Callable[..., Tensor]) -> dict[str, Tensor]:
    return {"weight": rand(shape[0]), "on_input": torch.tensor(0.0)}


def _oft(shape: Shape, rand: Callable[..., Tensor]) -> dict[str, Tensor]:
    return {"oft_blocks": rand(shape[0] // 4, 4, 4)}


def _full(shape: Shape, rand: Callable[..., Tensor]) -> dict[str, Tensor]:
    return {"diff": rand(*shape)}


def _full_with_bias(shape: Shape, rand: Callable[..., Tensor]) -> dict[str, Tensor]:
    return {"diff": rand(*shape), "diff_b": rand(shape[0])}


def _norm(shape: Shape, rand: Callable[..., Tensor]) -> dict[str, Tensor]:
    return {"w_norm": rand(*shape), "b_norm": rand(*shape)}


# File -> the kinds in it: kind, its tensors, the ends of the names of the layers that have it
FILES: dict[str, tuple[tuple[str, Maker, tuple[str, ...]], ...]] = {
    "LoRA": (("LoRA", _lora, (*LINEAR, *TEXT)),),
    "LoCon": (("LoRA", _locon_mid, CONV), ("LoRA", _lora, LINEAR)),
    "DoRA": (("DoRA", _dora, (*LINEAR, *CONV, *TEXT)),),
    "LoHa": (("LoHa", _loha, (*LINEAR, *CONV)),),
    "LoKr": (("LoKr", _lokr, (*LINEAR, *CONV, *TEXT)),),
    "GLoRA and IA3": (("GLoRA", _glora, LINEAR[:1]), ("IA3", _ia3, TEXT)),
    "OFT": (("OFT", _oft, (*LINEAR[:1], *CONV)),),
    "full and norm": (("full", _full_with_bias, CONV), ("full", _full, LINEAR[:1]),
                      ("norm", _norm, NORM)),
}  # fmt: skip


def mixed_loras(family: ModelFamily) -> list[LoraFile]:
    """One file per row of FILES."""
    return [mixed_lora(family, name) for name in FILES]


def mixed_lora(family: ModelFamily, name: str) -> LoraFile:
    """The file of one row of FILES, on the middle of the UNet and the text encoder; the same
    numbers every time."""
    rng = torch.Generator().manual_seed(list(FILES).index(name))

    def rand(*shape: int) -> Tensor:
        return 0.15 * torch.randn(shape, generator=rng)

    starts = ("lora_unet_mid_block", "lora_te_text_model_")
    layers: dict[str, Adapter] = {}
    for kind, make, ends in FILES[name]:
        for layer, (slot, *_) in family.vocabulary.items():
            if layer.startswith(starts) and layer.endswith(ends):
                shape = weight_shape(family.adaptable_layers[slot.part][slot.path])
                layers[layer] = Adapter(kind, make(shape, rand))
    return LoraFile(layers)
