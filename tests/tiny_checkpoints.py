"""Checkpoints in one file, of true names and depth, with narrow layers and random weights.

The widths that tell a family are true (768, 1024, 2048); all others are as small as they can be.
"""

import functools
import tempfile
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from sdlora.models.checkpoint_configs import SCHEDULER
from sdlora.models.sd import StableDiffusion
from sdlora.models.sdxl import StableDiffusionXL
from sdlora.models.single_file import single_file
from tiny import CPU, tokenizer

KINDS = ("sd1", "sd2", "sdxl")
WIDTHS = {"sd1": 768, "sd2": 1024, "sdxl": 2048}
_FOLDER = tempfile.TemporaryDirectory(prefix="sdlora-checkpoints-")
_ATTENTION = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")


def _unet(kind: str, channels: int) -> UNet2DConditionModel:
    if kind == "sdxl":
        return UNet2DConditionModel(
            sample_size=128, block_out_channels=(64, 64, 128), cross_attention_dim=2048,
            down_block_types=("DownBlock2D", _ATTENTION[0], _ATTENTION[0]),
            up_block_types=(_ATTENTION[1], _ATTENTION[1], "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 3), attention_head_dim=(1, 1, 2),
            use_linear_projection=True, addition_embed_type="text_time",
            addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
        )  # fmt: skip
    more = {"attention_head_dim": (1,) * 4, "use_linear_projection": True} if kind == "sd2" else {}
    return UNet2DConditionModel(
        sample_size=64, in_channels=channels, block_out_channels=(32, 32, 64, 64),
        cross_attention_dim=WIDTHS[kind], **more,
    )  # fmt: skip


def _vae(kind: str) -> AutoencoderKL:
    more = {"scaling_factor": 0.13025, "force_upcast": True} if kind == "sdxl" else {}
    return AutoencoderKL(
        block_out_channels=(32,) * 4, layers_per_block=2, sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        **more,
    )  # fmt: skip


def _text(width: int, layers: int, vocabulary: int, kind: type = CLIPTextModel) -> Any:
    is_clip_l = width == 768
    return kind(
        CLIPTextConfig(
            vocab_size=vocabulary, hidden_size=width, intermediate_size=64,
            num_hidden_layers=layers, num_attention_heads=width // 64, projection_dim=width,
            hidden_act="quick_gelu" if is_clip_l else "gelu", bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1, pad_token_id=1,
        )
    )  # fmt: skip


def make(kind: str, channels: int = 4, vocabulary: int = 514) -> Any:
    """A stock pipeline of the family, the same weights every time; in float16."""
    with torch.random.fork_rng():
        torch.manual_seed(KINDS.index(kind))
        scheduler = DDIMScheduler.from_config(SCHEDULER)
        common = {
            "vae": _vae(kind), "unet": _unet(kind, channels), "tokenizer": tokenizer(),
            "scheduler": scheduler,
        }  # fmt: skip
        if kind == "sdxl":
            texts = {
                "text_encoder": _text(768, 2, vocabulary), "tokenizer_2": tokenizer(),
                "text_encoder_2": _text(1280, 2, vocabulary, CLIPTextModelWithProjection),
            }  # fmt: skip
            pipeline: Any = StableDiffusionXLPipeline(**common, **texts, add_watermarker=False)
        else:
            pipeline = StableDiffusionPipeline(
                **common, text_encoder=_text(WIDTHS[kind], 2, vocabulary), safety_checker=None,
                feature_extractor=None, requires_safety_checker=False,
            )  # fmt: skip
    diffusers.logging.set_verbosity_error()
    return pipeline.to(dtype=torch.float16)


@functools.cache
def tensors(kind: str, channels: int = 4, vocabulary: int = 514) -> dict[str, Tensor]:
    """A checkpoint's tensors by their names in a file. Not to be changed."""
    pipeline = make(kind, channels, vocabulary)
    family = StableDiffusionXL if kind == "sdxl" else StableDiffusion
    found = single_file(family(kind, pipeline, CPU, torch.float16))
    if kind == "sd2":  # its files have a layer more than anybody reads
        last = "cond_stage_model.model.transformer.resblocks."
        found |= {
            name.replace(last + "1.", last + "2."): tensor
            for name, tensor in found.items() if name.startswith(last + "1.")
        }  # fmt: skip
    return found


def write(path: Path, found: dict[str, Tensor], **metadata: str) -> Path:
    """A safetensors file of these tensors; shared memory is no matter."""
    save_file({n: t.clone().contiguous() for n, t in found.items()}, path, metadata or None)
    return path


@functools.cache
def checkpoint(kind: str, channels: int = 4, vocabulary: int = 514) -> Path:
    """A whole checkpoint. Not to be changed."""
    path = Path(_FOLDER.name) / f"{kind}-{channels}-{vocabulary}.safetensors"
    return write(path, tensors(kind, channels, vocabulary))
