"""Stable Diffusion 3 and 3.5 (arXiv:2403.03206): CLIP's and T5's tokens one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sdlora.models.base import Conditioning
from sdlora.models.flow_family import FlowFamily

T5_TOKENS = 256


class StableDiffusion3(FlowFamily):
    """Three text encoders, of which T5, the largest, may be left away: then zeros stand for it."""

    text_encoder_names = {
        "te1": "text_encoder", "te2": "text_encoder_2", "te3": "text_encoder_3",
    }  # fmt: skip
    skip_components = {"feature_extractor": None, "image_encoder": None}

    @classmethod
    def skipped(cls, folder: Path) -> dict[str, Any]:
        """See ModelFamily; a T5 that the folder does not have must be named as missing."""
        without = {} if (folder / "text_encoder_3").is_dir() else _NO_T5
        return {**cls.skip_components, **without}

    @property
    def text_limit(self) -> int:
        """See FlowFamily."""
        return T5_TOKENS if "te3" in self.text_encoders else 77

    @property
    def resolution(self) -> int:
        """See ModelFamily."""
        return int(self.denoiser.config.sample_size * self.cell)

    @property
    def latent_channels(self) -> int:
        """See ModelFamily."""
        return int(self.denoiser.config.in_channels)

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """See ModelFamily; context (B,77+256,D), pooled (B,D2) of both CLIPs."""
        texts = list(prompts)
        with self.autocast():
            context, _, pooled, _ = self.pipeline.encode_prompt(
                texts, texts, texts, device=self.device, do_classifier_free_guidance=False,
                max_sequence_length=T5_TOKENS,
            )  # fmt: skip
        return Conditioning({"context": context, "pooled": pooled})

    def velocity(
        self, x: Tensor, t: Tensor, conditioning: Conditioning, guidance: float | None
    ) -> Tensor:
        """See FlowFamily."""
        answer: Tensor = self.denoiser(
            hidden_states=x,
            timestep=t,
            encoder_hidden_states=conditioning.tensors["context"],
            pooled_projections=conditioning.tensors["pooled"],
            return_dict=False,
        )[0]
        return answer


_NO_T5 = {"text_encoder_3": None, "tokenizer_3": None}
