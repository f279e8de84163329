"""FLUX.1: a transformer over packed latents that reads T5's tokens and CLIP's summary.

Source: black-forest-labs/flux, src/flux/{model,sampling}.py; diffusers, pipeline_flux.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdlora.models.base import Conditioning
from sdlora.models.flow_family import FlowFamily

T5_TOKENS = 512  # read of every text, padding included, without a mask
TRAINING_GUIDANCE = 1.0  # of dev in training (kohya-ss/sd-scripts, docs/flux_train_network)


class Flux(FlowFamily):
    """FLUX.1 dev, whose denoiser reads the guidance scale, and schnell, whose does not."""

    text_encoder_names = {"te1": "text_encoder", "te3": "text_encoder_2"}
    skip_components = {"feature_extractor": None, "image_encoder": None}

    @property
    def text_limit(self) -> int:
        """See FlowFamily."""
        return T5_TOKENS

    @property
    def embeds_guidance(self) -> bool:  # type: ignore[override]
        """True for dev: the network reads the guidance scale."""
        return bool(self.denoiser.config.guidance_embeds)

    @property
    def resolution(self) -> int:
        """See ModelFamily."""
        return int(self.pipeline.default_sample_size * self.cell)

    @property
    def latent_channels(self) -> int:
        """See ModelFamily; a token of the transformer is 2 x 2 cells."""
        return int(self.denoiser.config.in_channels // 4)

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """See ModelFamily; context (B,512,D) of T5, pooled (B,D2) of CLIP."""
        with self.autocast():
            context, pooled, _ = self.pipeline.encode_prompt(
                list(prompts), None, device=self.device, max_sequence_length=T5_TOKENS
            )
        return Conditioning({"context": context, "pooled": pooled})

    def velocity(
        self, x: Tensor, t: Tensor, conditioning: Conditioning, guidance: float | None
    ) -> Tensor:
        """See FlowFamily."""
        h, w = x.shape[-2:]
        scale = TRAINING_GUIDANCE if guidance is None else guidance
        scales = torch.full([len(x)], scale, device=self.device) if self.embeds_guidance else None
        answer = self.denoiser(
            hidden_states=pack(x),
            timestep=t.to(self.dtype) / 1000,
            guidance=scales,
            pooled_projections=conditioning.tensors["pooled"],
            encoder_hidden_states=conditioning.tensors["context"],
            txt_ids=torch.zeros(conditioning.length, 3, device=self.device, dtype=self.dtype),
            img_ids=position_ids(h // 2, w // 2).to(self.device, self.dtype),
            return_dict=False,
        )[0]
        return unpack(answer, h, w)

    def timestep_options(self, steps: int, mu: float | None) -> dict[str, Any]:
        """See FlowFamily; the levels are spread evenly from 1 to 1/n before the shift."""
        return {"sigmas": np.linspace(1.0, 1 / steps, steps), **super().timestep_options(steps, mu)}


def pack(x: Tensor) -> Tensor:
    """Return latents (B,C,h,w) as tokens (B, h/2 * w/2, 4C) of 2 x 2 cells."""
    b, c, h, w = x.shape
    cells = x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return cells.reshape(b, (h // 2) * (w // 2), c * 4)


def unpack(tokens: Tensor, h: int, w: int) -> Tensor:
    """Return tokens of `pack` as latents (B,C,h,w)."""
    b, _, channels = tokens.shape
    cells = tokens.view(b, h // 2, w // 2, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return cells.reshape(b, channels // 4, h, w)


def position_ids(rows: int, columns: int) -> Tensor:
    """Return (rows * columns, 3): 0, row and column of each token, for the rotary embedding."""
    ids = torch.zeros(rows, columns, 3)
    ids[..., 1] += torch.arange(rows)[:, None]
    ids[..., 2] += torch.arange(columns)[None, :]
    return ids.reshape(rows * columns, 3)
