"""Names of a denoiser's modules in the original code of each base model and in diffusers.

The original code is Stability AI's for Stable Diffusion, Black Forest Labs' for FLUX. Names are
flat: a module's path with `_` for `.`. The code of the transformers fuses layers that diffusers has
separately: one original layer is several of diffusers', each with a share of the output rows.

Sources: CompVis/latent-diffusion, ldm/modules/diffusionmodules/openaimodel.py;
Stability-AI/sd3.5, mmditx.py; black-forest-labs/flux, src/flux/model.py.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Mapping

# (first, last, of): of a layer's output rows, cut into `of` equal shares, those from `first` to
# before `last`; past the end they go on at the start
Rows = tuple[int, int, int]
Shares = tuple[tuple[str, Rows | None], ...]  # (diffusers' name, its rows; None: all of them)
Names = dict[str, Shares]  # original name -> diffusers'

# the original code's last modulation gives shift and scale, diffusers' gives scale and shift
SWAPPED: Rows = (1, 3, 2)


def to_original_names(base: str, names: Collection[str]) -> Names:
    """Return the original layers of diffusers' `names`, all of one denoiser.

    A fused layer comes with all its shares, also those that `names` lacks. Empty for an unknown
    base.
    """
    return _TO_ORIGINAL[base](names) if base in _TO_ORIGINAL else {}


def to_diffusers_names(base: str, names: Collection[str]) -> Names:
    """Return the diffusers names of those of `names` that are original names.

    The model is not needed: a UNet is assumed to have two layers per block, as SD 1, 2 and XL have,
    and SD 3 the depth of one of the published models. Empty for an unknown base.
    """
    return _TO_DIFFUSERS[base](names) if base in _TO_DIFFUSERS else {}


# Inside a ResNet block of the UNet, and outside of all blocks
_RESNET = {
    "in_layers_0": "norm1",
    "in_layers_2": "conv1",
    "emb_layers_1": "time_emb_proj",
    "out_layers_0": "norm2",
    "out_layers_3": "conv2",
    "skip_connection": "conv_shortcut",
}
_OUTSIDE = {
    "input_blocks_0_0": "conv_in",
    "out_0": "conv_norm_out",
    "out_2": "conv_out",
    "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
}
_RESNET_ORIGINAL = {their: first for first, their in _RESNET.items()}
_OUTSIDE_ORIGINAL = {their: first for first, their in _OUTSIDE.items()}
_ORIGINAL_SIDE = {"down": "input", "up": "output"}
_DIFFUSERS_SIDE = {first: their for their, first in _ORIGINAL_SIDE.items()}
_BLOCK_PARTS = ("resnets", "attentions")
_BLOCK = re.compile(
    r"(down|up)_blocks_(\d{1,3})_(resnets|attentions|downsamplers|upsamplers)_(\d{1,3})_(.+)"
)
_MIDDLE = re.compile(r"mid_block_(resnets|attentions)_(\d{1,3})_(.+)")
_ORIGINAL_BLOCK = re.compile(r"(input|output)_blocks_(\d{1,3})_(\d)_([a-z].*)")
_ORIGINAL_MIDDLE = re.compile(r"middle_block_(\d)_([a-z].*)")


def _original_unet(names: Collection[str]) -> Names:
    """Return original UNet names -> diffusers'. The original numbers blocks through: n of them, the
    last of which changes the resolution, are one in diffusers; the first is a convolution."""
    blocks = {name: match.groups() for name in names if (match := _BLOCK.fullmatch(name))}
    layers = [int(m[3]) for m in blocks.values() if m[0] == "down" and m[2] == "resnets"]
    n = max(layers, default=1) + 2
    attentive = {m[1] for m in blocks.values() if m[0] == "up" and m[2] == "attentions"}
    original = {_OUTSIDE_ORIGINAL[name]: name for name in names if name in _OUTSIDE_ORIGINAL}
    for name, (side, block, kind, layer, rest) in blocks.items():
        # the upsampler comes after the attention, where there is one
        place = {"attentions": 1, "upsamplers": 1 + (block in attentive)}.get(kind, 0)
        index = int(layer) if kind in _BLOCK_PARTS else n - 1
        number = int(block) * n + index + (side == "down")
        inner = "op" if kind == "downsamplers" else _RESNET_ORIGINAL.get(rest, rest)
        original[f"{_ORIGINAL_SIDE[side]}_blocks_{number}_{place}_{inner}"] = name
    for name in names:
        if match := _MIDDLE.fullmatch(name):
            kind, layer, rest = match.groups()
            place = 2 * int(layer) + _BLOCK_PARTS.index(kind)
            original[f"middle_block_{place}_{_RESNET_ORIGINAL.get(rest, rest)}"] = name
    return {first: ((name, None),) for first, name in original.items()}


def _diffusers_unet(names: Collection[str]) -> Names:
    converted = {name: _diffusers_unet_name(name) for name in names}
    return {first: ((name, None),) for first, name in converted.items() if name}


def _diffusers_unet_name(name: str) -> str:
    """Return a name's diffusers name in a UNet of two layers per block; empty if not original."""
    if match := _ORIGINAL_MIDDLE.fullmatch(name):
        layer, kind = divmod(int(match[1]), 2)
        return f"mid_block_{_BLOCK_PARTS[kind]}_{layer}_{_RESNET.get(match[2], match[2])}"
    if match := _ORIGINAL_BLOCK.fullmatch(name):
        side, number, place, rest = match.groups()
        block, layer = divmod(int(number) - (side == "input"), 3)
        their = f"{_DIFFUSERS_SIDE[side]}_blocks_{block}"
        if rest in ("op", "conv"):
            return f"{their}_{_DIFFUSERS_SIDE[side]}samplers_0_conv"
        return f"{their}_{_BLOCK_PARTS[place != '0']}_{layer}_{_RESNET.get(rest, rest)}"
    return _OUTSIDE.get(name, "")


