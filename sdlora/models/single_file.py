"""A whole Stable Diffusion 1, 2 or XL in one file, its tensors named as in its first code.

A1111, ComfyUI and diffusers' `from_single_file` read such a file. The UNet's names are those that
LoRA files use as well (lora/format/original_names.py); those of the VAE and the text encoders
stand here.

Sources: CompVis/latent-diffusion, ldm/modules/diffusionmodules/model.py (VAE);
Stability-AI/generative-models, sgm/modules/encoders/modules.py; mlfoundations/open_clip,
src/open_clip/transformer.py. Checked against diffusers, loaders/single_file_utils.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sdlora.errors import ModelError
from sdlora.lora.format.original_names import to_original_names
from sdlora.models.base import ModelFamily

Tensors = Mapping[str, Tensor]
Rules = tuple[tuple[str, str], ...]  # pattern in diffusers' name -> the first code's


@dataclass(frozen=True)
class TextPlace:
    """Place of a text encoder in the file, and the rule of its names there."""

    prefix: str
    rename: Callable[[Tensors], Iterator[tuple[str, Tensor]]]


# Words of the UNet's names that have an underscore of their own; all others stand for dots
_WORDS = re.compile(
    "(input_blocks|middle_block|output_blocks|time_embed|label_emb|in_layers|out_layers|emb_layers"
    "|skip_connection|transformer_blocks|proj_in|proj_out|to_q|to_k|to_v|to_out)|_"
)
_VAE: Rules = (
    (r"(down|up)_blocks\.(\d+)\.resnets\.", r"\1.\2.block."),
    (r"(down|up)_blocks\.(\d+)\.\1samplers\.0\.", r"\1.\2.\1sample."),
    (r"mid_block\.resnets\.0\.", "mid.block_1."),
    (r"mid_block\.resnets\.1\.", "mid.block_2."),
    (r"mid_block\.attentions\.0\.group_norm\.", "mid.attn_1.norm."),
    (r"mid_block\.attentions\.0\.to_([qkv])\.", r"mid.attn_1.\1."),
    (r"mid_block\.attentions\.0\.to_out\.0\.", "mid.attn_1.proj_out."),
    (r"conv_norm_out\.", "norm_out."),
    (r"conv_shortcut\.", "nin_shortcut."),
)
_OPEN_CLIP: Rules = (
    (r"^embeddings\.token_embedding\.", "token_embedding."),
    (r"^embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^final_layer_norm\.", "ln_final."),
    (r"^encoder\.layers\.", "transformer.resblocks."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)
_QKV = re.compile(r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)")


def single_file(family: ModelFamily) -> dict[str, Tensor]:
    """Every tensor of an open family by the name it has in a single file, on the CPU.

    ModelError for a family that has no such naming here.
    """
    places = TEXTS.get(family.name)
    if places is None:
        raise ModelError("{model} is written as a diffusers folder only", model=family.title)
    tensors = dict(_unet(family.name, family.denoiser.state_dict()))
    tensors |= _vae(family.pipeline.vae.state_dict())
    for part, place in places.items():
        bare = {
            name.removeprefix("text_model."): tensor
            for name, tensor in family.text_encoders[part].state_dict().items()
        }
        tensors |= {place.prefix + name: tensor for name, tensor in place.rename(bare)}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def open_single_file(path: Path, like: ModelFamily) -> ModelFamily:
    """The model in the safetensors file `path`, of the architecture of `like`, whose folder tells
    the rest; in its number format. ModelError when the file is another model's, or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            missing = single_file(like).keys() - file.keys()
        if missing:
            raise ModelError(
                "{file} is not a single file of {model}: {count} tensors are not in it, such as "
                "{key!r}",
                file=path,
                model=like.title,
                count=len(missing),
                key=min(missing),
            )
        stock: Any = like.pipeline
        pipeline = type(stock).from_single_file(
            str(path),
            config=str(stock.name_or_path),
            torch_dtype=like.dtype,
            local_files_only=True,
            **like.skip_components,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError("{file} cannot be opened: {why}", file=path, why=error) from None
    return type(like)(like.name, pipeline, like.device, like.dtype)


def _unet(base: str, tensors: Tensors) -> Iterator[tuple[str, Tensor]]:
    flat = {name.rpartition(".")[0].replace(".", "_") for name in tensors}
    first = {theirs: name for name, ((theirs, _),) in to_original_names(base, flat).items()}
    for name, tensor in tensors.items():
        path, _, parameter = name.rpartition(".")
        dotted = _WORDS.sub(lambda word: word[1] or ".", first[path.replace(".", "_")])
        yield f"model.diffusion_model.{dotted}.{parameter}", tensor


def _vae(tensors: Tensors) -> Iterator[tuple[str, Tensor]]:
    ups = {int(number) for name in tensors for number in re.findall(r"up_blocks\.(\d+)", name)}
    for name, tensor in tensors.items():
        # the first code counts from the picture inwards on both sides
        inwards = re.sub(r"(?<=up_blocks\.)\d+", lambda m: str(max(ups) - int(m[0])), name)
        is_attention = "attn" in (first := _renamed(inwards, _VAE))
        # its attention is made of 1 x 1 convolutions
        shaped = tensor[:, :, None, None] if is_attention and tensor.dim() == 2 else tensor
        yield f"first_stage_model.{first}", shaped


def _clip(tensors: Tensors) -> Iterator[tuple[str, Tensor]]:
    yield from ((f"text_model.{name}", tensor) for name, tensor in tensors.items())


def _open_clip(tensors: Tensors) -> Iterator[tuple[str, Tensor]]:
    stacks: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if match := _QKV.fullmatch(name):
            stack = f"transformer.resblocks.{match[1]}.attn.in_proj_{match[3]}"
            stacks.setdefault(stack, {})[match[2]] = tensor
        elif name == "text_projection.weight":
            yield "text_projection", tensor.T
        else:
            yield _renamed(name, _OPEN_CLIP), tensor
    for name, shares in stacks.items():
        yield name, torch.cat([shares[share] for share in "qkv"])


def _renamed(name: str, rules: Rules) -> str:
    for pattern, first in rules:
        name = re.sub(pattern, first, name)
    return name


_SD = {"te": TextPlace("cond_stage_model.transformer.", _clip)}
TEXTS: dict[str, dict[str, TextPlace]] = {
    "starter": _SD,
    "sd1": _SD,
    "sd2": {"te": TextPlace("cond_stage_model.model.", _open_clip)},
    "sdxl": {
        "te1": TextPlace("conditioner.embedders.0.transformer.", _clip),
        "te2": TextPlace("conditioner.embedders.1.model.", _open_clip),
    },
}
