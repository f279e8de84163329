"""Configurations of a checkpoint's parts, as diffusers and transformers take them; no torch.

A file holds weights only. What they cannot tell (heads, activations, scaling factors) is in the
rows of the families, from the published configs; everything else follows from their shapes, so that
merges, children and pruned forms of a family open alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdlora.errors import ModelError
from sdlora.models.checkpoint_facts import (
    TEXT_PREFIXES,
    VAE,
    CheckpointFacts,
    denoiser_shapes,
    without_prefix,
)
from sdlora.models.checkpoint_header import CheckpointHeader, Shape

Shapes = Mapping[str, Shape]
Config = dict[str, Any]
HEAD_WIDTH = 64  # of CLIP's text encoders, and of the UNets of Stable Diffusion 2 and XL


@dataclass(frozen=True)
class FamilyConfig:
    """Facts of a family that the shapes of its files do not tell."""

    heads: int  # of the UNet's attention; 0: as many as HEAD_WIDTH goes into its channels
    resolution: int  # pixels; of models that predict v, `resolution_v`
    resolution_v: int
    vae_scaling: float
    vae_overflows: bool = False  # in fp16
    pad_tokens: tuple[str, ...] = ("<|endoftext|>",)  # by tokenizer
    skipped_text_layers: int = 0  # at the end of the text encoder, which nobody reads


# From the model cards' configs: stable-diffusion-v1-5, stabilityai/stable-diffusion-2-1 and -base,
# stabilityai/stable-diffusion-xl-base-1.0
FAMILY_CONFIGS: dict[str, FamilyConfig] = {
    "sd1": FamilyConfig(8, 512, 512, 0.18215),
    "sd2": FamilyConfig(0, 512, 768, 0.18215, pad_tokens=("!",), skipped_text_layers=1),
    "sdxl": FamilyConfig(0, 1024, 1024, 0.13025, True, ("<|endoftext|>", "!")),
}
_RESNET = "in_layers.2.weight"
# of a VAE, in the first code's names and in diffusers'
_VAE_LEVEL = re.compile(r"encoder\.down(?:_blocks)?\.(\d+)\.(?:block|resnets)\.0\.conv1\.weight")
_VAE_LAYER = r"encoder\.down(?:_blocks)?\.0\.(?:block|resnets)\.(\d+)\.conv1\.weight"
# Stable Diffusion's noise: 1000 steps, betas linear in their roots (arXiv:2112.10752, its code)
SCHEDULER: Config = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000, "clip_sample": False, "set_alpha_to_one": False,
    "steps_offset": 1,
}  # fmt: skip


def resolution_of(facts: CheckpointFacts) -> int:
    """Return the pixels along a side that the family's pictures have."""
    row = FAMILY_CONFIGS[facts.family]
    return row.resolution_v if facts.prediction == "v_prediction" else row.resolution


def scheduler_config(facts: CheckpointFacts) -> Config:
    """Return the config of any scheduler for a checkpoint's noise."""
    snr = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    more = snr if facts.zero_terminal_snr else {}
    return {**SCHEDULER, "prediction_type": facts.prediction, **more}


