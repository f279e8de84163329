"""How noise is added to a latent and what the network learns to answer (DDPM, arXiv:2006.11239).

Shapes: x0, eps and their mixtures (B,C,h,w); t (B,) long in 0..steps-1. Arithmetic is done in
float32 whatever the latents' type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from sdlora.errors import ModelError

PREDICTIONS = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class DDPM:
    """x_t = signal[t] x0 + sigma[t] eps; the network answers eps, or v of arXiv:2202.00512."""

    alphas_bar: Tensor  # (steps,) float32: share of the variance that is still signal at t
    prediction: str

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> DDPM:
        """From any diffusers scheduler's config. ModelError: its prediction is not one of ours."""
        prediction = config.get("prediction_type", "epsilon")
        if prediction not in PREDICTIONS:
            raise ModelError(
                f"this model predicts {prediction!r}; {' and '.join(PREDICTIONS)} can be trained"
            )
        return cls(DDPMScheduler.from_config(config).alphas_cumprod.float(), prediction)

    @property
    def steps(self) -> int:
        """Noise levels; 1000 in every Stable Diffusion."""
        return len(self.alphas_bar)

    def to(self, device: torch.device) -> DDPM:
        """The same, its table on `device`."""
        return DDPM(self.alphas_bar.to(device), self.prediction)

    def sample_t(self, n: int, rng: torch.Generator) -> Tensor:
        """(n,) noise levels, uniform, on the generator's device."""
        return torch.randint(0, self.steps, (n,), generator=rng, device=rng.device)

    def add_noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The latent at noise level t, in x0's type (arXiv:2006.11239, eq. 4)."""
        signal, sigma = self._levels(t, x0)
        return (signal * x0.float() + sigma * eps.float()).to(x0.dtype)

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the network should answer at level t, float32; v as in arXiv:2202.00512, app. D."""
        if self.prediction == "epsilon":
            return eps.float()
        signal, sigma = self._levels(t, x0)
        return signal * eps.float() - sigma * x0.float()

    def weight(self, t: Tensor, gamma: float) -> Tensor:
        """(B,) min-SNR-gamma loss weights (arXiv:2303.09556, sec. 3.4); gamma 0: all 1.

        With snr = signal²/sigma²: min(snr, gamma) / snr for eps, min(snr, gamma) / (snr + 1) for v.
        Written without dividing by snr, which is 0 at the last level of a zero-terminal-SNR table.
        """
        alphas = self.alphas_bar[t.to(self.alphas_bar.device)]
        if gamma == 0:
            return torch.ones_like(alphas)
        snr = alphas / (1 - alphas)
        if self.prediction == "epsilon":
            return (gamma / snr).clamp(max=1)
        return snr.clamp(max=gamma) / (snr + 1)

    def _levels(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        alphas = self.alphas_bar[t.to(self.alphas_bar.device)].to(like.device)
        alphas = alphas.view(-1, *[1] * (like.ndim - 1))
        return alphas.sqrt(), (1 - alphas).sqrt()
