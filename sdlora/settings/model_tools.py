"""Settings of the model tools: the flags of `launch.py models` are these fields.

A model is named by its name in the library, or by a path; an output by a path, or by a name for
models/.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sdlora.settings.base import Settings

ModelPrecision = Literal["same", "fp16", "bf16", "fp32"]


class ModelListSettings(Settings):
    """List the base models here: family, prediction, size, and those that cannot be used."""


class ModelInfoSettings(Settings):
    """Show what base models are, from their headers and from files beside them."""

    models: tuple[str, ...] = Field(min_length=1, description="Models, by name or path")
    hash: bool = Field(False, description="Compute the hash of each, and keep it")


class ModelCheckSettings(Settings):
    """Check that models are complete: every tensor's name and shape; nothing is loaded."""

    models: tuple[str, ...] = Field(min_length=1, description="Models, by name or path; all: all")


class ModelConvertSettings(Settings):
    """Convert a model: one file or a diffusers folder, number format; .ckpt and .gguf to
    .safetensors."""

    model: str = Field(min_length=1, description="Model, by name or path")
    to: Literal["file", "folder"] = Field("file", description="What to write")
    precision: ModelPrecision = Field("same", description="Number format of what is written")
    output: str = Field(
        "", description="A path, or a name for models/; empty: the name of the model"
    )


class ModelMergeSettings(Settings):
    """Merge two models of a family, or add the difference of two to a third."""

    models: tuple[str, ...] = Field(
        min_length=2, max_length=3, description="Models A and B, and C for add_difference"
    )
    output: str = Field(
        "", description="A path, or a name for models/; empty: the names of the models, joined"
    )
    method: Literal["weighted", "add_difference"] = Field(
        "weighted",
        description="weighted: (1 - weight) A + weight B; add_difference: A + weight (B - C)",
    )
    weight: float = Field(0.5, ge=-2, le=2, description="Share of B, or of the difference")
    block_weights: tuple[float, ...] = Field(
        (),
        description="Weights of the blocks IN00 ..., M00, OUT00 ...: 25 numbers for Stable "
        "Diffusion 1 and 2, 19 for XL; one more before them is the weight of all else",
    )
    precision: ModelPrecision = Field("same", description="Number format of what is written")
