"""Model families as rows: what prompt, page, LoRA files and the opener know of each; no torch.

A family is a row here and a module of `sdlora.models`; only that module reads a loaded network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Shapes = Mapping[str, tuple[int, ...]]  # layer name -> its weight's shape, () when not told

# Layers of a UNet that an adapter can be put on, by the end of their path. `conv` are the
# convolutions of kohya's LoCon (sd-scripts, networks/lora.py).
UNET_TARGETS = {
    "self_attention": r"attentions\.\d+\..*\.attn1\.(to_q|to_k|to_v|to_out\.0)",
    "cross_attention": r"attentions\.\d+\..*\.attn2\.(to_q|to_k|to_v|to_out\.0)",
    "attention": r"attentions\.\d+\.(proj_in|proj_out)",  # what stands around the two
    "feed_forward": r"attentions\.\d+\..*\.ff\.net\.(0\.proj|2)",
    "conv": r"resnets\.\d+\.(conv1|conv2|conv_shortcut)|(down|up)samplers\.0\.conv",
}
# Layers of a transformer over pictures and texts together (MMDiT, arXiv:2403.03206)
JOINT_TARGETS = {
    "attention": r"transformer_blocks\.\d+\.attn2?\."
    r"(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)",
    "feed_forward": r"transformer_blocks\.\d+\.(ff|ff_context)\.net\.(0\.proj|2)"
    r"|single_transformer_blocks\.\d+\.(proj_mlp|proj_out)",
}
CLIP_TARGETS = r"self_attn\.(q|k|v|out)_proj|mlp\.fc[12]"

_CLIP, _CLIP_PROJECTED = (
    r"transformers\.CLIPTextModel", r"transformers\.CLIPTextModelWithProjection",
)  # fmt: skip
_CLIP_TOKENIZER, _T5 = r"transformers\.CLIPTokenizer(Fast)?", r"transformers\.T5EncoderModel"
_T5_TOKENIZER = r"transformers\.T5Tokenizer(Fast)?"
_COMMON = {"vae": r"diffusers\.AutoencoderKL", "scheduler": r"diffusers\.\w+Scheduler"}
_SD = {
    **_COMMON,
    "unet": r"diffusers\.UNet2DConditionModel", "text_encoder": _CLIP, "tokenizer": _CLIP_TOKENIZER,
}  # fmt: skip
_SDXL = {**_SD, "text_encoder_2": _CLIP_PROJECTED, "tokenizer_2": _CLIP_TOKENIZER}
_SD3 = {
    **_COMMON,
    "transformer": r"diffusers\.SD3Transformer2DModel",
    "text_encoder": _CLIP_PROJECTED, "tokenizer": _CLIP_TOKENIZER,
    "text_encoder_2": _CLIP_PROJECTED, "tokenizer_2": _CLIP_TOKENIZER,
    "text_encoder_3": _T5, "tokenizer_3": _T5_TOKENIZER,
}  # fmt: skip
_FLUX = {
    **_COMMON,
    "transformer": r"diffusers\.FluxTransformer2DModel",
    "text_encoder": _CLIP, "tokenizer": _CLIP_TOKENIZER,
    "text_encoder_2": _T5, "tokenizer_2": _T5_TOKENIZER,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FamilySpec:
    """One model family.

    `width` is that of its text: what the denoiser's cross or joint attention reads. `classes` are
    the module of `sdlora.models`, the class in it, and the diffusers pipeline that a model's index
    names; `components` are the pipeline's parts, each with the one class it may be of.
    """

    name: str
    title: str
    width: int
    version: str  # ss_base_model_version
    architecture: str  # modelspec.architecture, without /lora
    implementation: str = "diffusers"
    classes: tuple[str, str, str]
    components: Mapping[str, str]
    target_groups: Mapping[str, str]  # group of settings.layer_groups -> pattern of layer paths
    optional_components: frozenset[str] = frozenset()  # that a model may do without
    text_targets: str = CLIP_TARGETS
    lora_key_style: Literal["kohya", "peft"] = "kohya"  # what most programs read of its LoRAs
    reads_emphasis: bool = True  # (words:1.2) and BREAK have a meaning to its text encoders
    size_multiple: int = 8  # pixels; a picture's sides are multiples of it
    presets: str = ""  # the family whose presets fit; empty: its own
    sample_size: int | None = None  # latent cells of its pictures; None: the denoiser's config says

    @property
    def denoiser(self) -> str:
        """Name of the pipeline's component that is trained."""
        return "unet" if "unet" in self.components else "transformer"

    @property
    def pipeline_class(self) -> str:
        """Name of the diffusers pipeline that a model's index names."""
        return self.classes[2]


_SD_CLASSES = ("sd", "StableDiffusion", "StableDiffusionPipeline")
_STABILITY = "https://github.com/Stability-AI/"

FAMILIES: dict[str, FamilySpec] = {
    spec.name: spec
    for spec in (
        FamilySpec(
            name="starter", title="the starter model", width=128,
            version="sdlora_starter_v1", architecture="sdlora-starter-v1",
            components=_SD, target_groups=UNET_TARGETS, classes=_SD_CLASSES,
        ),
        FamilySpec(
            name="sd1", title="Stable Diffusion 1", width=768,
            version="sd_v1", architecture="stable-diffusion-v1",
            components=_SD, target_groups=UNET_TARGETS, classes=_SD_CLASSES,
        ),
        FamilySpec(
            name="sd2", title="Stable Diffusion 2", width=1024,
            version="sd_v2", architecture="stable-diffusion-v2-768-v", presets="sd1",
            components=_SD, target_groups=UNET_TARGETS, classes=_SD_CLASSES,
        ),
        FamilySpec(
            name="sdxl", title="Stable Diffusion XL", width=2048,
            version="sdxl_base_v1-0", architecture="stable-diffusion-xl-v1-base",
            implementation=_STABILITY + "generative-models",
            classes=("sdxl", "StableDiffusionXL", "StableDiffusionXLPipeline"),
            components=_SDXL, target_groups=UNET_TARGETS,
        ),
        FamilySpec(
            name="sd3", title="Stable Diffusion 3", width=4096,
            version="sd3_m", architecture="stable-diffusion-3",
            implementation=_STABILITY + "sd3-ref",
            classes=("sd3", "StableDiffusion3", "StableDiffusion3Pipeline"),
            lora_key_style="peft", components=_SD3,
            optional_components=frozenset({"text_encoder_3", "tokenizer_3"}),
            target_groups=JOINT_TARGETS, reads_emphasis=False, size_multiple=16,
        ),
        FamilySpec(
            name="flux", title="FLUX.1", width=4096,
            version="flux1", architecture="flux-1-dev",
            implementation="https://github.com/black-forest-labs/flux",
            classes=("flux", "Flux", "FluxPipeline"), sample_size=128,
            components=_FLUX, target_groups=JOINT_TARGETS, reads_emphasis=False, size_multiple=16,
        ),
    )
}  # fmt: skip
UNETS = tuple(name for name, spec in FAMILIES.items() if "unet" in spec.components)
_BY_WIDTH = {FAMILIES[name].width: name for name in UNETS}
# how metadata starts that names a base: "sdxl_base_v0-9", "flux-1-schnell"
_METADATA_PREFIXES = {
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
    return _by_blocks(weights) or _by_text(weights) or _by_metadata(metadata)


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


def _by_metadata(metadata: Mapping[str, str]) -> str:
    for key, families in _METADATA_PREFIXES.items():
        value = metadata.get(key, "")
        for prefix, family in families.items():
            if value.startswith(prefix):
                return family
    return ""
