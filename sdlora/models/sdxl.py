"""Stable Diffusion XL (arXiv:2307.01952): two text encoders, and sizes as a condition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sdlora.models.base import PLAIN, Conditioning
from sdlora.models.sd import UNetFamily
from sdlora.models.text_encoding import ClipLayer, TextEncodeOptions


class StableDiffusionXL(UNetFamily):
    """Reads both encoders' last layer but one side by side, the second's summary, and sizes."""

    text_encoder_names = {"te1": "text_encoder", "te2": "text_encoder_2"}
    skip_components = {"feature_extractor": None, "image_encoder": None, "add_watermarker": False}
    has_pooled = True

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """See ModelFamily; context (B,77,D1+D2) and pooled (B,D2)."""
        with self.autocast():
            context, _, pooled, _ = self.pipeline.encode_prompt(
                list(prompts), device=self.device, do_classifier_free_guidance=False
            )
        return Conditioning({"context": context, "pooled": pooled})

    @property
    def clip_layer(self) -> ClipLayer:
        """The last but one, without the norm after the last."""
        return ClipLayer(read=2, normed=False)

    def condition_on_size(self, conditioning: Conditioning, sizes: Tensor) -> Conditioning:
        """See ModelFamily; the sizes are the paper's micro-conditioning (section 2.2)."""
        sizes = sizes.to(self.device, self.dtype).expand(len(conditioning), -1)
        return Conditioning({**conditioning.tensors, "time_ids": sizes})

    def unet_conditions(self, conditioning: Conditioning) -> dict[str, Any]:
        """See UNetFamily; the pooled text and the sizes join the time embedding."""
        tensors = conditioning.tensors
        added = {"text_embeds": tensors["pooled"], "time_ids": tensors["time_ids"]}
        return {"added_cond_kwargs": added}

    def encode_empty_prompt(self, options: TextEncodeOptions = PLAIN) -> Conditioning:
        """See ModelFamily; zeros where the model was made so, as in the stock pipeline."""
        empty = self.encode_prompt("", options)
        if not self.pipeline.config.force_zeros_for_empty_prompt:
            return empty
        return empty.mapped(torch.zeros_like)

    def decode_latents(self, latents: Tensor) -> list[Image.Image]:
        """See ModelFamily; in float32 where the VAE has to, by its latents' mean if it has one."""
        with self.fp32_vae():
            latents, config = latents.to(self.vae.dtype), self.vae.config
            if config.latents_mean is not None and config.latents_std is not None:
                mean, std = (
                    torch.tensor(values).view(1, -1, 1, 1).to(latents)
                    for values in (config.latents_mean, config.latents_std)
                )
                latents = latents * std + mean * config.scaling_factor
            return super().decode_latents(latents)
