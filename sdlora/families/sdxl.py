"""Stable Diffusion XL (arXiv:2307.01952): two text encoders, and sizes as a condition."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from sdlora.families.base import Conditioned, Family


class StableDiffusionXL(Family):
    """Reads both encoders' last layer but one side by side, the second's summary, and sizes."""

    pipeline_class = StableDiffusionXLPipeline
    text_parts = {"te1": "text_encoder", "te2": "text_encoder_2"}
    no_parts = {"feature_extractor": None, "image_encoder": None, "add_watermarker": False}

    def encode_prompts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """context (B,77,D1+D2) and pooled (B,D2)."""
        with self.autocast():
            context, _, pooled, _ = self.pipeline.encode_prompt(
                list(prompts), device=self.device, do_classifier_free_guidance=False
            )
        return {"context": context, "pooled": pooled}

    def predict(self, noisy: Tensor, t: Tensor, batch: Conditioned) -> Tensor:
        """See Family; reads `context`, `pooled` and the batch's sizes, which are the time_ids."""
        cond = {key: value.to(self.device, self.dtype) for key, value in batch.cond.items()}
        sizes = batch.sizes.to(self.device, self.dtype)
        with self.autocast():
            answer = self.denoiser(
                noisy.to(self.device, self.dtype),
                t.to(self.device),
                cond["context"],
                added_cond_kwargs={"text_embeds": cond["pooled"], "time_ids": sizes},
                return_dict=False,
            )
        return answer[0]

    def prompt_embeds(self, prompts: list[str], negatives: list[str]) -> dict[str, Tensor]:
        """Both texts' contexts and summaries, in the order of the names.

        Without any negative text the stock pipeline puts zeros in its place, and so do we.
        """
        names = ("prompt_embeds", "negative_prompt_embeds")
        embeds = self.pipeline.encode_prompt(
            prompts,
            device=self.device,
            negative_prompt=negatives if any(negatives) else None,
        )
        pooled = ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        return dict(zip((*names, *pooled), embeds, strict=True))
