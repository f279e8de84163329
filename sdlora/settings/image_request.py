"""Request for images: its settings, from the prompt to the kind of file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from sdlora.settings.base import SEEDS
from sdlora.settings.model import ModelSettings


class ImageRequest(ModelSettings):
    """A request for images."""

    GROUPS = {
        "Prompt": ("prompt", "negative_prompt", "model", "styles", "emphasis", "clip_skip"),
        "Picture": ("width", "height", "upscaler", "count", "batch_size", "seed", "image_format"),
        "Sampling": ("steps", "guidance", "sampler", "zero_terminal_snr"),
        "Hires fix": ("hires_scale", "hires_steps", "hires_strength", "hires_upscaler"),
        "Model": ("prediction", "vae", "text_encoder", "base_precision", "stream_blocks"),
    }
    prompt: str = Field("", description="Prompt, with LoRA tags such as <lora:name:0.8>")
    negative_prompt: str = Field("", description="Negative prompt: what the image should not show")
    steps: int = Field(20, ge=1, le=500, description="Sampling steps")
    guidance: float = Field(
        5.0,
        ge=0,
        le=50,
        description="Classifier-free guidance (CFG) scale: how closely to follow the prompt",
    )
    seed: int = Field(-1, ge=-1, lt=SEEDS, description="Random seed; -1: a new one each time")
    count: int = Field(1, ge=1, le=64, description="Number of images; image i uses seed + i")
    width: int | None = Field(
        None, ge=64, le=4096, multiple_of=8, description="Width in pixels; empty: the model's own"
    )
    height: int | None = Field(
        None, ge=64, le=4096, multiple_of=8, description="Height in pixels; empty: the model's own"
    )
    sampler: Literal[
        "ddim", "euler", "euler_a", "dpm++_2m", "dpm++_2m_karras", "unipc", "dpm++_2m_sde"
    ] = Field("dpm++_2m", description="Sampling method")
    zero_terminal_snr: bool = Field(
        False,
        title="Zero terminal SNR",
        description="Rescale the noise schedule to zero terminal SNR, for models and LoRAs "
        "trained with it",
    )
    batch_size: int = Field(4, ge=1, le=64, description="Images generated at once")
    styles: tuple[str, ...] = Field(
        (),
        max_length=16,
        description="Names of styles in styles.csv, added to the prompt and the negative prompt",
    )
    emphasis: Literal["original", "no_norm"] = Field(
        "original",
        description="Weighting of (words:1.2): original restores the mean of the embedding, "
        "no_norm does not",
    )
    clip_skip: int = Field(
        1,
        ge=1,
        le=12,
        title="CLIP skip",
        description="CLIP skip: text encoder layer to use, counted from the last",
    )
    hires_scale: float = Field(
        1,
        ge=1,
        le=4,
        title="Hires fix scale",
        description="Hires fix: upscale by this factor and refine in a second pass; 1: off",
    )
    hires_steps: int = Field(
        0,
        ge=0,
        le=500,
        title="Hires fix steps",
        description="Hires fix: sampling steps of the second pass; 0: as many as the first",
    )
    hires_strength: float = Field(
        0.6,
        gt=0,
        le=1,
        title="Hires fix denoising strength",
        description="Hires fix: denoising strength of the second pass",
    )
    hires_upscaler: Literal["latent", "lanczos"] = Field(
        "latent",
        title="Hires fix upscaler",
        description="Hires fix: upscale the latents, or the decoded image with lanczos",
    )
    upscaler: Literal["auto", "none"] = Field(
        "auto",
        description="Enlarge the finished image: auto uses the upscaler that comes with the model, "
        "if there is one (the starter has one, of twice the size)",
    )
    image_format: Literal["png", "jpeg", "webp"] = Field(
        "png", description="File format; JPEG and WebP hold less metadata"
    )

    @field_validator("count")
    @classmethod
    def _has_seeds(cls, count: int, info: ValidationInfo) -> int:
        if info.data.get("seed", -1) + count > SEEDS:
            raise ValueError(f"image {count} would need a seed above {SEEDS - 1}, the largest")
        return count
