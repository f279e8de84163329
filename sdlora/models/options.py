"""A user's choices about a model, and where what they name lies; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sdlora.settings.model import BasePrecision, ModelSettings
from sdlora.workspace import Workspace

PredictionChoice = Literal["auto", "epsilon", "v_prediction"]


@dataclass(frozen=True)
class ModelOptions:
    """Choices that win over what a model says of itself.

    `vae`, `text_encoder`: a file or a diffusers folder to take them from; '' for the model's own.
    """

    prediction: PredictionChoice = "auto"
    vae: str = ""
    text_encoder: str = ""
    base_precision: BasePrecision = "full"


DEFAULT_OPTIONS = ModelOptions()


def model_options(settings: ModelSettings, workspace: Workspace) -> ModelOptions:
    """Return the choices in some settings, their names made to paths."""
    return ModelOptions(
        settings.prediction,
        workspace.vae_source(settings.vae),
        workspace.checked_model(settings.text_encoder) if settings.text_encoder else "",
        settings.base_precision,
    )