def _fused(*names: str, sizes: tuple[int, ...] = (1, 1, 1)) -> Shares:
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    rows = [(end - size, end, ends[-1]) for size, end in zip(sizes, ends, strict=True)]
    return tuple(zip(names, rows, strict=True))


def _with_prefixes(first: str, theirs: str, table: Mapping[str, str | Shares]) -> Names:
    """Return `table` with prefixes added on both sides; # stands for a block's number."""
    return {
        first + name: tuple((theirs + their, rows) for their, rows in shares)
        for name, value in table.items()
        for shares in [((value, None),) if isinstance(value, str) else value]
    }


_QKV = _fused("attn_to_q", "attn_to_k", "attn_to_v")
_CONTEXT_QKV = _fused("attn_add_q_proj", "attn_add_k_proj", "attn_add_v_proj")
_FINAL: dict[str, str | Shares] = {
    "final_layer_linear": "proj_out",
    "final_layer_adaLN_modulation_1": (("norm_out_linear", SWAPPED),),
}
_FLUX = {
    **_with_prefixes("", "", {**_FINAL, "img_in": "x_embedder", "txt_in": "context_embedder"}),
    **_with_prefixes(
        "",
        "time_text_embed_",
        {
            "time_in_in_layer": "timestep_embedder_linear_1",
            "time_in_out_layer": "timestep_embedder_linear_2",
            "vector_in_in_layer": "text_embedder_linear_1",
            "vector_in_out_layer": "text_embedder_linear_2",
            "guidance_in_in_layer": "guidance_embedder_linear_1",
            "guidance_in_out_layer": "guidance_embedder_linear_2",
        },
    ),
    **_with_prefixes(
        "double_blocks_#_",
        "transformer_blocks_#_",
        {
            "img_mod_lin": "norm1_linear",
            "img_attn_qkv": _QKV,
            "img_attn_norm_query_norm": "attn_norm_q",
            "img_attn_norm_key_norm": "attn_norm_k",
            "img_attn_proj": "attn_to_out_0",
            "img_mlp_0": "ff_net_0_proj",
            "img_mlp_2": "ff_net_2",
            "txt_mod_lin": "norm1_context_linear",
            "txt_attn_qkv": _CONTEXT_QKV,
            "txt_attn_norm_query_norm": "attn_norm_added_q",
            "txt_attn_norm_key_norm": "attn_norm_added_k",
            "txt_attn_proj": "attn_to_add_out",
            "txt_mlp_0": "ff_context_net_0_proj",
            "txt_mlp_2": "ff_context_net_2",
        },
    ),
    **_with_prefixes(
        "single_blocks_#_",
        "single_transformer_blocks_#_",
        {
            "modulation_lin": "norm_linear",
            # the MLP is four times as wide as the attention
            "linear1": _fused(
                "attn_to_q", "attn_to_k", "attn_to_v", "proj_mlp", sizes=(1, 1, 1, 4)
            ),
            "norm_query_norm": "attn_norm_q",
            "norm_key_norm": "attn_norm_k",
            "linear2": "proj_out",
        },
    ),
}
_SD3 = {
    **_with_prefixes(
        "",
        "",
        {**_FINAL, "x_embedder_proj": "pos_embed_proj", "context_embedder": "context_embedder"},
    ),
    **_with_prefixes(
        "",
        "time_text_embed_",
        {
            "t_embedder_mlp_0": "timestep_embedder_linear_1",
            "t_embedder_mlp_2": "timestep_embedder_linear_2",
            "y_embedder_mlp_0": "text_embedder_linear_1",
            "y_embedder_mlp_2": "text_embedder_linear_2",
        },
    ),
    **_with_prefixes(
        "joint_blocks_#_x_block_",
        "transformer_blocks_#_",
        {
            "adaLN_modulation_1": "norm1_linear",
            "attn_qkv": _QKV,
            "attn_ln_q": "attn_norm_q",
            "attn_ln_k": "attn_norm_k",
            "attn_proj": "attn_to_out_0",
            "attn2_qkv": _fused("attn2_to_q", "attn2_to_k", "attn2_to_v"),
            "attn2_ln_q": "attn2_norm_q",
            "attn2_ln_k": "attn2_norm_k",
            "attn2_proj": "attn2_to_out_0",
            "mlp_fc1": "ff_net_0_proj",
            "mlp_fc2": "ff_net_2",
        },
    ),
    **_with_prefixes(
        "joint_blocks_#_context_block_",
        "transformer_blocks_#_",
        {
            "adaLN_modulation_1": "norm1_context_linear",
            "attn_qkv": _CONTEXT_QKV,
            "attn_ln_q": "attn_norm_added_q",
            "attn_ln_k": "attn_norm_added_k",
            "attn_proj": "attn_to_add_out",
            "mlp_fc1": "ff_context_net_0_proj",
            "mlp_fc2": "ff_context_net_2",
        },
    ),
}
_NUMBER = re.compile(r"(?<=blocks_)\d{1,3}(?=_)")
_SD3_DEPTHS = (24, 38)  # of SD 3 and 3.5 medium, of 3.5 large


