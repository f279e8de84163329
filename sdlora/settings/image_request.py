"""Settings of an image request, from the prompt to the file format."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from sdlora.settings.base import SEEDS, Settings


class ImageRequest(Settings):
    """A request for images."""

    GROUPS = {
        "Prompt": ("prompt", "negative_prompt", "model", "styles", "emphasis", "clip_skip"),
        "Picture": ("width", "height", "count", "batch_size", "seed", "image_format"),
        "Sampling": ("steps", "guidance", "sampler", "zero_terminal_snr"),
        "Hires fix": ("hires_scale", "hires_steps", "hires_strength", "hires_upscaler"),
    }
    prompt: str = Field("", description="What to show; LoRA tags included")
    negative_prompt: str = Field("", description="Negative prompt: what not to show")
    model: str = Field("starter", description="Base model: starter, a name in models/, or a hub id")
    steps: int = Field(20, ge=1, le=500, description="Denoising steps")
    guidance: float = Field(
        5.0, ge=0, le=50, description="Guidance scale: how closely to follow the prompt"
    )
    seed: int = Field(-1, ge=-1, lt=SEEDS, description="Seed of the noise; -1: a random one")
    count: int = Field(1, ge=1, le=64, description="Images; image i uses seed + i")
    width: int | None = Field(
        None,
        ge=64,
        le=4096,
        multiple_of=8,
        description="Pixels; empty: what the model was made for",
    )
    height: int | None = Field(
        None,
        ge=64,
        le=4096,
        multiple_of=8,
        description="Pixels; empty: what the model was made for",
    )
    sampler: Literal[
        "ddim", "euler", "euler_a", "dpm++_2m", "dpm++_2m_karras", "unipc", "dpm++_2m_sde"
    ] = Field("dpm++_2m", description="Sampler: the method of denoising")
    zero_terminal_snr: bool = Field(
        False,
        description="Zero terminal SNR: begin from pure noise, for models and LoRAs trained so",
    )
    batch_size: int = Field(4, ge=1, le=64, description="Images per batch")
    styles: tuple[str, ...] = Field(
        (), max_length=16, description="Names of styles in styles.csv, put around both prompts"
    )
    emphasis: Literal["original", "no_norm"] = Field(
        "original", description="How (words:1.2) are weighed: with the mean restored, or without"
    )
    clip_skip: int = Field(
        1, ge=1, le=12, description="Layer of the text encoder to read, counted from the last"
    )
    hires_scale: float = Field(
        1, ge=1, le=4, description="Hires fix: a second pass at so many times the size; 1: none"
    )
    hires_steps: int = Field(
        0, ge=0, le=500, description="Steps of the second pass; 0: as many as the first's"
    )
    hires_strength: float = Field(
        0.6, gt=0, le=1, description="Denoising strength of the second pass"
    )
    hires_upscaler: Literal["latent", "lanczos"] = Field(
        "latent", description="Upscale the latents, or the picture (lanczos)"
    )
    image_format: Literal["png", "jpeg", "webp"] = Field(
        "png", description="File format; a JPEG or WebP holds less metadata"
    )

    @field_validator("count")
    @classmethod
    def _has_seeds(cls, count: int, info: ValidationInfo) -> int:
        if info.data.get("seed", -1) + count > SEEDS:
            raise ValueError(f"image {count} would need a seed above {SEEDS - 1}, the largest")
        return count
