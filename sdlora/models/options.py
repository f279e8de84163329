"""A user's choices about a model, and where what they name lies; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sdlora.errors import ModelError, did_you_mean
from sdlora.messages import Setting
from sdlora.settings.model import BasePrecision, ModelSettings
from sdlora.workspace import Workspace, path_exists

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
    stream_blocks: float = 0.0


DEFAULT_OPTIONS = ModelOptions()


def model_options(settings: ModelSettings, workspace: Workspace) -> ModelOptions:
    """Return the choices in some settings, their names made to paths. ModelError: one names what is
    not here."""
    vae, other = settings.vae, settings.text_encoder
    options = ModelOptions(
        settings.prediction,
        workspace.vae_source(vae),
        workspace.model_source(other) if other else "",
        settings.base_precision,
        settings.stream_blocks,
    )
    _check_is_there("vae", vae, options.vae, [*workspace.vae_names(), *workspace.model_names()])
    _check_is_there("text_encoder", other, options.text_encoder, workspace.model_names())
    return options


def _check_is_there(setting: str, name: str, source: str, names: list[str]) -> None:
    if name and not path_exists(Path(source)):
        raise ModelError(
            "{setting}: there is no {name!r} here; leave it empty for the model's own.{near}",
            setting=Setting(setting), name=name[:80], near=did_you_mean(name[:80], names),
        )  # fmt: skip