def _split_block_number(name: str) -> tuple[str, str]:
    """Return (name with # for its block's number, the number)."""
    number = _NUMBER.search(name)
    # a # in a file's own name is removed
    return _NUMBER.sub("#", name.replace("#", "")), number[0] if number else ""


def _shares_of_block(table: Names, row: str, number: str) -> Shares:
    return tuple((their.replace("#", number), rows) for their, rows in table[row])


def _original_transformer(table: Names, names: Collection[str]) -> Names:
    row_of = {their: row for row, shares in table.items() for their, _ in shares}
    rows_and_numbers = [
        (row_of.get(row), number) for row, number in map(_split_block_number, names)
    ]
    return {
        row.replace("#", number): _shares_of_block(table, row, number)
        for row, number in dict.fromkeys(rows_and_numbers)
        if row
    }


def _diffusers_transformer(table: Names, names: Collection[str]) -> Names:
    rows_and_numbers = {name: _split_block_number(name) for name in names}
    return {
        name: _shares_of_block(table, *place)
        for name, place in rows_and_numbers.items()
        if place[0] in table
    }


def _original_sd3(names: Collection[str]) -> Names:
    numbers = [int(number) for _, number in map(_split_block_number, names) if number]
    return _swap_last_modulation(_original_transformer(_SD3, names), max(numbers, default=0))


def _diffusers_sd3(names: Collection[str]) -> Names:
    numbers = [int(number) for _, number in map(_split_block_number, names) if number]
    depth = next((d for d in _SD3_DEPTHS if d > max(numbers, default=0)), 0)
    return _swap_last_modulation(_diffusers_transformer(_SD3, names), depth - 1)


def _swap_last_modulation(names: Names, last: int) -> Names:
    """Swap shift and scale in the text stream's last block, whose modulation is a final one."""
    row = f"joint_blocks_{last}_context_block_adaLN_modulation_1"
    swapped = {row: tuple((their, SWAPPED) for their, _ in names[row])} if row in names else {}
    return names | swapped


_UNETS = ("starter", "sd1", "sd2", "sdxl")
_TO_ORIGINAL: dict[str, Callable[[Collection[str]], Names]] = {
    **dict.fromkeys(_UNETS, _original_unet),
    "sd3": _original_sd3,
    "flux": functools.partial(_original_transformer, _FLUX),
}
_TO_DIFFUSERS: dict[str, Callable[[Collection[str]], Names]] = {
    **dict.fromkeys(_UNETS, _diffusers_unet),
    "sd3": _diffusers_sd3,
    "flux": functools.partial(_diffusers_transformer, _FLUX),
}
