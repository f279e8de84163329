"""Names of a whole model's tensors in one file: those of Stable Diffusion's first code.

A1111, ComfyUI and diffusers' `from_single_file` read such a file. One table serves reading and
writing: name in the file -> the tensors of diffusers' and transformers' classes that it holds. The
UNet's names are those that LoRA files use as well (lora/format/original_names.py); those of the VAE
and the text encoders stand here.

Sources: CompVis/latent-diffusion, ldm/modules/diffusionmodules/model.py (VAE);
Stability-AI/generative-models, sgm/modules/encoders/modules.py; mlfoundations/open_clip,
src/open_clip/transformer.py. Checked against diffusers, loaders/single_file_utils.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sdlora.lora.format.original_names import to_original_names
from sdlora.models.checkpoint_facts import DENOISER, TEXT_PREFIXES, VAE

Form = Literal["same", "convolution", "transposed"]
Rules = tuple[tuple[str, str], ...]  # pattern in diffusers' name -> the first code's


@dataclass(frozen=True)
class Place:
    """One tensor of a pipeline's `part`, and its form in the file: a matrix may be a convolution of
    1 x 1 there, or transposed."""

    part: str
    name: str
    form: Form = "same"

    def to_file(self, tensor: Tensor) -> Tensor:
        """Return the module's tensor in the file's form."""
        if self.form == "convolution" and tensor.dim() == 2:
            return tensor[:, :, None, None]
        return tensor.T if self.form == "transposed" else tensor

    def from_file(self, tensor: Tensor) -> Tensor:
        """Return the file's tensor in the module's form."""
        if self.form == "convolution" and tensor.dim() == 4:
            return tensor[:, :, 0, 0]
        return tensor.T if self.form == "transposed" else tensor


Layout = dict[str, tuple[Place, ...]]  # several places: one after the other along the first axis

# Words of the UNet's names that have an underscore of their own; all others stand for dots
_WORDS = re.compile(
    "(input_blocks|middle_block|output_blocks|time_embed|label_emb|in_layers|out_layers|emb_layers"
    "|skip_connection|transformer_blocks|proj_in|proj_out|to_q|to_k|to_v|to_out)|_"
)
_VAE_RULES: Rules = (
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


def checkpoint_layout(base: str, parts: Mapping[str, Any]) -> Layout:
    """Return the table of a model of family `base`; `parts` are the modules by the pipeline's
    names, on any device, the meta device included."""
    layout: Layout = {}
    for part, module in parts.items():
        names = list(module.state_dict())
        if part == "unet":
            layout |= dict(_unet(base, names))
        elif part == "vae":
            layout |= dict(_vae(names))
        else:
            prefix = TEXT_PREFIXES[base][part]
            rename = _open_clip if prefix.endswith(".model.") else _clip
            layout |= {prefix + name: places for name, places in rename(part, names)}
    return layout


def to_file(places: tuple[Place, ...], tensors: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
    """Return the file's tensor of some places; `tensors` are the parts' state dicts."""
    shares = [place.to_file(tensors[place.part][place.name]) for place in places]
    return shares[0] if len(shares) == 1 else torch.cat(shares)


def from_file(places: tuple[Place, ...], tensor: Tensor) -> Iterator[tuple[Place, Tensor]]:
    """Yield what a file's tensor holds, place by place."""
    shares = [tensor] if len(places) == 1 else tensor.chunk(len(places))
    for place, share in zip(places, shares, strict=True):
        yield place, place.from_file(share)


def _unet(base: str, names: Iterable[str]) -> Iterator[tuple[str, tuple[Place, ...]]]:
    names = list(names)
    flat = {name.rpartition(".")[0].replace(".", "_") for name in names}
    first = {theirs: name for name, ((theirs, _),) in to_original_names(base, flat).items()}
    for name in names:
        path, _, parameter = name.rpartition(".")
        dotted = _WORDS.sub(lambda word: word[1] or ".", first[path.replace(".", "_")])
        yield f"{DENOISER}{dotted}.{parameter}", (Place("unet", name),)


def _vae(names: Iterable[str]) -> Iterator[tuple[str, tuple[Place, ...]]]:
    names = list(names)
    ups = [int(number) for name in names for number in re.findall(r"up_blocks\.(\d+)", name)]
    for name in names:
        # the first code counts from the picture inwards on both sides
        inwards = re.sub(r"(?<=up_blocks\.)\d+", lambda m: str(max(ups) - int(m[0])), name)
        first = _renamed(inwards, _VAE_RULES)
        # its attention is made of 1 x 1 convolutions
        is_matrix = "attn" in first and "norm" not in first and name.endswith("weight")
        yield VAE + first, (Place("vae", name, "convolution" if is_matrix else "same"),)


def _clip(part: str, names: Iterable[str]) -> Iterator[tuple[str, tuple[Place, ...]]]:
    for name in names:
        bare = name.removeprefix("text_model.")
        first = bare if bare == "text_projection.weight" else f"text_model.{bare}"
        yield first, (Place(part, name),)


def _open_clip(part: str, names: Iterable[str]) -> Iterator[tuple[str, tuple[Place, ...]]]:
    stacks: dict[str, dict[str, Place]] = {}
    for name in names:
        bare = name.removeprefix("text_model.")
        if match := _QKV.fullmatch(bare):
            stack = f"transformer.resblocks.{match[1]}.attn.in_proj_{match[3]}"
            stacks.setdefault(stack, {})[match[2]] = Place(part, name)
        elif bare == "text_projection.weight":
            yield "text_projection", (Place(part, name, "transposed"),)
        else:
            yield _renamed(bare, _OPEN_CLIP), (Place(part, name),)
    for stack, shares in stacks.items():
        yield stack, tuple(shares[share] for share in "qkv")


def _renamed(name: str, rules: Rules) -> str:
    for pattern, first in rules:
        name = re.sub(pattern, first, name)
    return name
