"""Settings of a comparison grid: every checkpoint of a run at every LoRA weight."""

from __future__ import annotations

from pydantic import Field, field_validator

from sdlora.file_names import checked_name
from sdlora.settings.base import SEEDS, Settings, validated


class GridSettings(Settings):
    """A picture of every checkpoint at every strength."""

    run: str = Field(min_length=1, description="Name of the training")
    prompts: tuple[str, ...] = Field(
        (),
        max_length=8,
        description="Prompts of the images; empty: the sample prompts of the training",
    )
    checkpoints: tuple[int, ...] = Field(
        (), max_length=100, description="Steps of the checkpoints to compare; empty: all"
    )
    strengths: tuple[float, ...] = Field(
        (0.5, 0.75, 1.0), min_length=1, max_length=12, description="Weights of the LoRA to compare"
    )
    seed: int = Field(7, ge=0, lt=SEEDS, description="Random seed, the same for every image")
    steps: int = Field(20, ge=1, le=500, description="Sampling steps")

    @field_validator("run")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        return str(validated(checked_name, name))
