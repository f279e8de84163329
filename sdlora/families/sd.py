"""Stable Diffusion 1 and 2, and the starter model, which is built the same way."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers import StableDiffusionPipeline
from torch import Tensor

from sdlora.families.base import Conditioned, Family


class StableDiffusion(Family):
    """One text encoder; epsilon or v prediction, as the scheduler's config says."""

    pipeline_class = StableDiffusionPipeline
    text_parts = {"te": "text_encoder"}
    no_parts = {
        "safety_checker": None,
        "feature_extractor": None,
        "image_encoder": None,
        "requires_safety_checker": False,
    }

    def encode_prompts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """context (B,77,D)."""
        with self.autocast():
            context, _ = self.pipeline.encode_prompt(list(prompts), self.device, 1, False)
        return {"context": context}

    def predict(self, noisy: Tensor, t: Tensor, batch: Conditioned) -> Tensor:
        """See Family; reads `context`."""
        context = batch.cond["context"].to(self.device, self.dtype)
        with self.autocast():
            answer = self.denoiser(
                noisy.to(self.device, self.dtype), t.to(self.device), context, return_dict=False
            )
        return answer[0]

    def prompt_embeds(self, prompts: list[str], negatives: list[str]) -> dict[str, Tensor]:
        """prompt_embeds and negative_prompt_embeds, each (B,77,D)."""
        positive, negative = self.pipeline.encode_prompt(prompts, self.device, 1, True, negatives)
        return {"prompt_embeds": positive, "negative_prompt_embeds": negative}
