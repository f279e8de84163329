"""A user's choices about a model; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PredictionChoice = Literal["auto", "epsilon", "v_prediction"]


@dataclass(frozen=True)
class ModelOptions:
    """Choices that win over what a model says of itself.

    `vae`, `text_encoder`: a file or a diffusers folder to take them from; '' for the model's own.
    """

    prediction: PredictionChoice = "auto"
    vae: str = ""
    text_encoder: str = ""


DEFAULT_OPTIONS = ModelOptions()
