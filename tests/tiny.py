"""Tiny real models: stock classes, random weights, made offline, saved as diffusers folders.

`tiny("sd1")` is a folder that `StableDiffusionPipeline.from_pretrained` opens, 64 px square, a few
hundred thousand parameters. Made once per process; gone when it ends.
"""

import functools
import hashlib
import importlib
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from sdlora.adapters import attach, detach, extract_lora
from sdlora.lora.format.file import LoraFile
from sdlora.models.base import ModelFamily
from sdlora.models.registry import open_family
from sdlora.settings.train import TrainSettings

CPU = torch.device("cpu")
KINDS = ("sd1", "sd2", "sdxl", "starter")
TRANSFORMERS = ("sd3", "flux")
PIXELS, LATENT = 64, 8
_FOLDER = tempfile.TemporaryDirectory(prefix="sdlora-tiny-")


@functools.cache
def tiny(kind: str) -> Path:
    """The folder of a tiny model; the same one however often it is asked for. Not to be changed."""
    folder = Path(_FOLDER.name) / kind
    maker = importlib.import_module("tiny_transformers") if kind in TRANSFORMERS else None
    (maker.make if maker else make)(kind).save_pretrained(folder, safe_serialization=True)
    return folder


def open_tiny(kind: str, dtype: torch.dtype = torch.float32) -> ModelFamily:
    """A tiny family of its own, opened as the program opens one."""
    return open_family(str(tiny(kind)), dtype, CPU)


def tiny_lora(family: ModelFamily, seed: int = 0, scale: float = 0.15, **settings: Any) -> LoraFile:
    """A LoRA on every kind of layer, as if it had learnt something strong."""
    asked = {
        "rank": 4, "alpha": 2, "conv_rank": 2, "train_text_encoder": True,
        "targets": ("attention", "feed_forward", "conv"), "seed": seed, **settings,
    }  # fmt: skip
    rng = torch.Generator().manual_seed(seed)
    for learning in attach(family, TrainSettings(data="x", name="x", **asked)):
        for parameter in learning.parameters:
            parameter.data = scale * torch.randn(parameter.shape, generator=rng)
    file = extract_lora(family)
    detach(family)
    return file


def prompt_embeds(family: ModelFamily, prompts: list[str], negatives: list[str]) -> dict[str, Any]:
    """Arguments for a stock pipeline's call in place of the two texts, read by the family."""
    names = {"context": "prompt_embeds", "pooled": "pooled_prompt_embeds"}
    texts: dict[str, Any] = {}
    for prefix, words in (("", prompts), ("negative_", negatives)):
        with torch.no_grad():
            read = [
                family.encode_prompt(word) if word else family.encode_empty_prompt()
                for word in words
            ]
        for key, tensor in family.collate(read).tensors.items():
            texts[prefix + names[key]] = tensor
    return texts


def weights_hash(family: ModelFamily) -> str:
    """Of every bit of the parts that a LoRA can change."""
    digest = hashlib.sha256()
    for part in family.components.values():
        for name, value in part.state_dict().items():
            digest.update(name.encode() + value.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def make(kind: str) -> Any:
    """A fresh pipeline, the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(KINDS.index(kind))
        return _sdxl() if kind == "sdxl" else _sd(kind)


def tokenizer() -> CLIPTokenizer:
    """CLIP's own, with a vocabulary of single bytes: one token per letter, any text, 75 letters."""
    # GPT-2's printable stand-ins for the 256 bytes
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    letters = [chr(byte if byte in kept else next(spare)) for byte in range(256)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def text_encoder(width: int, kind: type = CLIPTextModel, activation: str = "quick_gelu") -> Any:
    config = CLIPTextConfig(
        vocab_size=514, hidden_size=width, intermediate_size=2 * width, projection_dim=width,
        num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=77,
        hidden_act=activation, bos_token_id=512, eos_token_id=513, pad_token_id=513,
    )  # fmt: skip
    return kind(config).eval()


def vae(channels: int, **more: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4,
        latent_channels=channels, sample_size=PIXELS, **more,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    ).eval()  # fmt: skip


def _unet(channels: int, width: int, **more: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=LATENT, in_channels=channels, out_channels=channels,
        block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=width, attention_head_dim=4, **more,
    ).eval()  # fmt: skip


def _scheduler(prediction: str = "epsilon") -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, prediction_type=prediction,
    )  # fmt: skip


def _sd(kind: str) -> StableDiffusionPipeline:
    channels, width = {"sd1": (4, 16), "sd2": (4, 24), "starter": (8, 32)}[kind]
    is_v = kind == "sd2"
    return StableDiffusionPipeline(
        vae=vae(channels),
        text_encoder=text_encoder(width, activation="gelu" if is_v else "quick_gelu"),
        tokenizer=tokenizer(),
        unet=_unet(channels, width, use_linear_projection=is_v),
        scheduler=_scheduler("v_prediction" if is_v else "epsilon"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl() -> StableDiffusionXLPipeline:
    # pooled text (24) and six sizes of 8 numbers each join the time embedding
    sizes = {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 24 + 6 * 8}
    return StableDiffusionXLPipeline(
        vae=vae(4),
        text_encoder=text_encoder(16),
        text_encoder_2=text_encoder(24, CLIPTextModelWithProjection, "gelu"),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        unet=_unet(
            4, 16 + 24, use_linear_projection=True, addition_embed_type="text_time", **sizes
        ),
        scheduler=_scheduler(),
        add_watermarker=False,
    )
