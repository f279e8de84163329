"""Stable Diffusion 1 and 2, and the starter model, which is built the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from diffusers import StableDiffusionPipeline
from torch import Tensor

from sdlora.models.base import Family
from sdlora.models.text_encoding import ClipLayer


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

    @property
    def text_layers(self) -> ClipLayer:
        """The last; the files of SD 2 do not have the one after, which A1111 counts too."""
        return ClipLayer(gone=1 if self.name == "sd2" else 0)

    def network(
        self, noisy: Tensor, t: Tensor, cond: Mapping[str, Tensor], sizes: Tensor
    ) -> Tensor:
        """See Family; reads `context`."""
        answer = self.denoiser(noisy, t, cond["context"], return_dict=False)
        return answer[0]
