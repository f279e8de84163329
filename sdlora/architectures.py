"""The base models a LoRA can be for, as its file tells: facts only, no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

Shapes = Mapping[str, tuple[int, ...]]  # layer name -> its weight's shape, () when not told


@dataclass(frozen=True)
class Base:
    """One base model. `width` is that of its text: what the denoiser's cross-attention reads."""

    name: str
    title: str
    width: int
    version: str  # ss_base_model_version
    architecture: str  # modelspec.architecture, without /lora
    implementation: str = "diffusers"


BASES: dict[str, Base] = {
    base.name: base
    for base in (
        Base("starter", "the starter model", 128, "sdlora_starter_v1", "sdlora-starter-v1"),
        Base("sd1", "Stable Diffusion 1", 768, "sd_v1", "stable-diffusion-v1"),
        Base("sd2", "Stable Diffusion 2", 1024, "sd_v2", "stable-diffusion-v2-768-v"),
        Base(
            "sdxl",
            "Stable Diffusion XL",
            2048,
            "sdxl_base_v1-0",
            "stable-diffusion-xl-v1-base",
            "https://github.com/Stability-AI/generative-models",
        ),
        Base(
            "sd3",
            "Stable Diffusion 3",
            4096,
            "sd3_m",
            "stable-diffusion-3",
            "https://github.com/Stability-AI/sd3-ref",
        ),
        Base(
            "flux",
            "FLUX.1",
            4096,
            "flux1",
            "flux-1-dev",
            "https://github.com/black-forest-labs/flux",
        ),
    )
}
UNETS = ("starter", "sd1", "sd2", "sdxl")
_BY_WIDTH = {BASES[name].width: name for name in UNETS}
# how metadata starts that names a base: "sdxl_base_v0-9", "flux-1-schnell"
_SAID = {
    "ss_base_model_version": {
        "sdlora_starter": "starter", "sd_v1": "sd1", "sd_v2": "sd2", "sdxl": "sdxl", "sd3": "sd3",
        "flux1": "flux",
    },
    "modelspec.architecture": {
        "sdlora-starter": "starter", "stable-diffusion-v1": "sd1", "stable-diffusion-v2": "sd2",
        "stable-diffusion-xl": "sdxl", "stable-diffusion-3": "sd3", "flux-1": "flux",
    },
}  # fmt: skip

_CROSS = re.compile("lora_unet_.*_attn2_to_[kv]")
# the blocks that only one of the transformers has, in either naming
_OWN_BLOCKS = {
    "lora_unet_joint_blocks_": "sd3",
    "lora_unet_double_blocks_": "flux",
    "lora_unet_single_blocks_": "flux",
    "lora_unet_single_transformer_blocks_": "flux",
}
_JOINT = re.compile(r"lora_unet_transformer_blocks_\d+_(?:attn|ff|norm1)")
_JOINT_WIDTHS = {3072: "flux", 1536: "sd3", 2432: "sd3"}  # of what such a layer reads


def base_of(weights: Shapes, metadata: Mapping[str, str]) -> str:
    """The name of the base that a LoRA is for; empty when nothing tells.

    `weights` are asked first, because metadata goes stale when files are merged: blocks that one
    base alone has, or the cross-attention's input, which is the base's text width.
    """
    return _by_blocks(weights) or _by_text(weights) or _said(metadata)


def _by_blocks(weights: Shapes) -> str:
    joint = ""  # of what SD 3 and FLUX share; a block that only one has tells more
    for name, shape in weights.items():
        for start, base in _OWN_BLOCKS.items():
            if name.startswith(start):
                return base
        if _JOINT.match(name):
            joint = joint or _JOINT_WIDTHS.get(shape[1] if len(shape) > 1 else 0, "")
        elif len(shape) > 1 and shape[1] in _BY_WIDTH and _CROSS.fullmatch(name):
            return _BY_WIDTH[shape[1]]
    return joint


def _by_text(weights: Shapes) -> str:
    """A file for text encoders: SDXL alone has two, else its attention is as wide as its text."""
    if any(name.startswith("lora_te3_") for name in weights):
        return ""  # SD 3 and FLUX share theirs
    if any(name.startswith(("lora_te1_", "lora_te2_")) for name in weights):
        return "sdxl"
    widths = (
        shape[1]
        for name, shape in weights.items()
        if name.startswith("lora_te_") and name.endswith("_q_proj") and len(shape) > 1
    )
    return next((_BY_WIDTH[width] for width in widths if width in _BY_WIDTH), "")


def _said(metadata: Mapping[str, str]) -> str:
    for key, bases in _SAID.items():
        said = metadata.get(key, "")
        if base := next((base for start, base in bases.items() if said.startswith(start)), ""):
            return base
    return ""
