"""The base models a LoRA can be for, as its file tells: facts only, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Shapes = Mapping[str, tuple[int, ...]]  # tensor or pair name -> shape


@dataclass(frozen=True)
class Base:
    """One base model. `width` is that of its text: what the UNet's cross-attention reads."""

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
    )
}
_BY_WIDTH = {base.width: base.name for base in BASES.values()}


def base_of(downs: Shapes, metadata: Mapping[str, str]) -> str:
    """The name of the base that a LoRA is for; empty when nothing tells.

    `downs` are the shapes of its down matrices by canonical name. They are asked first, because
    metadata goes stale when files are merged; the cross-attention's input is the base's text width.
    """
    for name, shape in downs.items():
        if name.endswith(("_attn2_to_k", "_attn2_to_v")) and shape[1] in _BY_WIDTH:
            return _BY_WIDTH[shape[1]]
    if any(name.startswith(("lora_te1_", "lora_te2_")) for name in downs):
        return "sdxl"
    return _base_of_text(downs) or _base_said(metadata)


def _base_of_text(downs: Shapes) -> str:
    """A file that holds the text encoder only: its attention is as wide as what the UNet reads."""
    widths = (s[1] for n, s in downs.items() if n.startswith("lora_te_") and n.endswith("_q_proj"))
    return next((_BY_WIDTH[width] for width in widths if width in _BY_WIDTH), "")


def _base_said(metadata: Mapping[str, str]) -> str:
    version = metadata.get("ss_base_model_version", "")
    architecture = metadata.get("modelspec.architecture", "").removesuffix("/lora")
    for base in BASES.values():
        # versions are prefixes: sdxl_base_v0-9, stable-diffusion-v2-512
        family = base.version.split("_base")[0]
        if version.startswith(family) or architecture == base.architecture:
            return base.name
    return ""
