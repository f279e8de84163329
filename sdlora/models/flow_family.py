"""Families trained by rectified flow, whose denoiser is a transformer over pictures and texts."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from sdlora.errors import ModelError
from sdlora.models.base import Conditioning, ModelFamily, NetworkInputs
from sdlora.models.stock_sampler import StockSampler
from sdlora.noise_schedule import RectifiedFlow, dynamic_shift


class FlowFamily(ModelFamily):
    """Rectified flow with levels shifted towards noise: by a number of the model's, or the more,
    the more tokens a picture has (arXiv:2403.03206, eq. 23; black-forest-labs/flux, sampling.py).
    """

    def noise_schedule(self) -> RectifiedFlow:
        """See ModelFamily."""
        return RectifiedFlow()

    def unread_text(self, text: str) -> str:
        """See ModelFamily; the longest-reading encoder counts."""
        key = list(self.text_encoders)[-1]
        tokenizer, limit = self.tokenizer(key), self.text_limit
        tokens = tokenizer(text, truncation=False, verbose=False).input_ids
        return str(tokenizer.decode(tokens[limit - 1 : -1])).strip()

    def predict(
        self,
        x: Tensor,
        t: Tensor,
        conditioning: Conditioning,
        guidance: float | None = None,
        extras: NetworkInputs | None = None,
    ) -> Tensor:
        """See ModelFamily."""
        if extras is not None:
            raise ModelError("{title} takes no inputs beside its text", title=self.title)
        x, t = x.to(self.device, self.dtype), t.to(self.device).expand(len(x))
        return self.velocity(x, t, conditioning, guidance)

    @abstractmethod
    def velocity(
        self, x: Tensor, t: Tensor, conditioning: Conditioning, guidance: float | None
    ) -> Tensor:
        """Return the denoiser's prediction (B,C,h,w), noise - x0, for latents `x` (B,C,h,w) of the
        model's type at `t` (B,)."""

    @property
    @abstractmethod
    def text_limit(self) -> int:
        """Tokens of a text that the longest-reading encoder sees, its end mark included."""

    def sampler(
        self,
        scheduler_class: Any,
        options: Mapping[str, Any],
        steps: int,
        size: tuple[int, int],
        *,
        zero_terminal_snr: bool = False,
    ) -> StockSampler:
        """See ModelFamily; levels shifted for pictures of this size. A flow begins from noise alone
        as it is."""
        config = self.pipeline.scheduler.config
        dynamic = config.get("use_dynamic_shifting", False)
        mu = self._mu(size) if dynamic else 0.0
        if scheduler_class is FlowMatchEulerDiscreteScheduler:
            scheduler = scheduler_class.from_config(config, **options)
            return StockSampler(
                scheduler, steps, self.device, self.timestep_options(steps, mu if dynamic else None)
            )
        shift = math.exp(mu) if dynamic else config.get("shift", 1.0)
        own = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}
        scheduler = scheduler_class(num_train_timesteps=1000, **own, **options)
        return StockSampler(scheduler, steps, self.device, {})

    def timestep_options(self, steps: int, mu: float | None) -> dict[str, Any]:
        """Return what the stock pipeline gives to `set_timesteps`; `mu` shifts dynamically."""
        return {} if mu is None else {"mu": mu}

    def _mu(self, size: tuple[int, int]) -> float:
        """Return the logarithm of the shift for pictures of this size."""
        w, h = self.latent_size(*size)
        config = self.pipeline.scheduler.config
        return dynamic_shift(
            (w // 2) * (h // 2),
            base=config.get("base_shift", 0.5), highest=config.get("max_shift", 1.15),
            low=config.get("base_image_seq_len", 256), high=config.get("max_image_seq_len", 4096),
        )  # fmt: skip
