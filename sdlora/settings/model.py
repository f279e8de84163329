"""Settings of the base model, the same wherever one is used."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sdlora.settings.base import Settings

BasePrecision = Literal["full", "int8", "fp8", "nf4"]


class ModelSettings(Settings):
    """A base model, and a user's choices about it, which win over what its file says."""

    model: str = Field(
        "starter",
        min_length=1,
        description="Base model: starter, the name of a model in models/, a path, or a "
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
    base_precision: BasePrecision = Field(
        "full",
        title="Base model precision",
        description="Base model precision: hold the linear layers of the denoiser, which do not "
        "change, in fewer bits (SDXL, FLUX.1, SD 3; it saves little of SD 1.5). int8: about half "
        "of their memory and nearly the same model; fp8: as much, a little less like it; nf4: a "
        "little over a quarter, less like the model than both; full: in the number format of all "
        "else",
    )
    stream_blocks: float = Field(
        0.0,
        ge=0,
        le=1,
        title="Streamed blocks",
        description="Share of the denoiser's blocks, 0 to 1, whose weights lie in main memory and "
        "are copied to the device while they are needed: 1 takes the least memory there and the "
        "most time. Results stay the same; training computes activations twice",
    )
