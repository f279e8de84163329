"""Protocols of the untyped classes of diffusers and transformers that the families use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self

import torch
from torch import Tensor


class Tokenizer(Protocol):
    """A tokenizer of transformers."""

    added_tokens_encoder: Mapping[str, int]
    backend_tokenizer: Any
    model_max_length: int
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int

    def __call__(self, text: str, **options: object) -> Any:
        """Return an object with the `input_ids` of a text."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""


class Vae(Protocol):
    """An autoencoder of diffusers; `config` has its scale, shift and statistics."""

    config: Any
    dtype: torch.dtype

    def encode(self, pixels: Tensor) -> Any:
        """Return an object with the `latent_dist` of pixels (B,3,H,W)."""

    def decode(self, latents: Tensor, *, return_dict: bool) -> Sequence[Tensor]:
        """Return pixels (B,3,H,W), the first of a sequence."""

    def to(self, target: torch.dtype | torch.device) -> Self:
        """Move or cast the weights."""


class Pipeline(Protocol):
    """A pipeline of diffusers; its parts are attributes."""

    scheduler: Any
    image_processor: Any
    config: Any
    vae: Any
    vae_scale_factor: int
    default_sample_size: int
    tokenizer: Any

    def to(self, device: torch.device | None = None, *, dtype: torch.dtype | None = None) -> Self:
        """Move or cast all parts."""

    def encode_prompt(self, *args: Any, **options: Any) -> Any:
        """Return the embeddings of prompts."""

    def set_progress_bar_config(self, *, disable: bool) -> None:
        """Switch the progress bar."""

    def save_pretrained(self, folder: Any, *, safe_serialization: bool) -> None:
        """Save all parts into a folder."""


class Scheduler(Protocol):
    """A scheduler of diffusers."""

    timesteps: Tensor

    def set_timesteps(self, steps: int, *, device: torch.device, **options: Any) -> None:
        """Spread the timesteps of a pass."""

    def step(self, prediction: Tensor, t: Tensor, x: Tensor, **options: Any) -> Any:
        """Return an object with the `prev_sample` of one step."""
