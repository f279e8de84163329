"""The real base models' architectures, by their published configs, without their weights.

`build("sdxl")` makes the stock classes on the meta device; `read_keys("sdxl")` reads the paths of
what a LoRA can be put on from keys/sdxl.json, which `python tests/architectures.py` writes.
"""

import functools
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

KEYS = Path(__file__).parent / "keys"


def clip(width: int, layers: int, kind: type = CLIPTextModel) -> nn.Module:
    config = CLIPTextConfig(
        hidden_size=width, intermediate_size=4 * width, projection_dim=width,
        num_hidden_layers=layers, num_attention_heads=width // 64,
    )  # fmt: skip
    return kind(config)


def t5_xxl() -> nn.Module:
    config = T5Config(
        d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, vocab_size=32128,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return T5EncoderModel(config)


def sd3(depth: int, **more: Any) -> nn.Module:
    return SD3Transformer2DModel(
        sample_size=128, in_channels=16, out_channels=16, num_layers=depth,
        num_attention_heads=depth, attention_head_dim=64, caption_projection_dim=64 * depth,
        joint_attention_dim=4096, pooled_projection_dim=2048, **more,
    )  # fmt: skip


def sdxl_unet() -> nn.Module:
    attention = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
    return UNet2DConditionModel(
        sample_size=128, cross_attention_dim=2048, block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", attention[0], attention[0]),
        up_block_types=(attention[1], attention[1], "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10), attention_head_dim=(5, 10, 20),
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )  # fmt: skip


clip_l = functools.partial(clip, 768, 12)
clip_g = functools.partial(clip, 1280, 32, CLIPTextModelWithProjection)
SD3_TEXTS = {
    "te1": functools.partial(clip_l, CLIPTextModelWithProjection),
    "te2": clip_g,
    "te3": t5_xxl,
}
# architecture -> part -> what makes it
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "sd1": {
        "denoiser": functools.partial(UNet2DConditionModel, cross_attention_dim=768),
        "te": clip_l,
    },
    "sd2": {
        "denoiser": functools.partial(
            UNet2DConditionModel, sample_size=96, cross_attention_dim=1024,
            attention_head_dim=(5, 10, 20, 20), use_linear_projection=True,
        ),
        "te": functools.partial(clip, 1024, 23),
    },
    "sdxl": {"denoiser": sdxl_unet, "te1": clip_l, "te2": clip_g},
    "sd3": {"denoiser": functools.partial(sd3, 24, pos_embed_max_size=192), **SD3_TEXTS},
    "sd35_medium": {
        "denoiser": functools.partial(
            sd3, 24, pos_embed_max_size=384, qk_norm="rms_norm",
            dual_attention_layers=tuple(range(13)),
        ),
        **SD3_TEXTS,
    },
    "sd35_large": {
        "denoiser": functools.partial(sd3, 38, pos_embed_max_size=192, qk_norm="rms_norm"),
        **SD3_TEXTS,
    },
    "flux": {
        "denoiser": functools.partial(FluxTransformer2DModel, guidance_embeds=True),
        "te1": clip_l,
        "te3": t5_xxl,
    },
}  # fmt: skip
BASES = {"sd35_medium": "sd3", "sd35_large": "sd3"}  # of an architecture that shares a base's name


@functools.cache
def build(name: str) -> dict[str, nn.Module]:
    """Part -> model, on the meta device: shapes, no numbers."""
    with torch.device("meta"):
        return {part: make() for part, make in ARCHITECTURES[name].items()}


def shapes(name: str, kinds: Any = (nn.Linear, nn.Conv2d)) -> dict[str, dict[str, tuple[int, ...]]]:
    """Part -> path -> the weight's shape, of every layer of `kinds`."""
    return {
        part: {
            path: tuple(module.weight.shape)
            for path, module in model.named_modules()
            if isinstance(module, kinds) and module.weight is not None
        }
        for part, model in build(name).items()
    }


def write_keys(name: str) -> None:
    """Paths alike but for their numbers share a line: `ff.net.#.proj` with its numbers."""
    parts: dict[str, dict[str, list[str]]] = {}
    for part, paths in shapes(name).items():
        lines = parts.setdefault(part, defaultdict(list))
        for path in paths:
            pattern = re.sub(r"(?<=\.)\d+(?=\.|$)", "#", path)
            lines[pattern].append(".".join(re.findall(r"(?<=\.)\d+(?=\.|$)", path)))
    short = {part: {p: " ".join(n) for p, n in lines.items()} for part, lines in parts.items()}
    KEYS.mkdir(exist_ok=True)
    (KEYS / f"{name}.json").write_text(json.dumps(short, indent=1) + "\n", "utf-8")


def read_keys(name: str) -> dict[str, list[str]]:
    """Part -> the dotted paths of its linear layers and convolutions, as diffusers has them."""
    parts = json.loads((KEYS / f"{name}.json").read_text("utf-8"))
    return {
        part: [
            path.replace("#", "{}").format(*numbers.split("."))
            for path, every in lines.items()
            for numbers in every.split(" ")
        ]
        for part, lines in parts.items()
    }


if __name__ == "__main__":
    for architecture in ARCHITECTURES:
        write_keys(architecture)
