"""Stable Diffusion 1 and 2, and the starter model, which is built the same way."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sdlora.models.base import Conditioning, NetworkInputs
from sdlora.models.clip_family import ClipFamily
from sdlora.models.text_encoding import ClipLayer
from sdlora.noise_schedule import DDPM


class UNetFamily(ClipFamily):
    """A UNet trained by DDPM that reads CLIP texts in chunks, through cross-attention."""

    denoiser_name = "unet"

    def noise_schedule(self) -> DDPM:
        """See ModelFamily; epsilon or v prediction, as the scheduler's config says."""
        return DDPM.from_config(self.pipeline.scheduler.config)

    @property
    def resolution(self) -> int:
        """See ModelFamily."""
        return int(self.denoiser.config.sample_size * self.cell)

    @property
    def latent_channels(self) -> int:
        """See ModelFamily."""
        return int(self.denoiser.config.out_channels)

    @property
    def extra_channels(self) -> int:
        """See ModelFamily."""
        return int(self.denoiser.config.in_channels) - self.latent_channels

    def predict(
        self,
        x: Tensor,
        t: Tensor,
        conditioning: Conditioning,
        guidance: float | None = None,
        extras: NetworkInputs | None = None,
    ) -> Tensor:
        """See ModelFamily."""
        extras = extras or NetworkInputs()
        x = x.to(self.device, self.dtype)
        if extras.extra_channels is not None:
            x = torch.cat([x, extras.extra_channels], 1)
        elif self.extra_channels:
            x = torch.cat([x, self._all_masked(x)], 1)
        prediction: Tensor = self.denoiser(
            x,
            t.to(self.device),
            conditioning.tensors["context"],
            down_block_additional_residuals=extras.down_residuals or None,
            mid_block_additional_residual=extras.mid_residual,
            return_dict=False,
            **self.unet_conditions(conditioning),
        )[0]
        return prediction

    def _all_masked(self, x: Tensor) -> Tensor:
        """Return what an inpainting model reads to make a whole picture, for latents (B,C,h,w): a
        mask of ones, and a grey picture (A1111, modules/processing.py, txt2img)."""
        size = (x.shape[-2], x.shape[-1])
        if size not in self._grey_latents:
            grey = torch.zeros(1, 3, *(side * self.cell for side in size))
            with torch.no_grad():
                self._grey_latents[size] = self.encode_images(grey).to(x)
        grey = self._grey_latents[size].expand(len(x), -1, -1, -1)
        return torch.cat([torch.ones_like(x[:, :1]), grey], 1)

    @cached_property
    def _grey_latents(self) -> dict[tuple[int, int], Tensor]:
        return {}

    def unet_conditions(self, conditioning: Conditioning) -> dict[str, Any]:
        """Return what the UNet reads of a conditioning besides its context."""
        return {}


class StableDiffusion(UNetFamily):
    """One text encoder; its last layer is read."""

    text_encoder_names = {"te": "text_encoder"}
    skip_components = {
        "safety_checker": None,
        "feature_extractor": None,
        "image_encoder": None,
        "requires_safety_checker": False,
    }

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """See ModelFamily; context (B,77,D)."""
        with self.autocast():
            context, _ = self.pipeline.encode_prompt(list(prompts), self.device, 1, False)
        return Conditioning({"context": context})

    @property
    def clip_layer(self) -> ClipLayer:
        """The last; the files of SD 2 do not have the one after, which A1111 counts too."""
        return ClipLayer(gone=1 if self.name == "sd2" else 0)
