"""Settings of the LoRA tools: the flags of `launch.py lora` are these fields.

A LoRA file is named by its path, or as in a prompt; an output by a path, or by a name for loras/.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from sdlora.messages import Setting
from sdlora.settings.base import InvalidValue, Settings

Method = Literal["linear", "concat", "ties", "dare", "dare_ties"]
Names = Literal["auto", "kohya", "peft"]
Kind = Literal["same", "lora"]
StoredAs = Literal["same", "fp16", "bf16", "fp32"]


class InfoSettings(Settings):
    """Show the metadata of LoRA files: base model, type, rank, trigger words."""

    files: tuple[str, ...] = Field(min_length=1, description="LoRA files, by path or name")


class CheckSettings(InfoSettings):
    """Check that LoRA files can be read and fit a base model."""

    model: str = Field(
        "", description="Base model they have to fit; empty: one at hand of the base they name"
    )


class OutputSettings(Settings):
    """Settings that all tools that write a file share."""

    output: str = Field(min_length=1, description="What to write: a path, or a name for loras/")
    overwrite: bool = Field(False, description="Replace the output where it exists")
    precision: StoredAs = Field("fp16", description="Number format of what is written")


class RankSettings(Settings):
    """Settings of the rank that a file is cut to."""

    rank: int | None = Field(None, ge=1, le=1024, description="Highest rank of a layer")
    keep: float | None = Field(
        None, gt=0, le=1, description="Share of a layer's squared singular values to keep"
    )


class InputSettings(Settings):
    """Settings of adapter types that need the base model's weights."""

    model: str = Field(
        "", description="Base model, for adapter types that need its weights (DoRA ...)"
    )


class Blending(Settings):
    """Settings of several files, each at its weight."""

    files: tuple[str, ...] = Field(min_length=1, description="LoRA files, by path or name")
    weights: tuple[float, ...] = Field((), description="One weight per file; empty: 1 each")

    @model_validator(mode="after")
    def _a_weight_each(self) -> Self:
        if self.weights and len(self.weights) != len(self.files):
            raise InvalidValue(
                "{weights} weights for {files} files",
                weights=len(self.weights),
                files=len(self.files),
            )
        return self

    @property
    def strengths(self) -> tuple[float, ...]:
        """The weight of every file."""
        return self.weights or (1.0,) * len(self.files)


class ConvertSettings(RankSettings, InputSettings, OutputSettings):
    """Convert a LoRA to another adapter type, number format or key naming."""

    file: str = Field(min_length=1, description="LoRA file, by path or name")
    to: Kind = Field(
        "same", description="Kind of its layers; lora is read by every program, and others lose a "
        "little on the way to it: rank and keep say how much",
    )  # fmt: skip
    names: Names = Field(
        "auto", description="How its tensors are named; auto: as most programs read it"
    )
    precision: StoredAs = Field("same", description="Number format of what is written")
    private: bool = Field(
        False, description="Leave captions, paths and names out of its training metadata"
    )
    trigger_words: tuple[str, ...] | None = Field(
        None, description="Trigger words, in place of those in its metadata"
    )
    thumbnail: str = Field("", description="Picture to show for it")

    @model_validator(mode="after")
    def _cuts_a_lora(self) -> Self:
        if self.to == "same" and (self.rank or self.keep):
            raise ValueError("rank and keep are for another kind: add --to lora, or leave them out")
        return self

    @property
    def highest_rank(self) -> int | None:
        """The rank asked for; 64 where nothing else says how much to keep."""
        return self.rank or (None if self.keep else 64)

    @property
    def least_kept(self) -> float:
        """The share asked for; else all but what is next to nothing."""
        return self.keep or 0.9999


class MergeSettings(Blending, RankSettings, InputSettings, OutputSettings):
    """Merge several LoRAs into one file."""

    method: Method = Field(
        "linear",
        description="linear: the exact sum, cut to a rank; concat: the exact sum, ranks added; "
        "ties, dare, dare_ties: sparse sums, cut to a rank",
    )
    density: float = Field(0.5, gt=0, le=1, description="Share of values that ties and dare keep")
    seed: int = Field(0, ge=0, lt=2**32, description="Same seed, same values dropped by dare")


class ResizeSettings(RankSettings, InputSettings, OutputSettings):
    """Resize a LoRA of any adapter type to another rank."""

    file: str = Field(min_length=1, description="LoRA file, by path or name")

    @model_validator(mode="after")
    def _says_how(self) -> Self:
        if self.rank is None and self.keep is None:
            raise InvalidValue(
                "say to which rank, or how much to keep: {rank} 8 or {keep} 0.95",
                rank=Setting("rank"), keep=Setting("keep"),
            )  # fmt: skip
        return self


class ExtractSettings(RankSettings, OutputSettings):
    """Extract a finetuned model's difference from its base as a LoRA, of rank 32 unless set."""

    base: str = Field(min_length=1, description="Base model: starter, a name in models/, a path")
    tuned: str = Field(min_length=1, description="Finetuned model, or its single safetensors file")

    @property
    def highest_rank(self) -> int | None:
        """The rank asked for; 32 where nothing else says how much to keep."""
        return self.rank or (None if self.keep else 32)


class FuseSettings(Blending, OutputSettings):
    """Fuse LoRAs into a base model's weights: a diffusers folder, or one file if named
    .safetensors."""

    output: str = Field(min_length=1, description="What to write: a path, or a name for models/")
    model: str = Field("starter", description="Base model: starter, a name in models/, a path")
    precision: StoredAs = Field("same", description="Number format of what is written")


class CompareSettings(InputSettings):
    """Compare two LoRAs: the layers that both change, and the loss of a blend of them."""

    first: str = Field(min_length=1, description="LoRA file, by path or name")
    second: str = Field(min_length=1, description="LoRA file to blend it with")
    picture: str = Field("", description="PNG file to draw the comparison into")
    overwrite: bool = Field(False, description="Replace the picture where it exists")
