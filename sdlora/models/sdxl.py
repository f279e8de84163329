"""Stable Diffusion XL (arXiv:2307.01952): two text encoders, and sizes as a condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from torch import Tensor

from sdlora.models.base import PLAIN, Family
from sdlora.models.text_encoding import ClipLayer, TextEncodeOptions


class StableDiffusionXL(Family):
    """Reads both encoders' last layer but one side by side, the second's summary, and sizes."""

    pipeline_class = StableDiffusionXLPipeline
    text_parts = {"te1": "text_encoder", "te2": "text_encoder_2"}
    no_parts = {"feature_extractor": None, "image_encoder": None, "add_watermarker": False}
    has_pooled = True

    def encode_prompts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """context (B,77,D1+D2) and pooled (B,D2)."""
        with self.autocast():
            context, _, pooled, _ = self.pipeline.encode_prompt(
                list(prompts), device=self.device, do_classifier_free_guidance=False
            )
        return {"context": context, "pooled": pooled}

    @property
    def text_layers(self) -> ClipLayer:
        """The last but one, without the norm after the last."""
        return ClipLayer(read=2, normed=False)

    def network(
        self, noisy: Tensor, t: Tensor, cond: Mapping[str, Tensor], sizes: Tensor
    ) -> Tensor:
        """See Family; reads `context`, `pooled` and the sizes, which are the time_ids."""
        answer = self.denoiser(
            noisy,
            t,
            cond["context"],
            added_cond_kwargs={"text_embeds": cond["pooled"], "time_ids": sizes},
            return_dict=False,
        )
        return answer[0]

    def read_nothing(self, manner: TextEncodeOptions = PLAIN) -> dict[str, Tensor]:
        """See Family; zeros where the model was made so, as in the stock pipeline."""
        read = self.read_text("", manner)
        if not self.pipeline.config.force_zeros_for_empty_prompt:
            return read
        return {key: torch.zeros_like(value) for key, value in read.items()}

    def decode_latents(self, latents: Tensor) -> list[Image.Image]:
        """See Family; in float32 where the VAE has to, by its latents' mean where it has one."""
        with self.careful_vae():
            latents, config = latents.to(self.vae.dtype), self.vae.config
            if config.latents_mean is not None and config.latents_std is not None:
                mean, std = (
                    torch.tensor(its).view(1, -1, 1, 1).to(latents)
                    for its in (config.latents_mean, config.latents_std)
                )
                latents = latents * std + mean * config.scaling_factor
            return super().decode_latents(latents)
