"""Settings of the base model, the same wherever one is used."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sdlora.settings.base import Settings


class ModelSettings(Settings):
    """A base model, and a user's choices about it, which win over what its file says."""

    model: str = Field(
        "starter",
        description="Base model: starter, the name of a model here (see models list), a path, or a "
        "Hugging Face id",
    )
    prediction: Literal["auto", "epsilon", "v_prediction"] = Field(
        "auto",
        title="Prediction type",
        description="Prediction type of the base model; auto: as its file says. Merges of v-"
        "prediction models often do not say it: their pictures are noise until it is chosen here",
    )
    vae: str = Field(
        "",
        title="VAE",
        description="VAE in place of the model's own: a name in vae/ or models/, or a path; empty: "
        "the model's own",
    )
    text_encoder: str = Field(
        "",
        description="Model to take the text encoders from, for files without any: a name in "
        "models/ or a path; empty: the model's own",
    )