def unet_config(header: CheckpointHeader, facts: CheckpointFacts) -> Config:
    """Return the config of the UNet2DConditionModel. ModelError: it is built in another way."""
    shapes, row = denoiser_shapes(header), FAMILY_CONFIGS[facts.family]
    levels = _levels(shapes, header)
    channels = tuple(level.channels for level in levels)
    depths = tuple(max(level.depth, 1) for level in levels)
    kinds = ["CrossAttn" if level.depth else "" for level in levels]
    config: Config = {
        "sample_size": resolution_of(facts) // 8,
        "in_channels": facts.in_channels,
        "out_channels": shapes["out.2.weight"][0],
        "block_out_channels": channels,
        "layers_per_block": levels[0].layers,
        "down_block_types": tuple(f"{kind}DownBlock2D" for kind in kinds),
        "up_block_types": tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        "transformer_layers_per_block": depths if len(set(depths)) > 1 else depths[0],
        "cross_attention_dim": _cross_width(shapes),
        "attention_head_dim": row.heads or tuple(max(c // HEAD_WIDTH, 1) for c in channels),
        "use_linear_projection": _has_linear_projection(shapes),
    }
    if label := shapes.get("label_emb.0.0.weight"):
        config |= {
            "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": label[1],
        }  # fmt: skip
    return config


def vae_config(header: CheckpointHeader, family: str) -> Config:
    """Return the config of the AutoencoderKL of the VAE in a checkpoint or in a file of its own.
    ModelError: there is none, or it is not complete."""
    shapes = without_prefix(header.shapes, VAE) or dict(header.shapes)
    levels = {
        int(match[1]): shape[0] for name, shape in shapes.items()
        if (match := _VAE_LEVEL.fullmatch(name))
    }  # fmt: skip
    channels = tuple(levels[number] for number in sorted(levels))
    if not channels or "decoder.conv_in.weight" not in shapes:
        raise ModelError("{file} holds no whole VAE", file=header.file)
    row = FAMILY_CONFIGS[family]
    return {
        "block_out_channels": channels,
        "layers_per_block": len(_numbers(shapes, _VAE_LAYER)),
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "down_block_types": ("DownEncoderBlock2D",) * len(channels),
        "up_block_types": ("UpDecoderBlock2D",) * len(channels),
        "sample_size": row.resolution, "scaling_factor": row.vae_scaling,
        "force_upcast": row.vae_overflows,
    }  # fmt: skip


def text_configs(header: CheckpointHeader, family: str) -> dict[str, Config]:
    """Return text encoder -> the CLIPTextConfig of those that are in the file."""
    configs = {}
    for part, prefix in TEXT_PREFIXES[family].items():
        if shapes := without_prefix(header.shapes, prefix):
            is_open_clip = "token_embedding.weight" in shapes
            names = ("text_model.embeddings", "embeddings", "")
            if not any(f"{n}.token_embedding.weight".strip(".") in shapes for n in names):
                raise ModelError(
                    "the text encoder in {file} is not complete: its token embedding is missing",
                    file=header.file,
                )
            config = (_open_clip_config if is_open_clip else _clip_config)(shapes, family)
            configs[part] = config
    return configs


def _clip_config(shapes: Shapes, family: str) -> Config:
    bare = {name.removeprefix("text_model."): shape for name, shape in shapes.items()}
    layers = _numbers(bare, r"encoder\.layers\.(\d+)\..*")
    inner = bare.get("encoder.layers.0.mlp.fc1.weight", (0,))[0]
    embedding = bare["embeddings.token_embedding.weight"]
    return _text_config(embedding, len(layers), inner, "quick_gelu", embedding[1])


def _open_clip_config(shapes: Shapes, family: str) -> Config:
    layers = _numbers(shapes, r"transformer\.resblocks\.(\d+)\..*")
    count = len(layers) - FAMILY_CONFIGS[family].skipped_text_layers
    inner = shapes.get("transformer.resblocks.0.mlp.c_fc.weight", (0,))[0]
    embedding = shapes["token_embedding.weight"]
    projection = shapes.get("text_projection", embedding)[1]
    return _text_config(embedding, count, inner, "gelu", projection)


def _text_config(
    embedding: Shape, layers: int, inner: int, activation: str, projection: int
) -> Config:
    vocabulary, width = embedding
    return {
        "vocab_size": vocabulary, "hidden_size": width, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": max(width // HEAD_WIDTH, 1),
        "hidden_act": activation, "projection_dim": projection, "max_position_embeddings": 77,
        "bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": 1,
    }  # fmt: skip


@dataclass(frozen=True)
class _Level:
    channels: int
    layers: int
    depth: int  # transformer blocks in each of its attentions; 0: it has none


def _levels(shapes: Shapes, header: CheckpointHeader) -> list[_Level]:
    """Return the UNet's levels from the picture inwards. The original code numbers its blocks
    through; one that changes the resolution ends a level."""
    levels: list[_Level] = []
    channels = layers = depth = 0
    numbers = _numbers(shapes, r"input_blocks\.(\d+)\..*")
    for number in numbers[1:]:
        block = f"input_blocks.{number}."
        if block + "0.op.weight" in shapes:
            levels.append(_Level(channels, layers, depth))
            channels = layers = depth = 0
        elif block + "0." + _RESNET in shapes:
            channels, layers = shapes[block + "0." + _RESNET][0], layers + 1
            pattern = re.escape(block) + r"1\.transformer_blocks\.(\d+)\..*"
            depth = max(depth, len(_numbers(shapes, pattern)))
    levels.append(_Level(channels, layers, depth))
    whole = numbers == [*range(len(numbers))] and all(level.layers for level in levels)
    if not whole or "out.2.weight" not in shapes:
        raise ModelError(
            "the denoiser in {file} is not complete: blocks of it are missing", file=header.file
        )
    return levels


def _numbers(shapes: Shapes, pattern: str) -> list[int]:
    """Return the numbers that a pattern finds in the names, sorted, each once."""
    compiled = re.compile(pattern)
    return sorted({int(match[1]) for name in shapes if (match := compiled.fullmatch(name))})


def _cross_width(shapes: Shapes) -> int:
    return next(s[1] for name, s in shapes.items() if name.endswith("attn2.to_k.weight"))


def _has_linear_projection(shapes: Shapes) -> bool:
    return any(len(s) == 2 for n, s in shapes.items() if n.endswith(".1.proj_in.weight"))
