"""How noise is added to a latent and what the network learns to answer.

`DDPM` (arXiv:2006.11239) is what Stable Diffusion 1, 2 and XL were trained by, `RectifiedFlow`
(arXiv:2403.03206) what SD 3 and FLUX were. Shapes: x0, eps and their mixtures (B,C,h,w); t (B,),
long in 0..steps-1 of DDPM, float32 above 0 and below 1000 of flows. Arithmetic is done in float32
whatever the latents' type.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor
from torch.nn.functional import interpolate

from sdlora.errors import ModelError

PREDICTIONS = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class TimestepSampling:
    """Which noise levels a training looks at, and how often: u in 0..1, 1 is all noise.

    Uniform, or logit-normal: the sigmoid of a normal number (arXiv:2403.03206, eq. 19). Then
    shifted towards more noise, shift u / (1 + (shift - 1) u) (eq. 23), and at last into the range.
    """

    logit_normal: bool = False
    mean: float = 0.0
    spread: float = 1.0
    shift: float = 1.0
    low: float = 0.0
    high: float = 1.0

    @property
    def is_plain(self) -> bool:
        """Whether all levels are equally likely."""
        return not self.logit_normal and self.shift == 1

    def draw(self, n: int, rng: torch.Generator) -> Tensor:
        """(n,) float64 on the generator's device."""
        numbers: dict[str, Any] = {"generator": rng, "device": rng.device, "dtype": torch.float64}
        if self.logit_normal:
            u = torch.sigmoid(self.mean + self.spread * torch.randn(n, **numbers))
        else:
            u = torch.rand(n, **numbers)
        u = self.shift * u / (1 + (self.shift - 1) * u)
        return self.low + (self.high - self.low) * u


ALL_LEVELS = TimestepSampling()


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
                "this model predicts {prediction!r}; {known} can be trained",
                prediction=prediction,
                known=list(PREDICTIONS),
            )
        return cls(DDPMScheduler.from_config(config).alphas_cumprod.float(), prediction)

    @property
    def steps(self) -> int:
        """Noise levels; 1000 in every Stable Diffusion."""
        return len(self.alphas_bar)

    def to(self, device: torch.device) -> DDPM:
        """The same, its table on `device`."""
        return DDPM(self.alphas_bar.to(device), self.prediction)

    def rescaled(self) -> DDPM:
        """The same levels, the last of them noise alone (zero terminal SNR, arXiv:2305.08891,
        algorithm 1): without it a picture's mean brightness is never learnt to be far from grey."""
        roots = self.alphas_bar.double().sqrt()
        first, last = roots[0], roots[-1]
        roots = (roots - last) * first / (first - last)
        return DDPM(roots.square().float(), self.prediction)

    def sample_t(
        self, n: int, rng: torch.Generator, levels: TimestepSampling = ALL_LEVELS
    ) -> Tensor:
        """(n,) noise levels on the generator's device."""
        if levels.is_plain:
            low, high = (round(its * self.steps) for its in (levels.low, levels.high))
            return torch.randint(low, high, (n,), generator=rng, device=rng.device)
        return (levels.draw(n, rng) * self.steps).long().clamp(max=self.steps - 1)

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
        snr = self.snr(t)
        if self.prediction == "epsilon":
            return (gamma / snr).clamp(max=1)
        return snr.clamp(max=gamma) / (snr + 1)

    def debiased(self, t: Tensor) -> Tensor:
        """(B,) loss weights 1 / sqrt(snr) for eps (arXiv:2310.08442). The same asked of v, whose
        squared error is (snr + 1) / snr times that of eps: sqrt(snr) / (snr + 1)."""
        snr = self.snr(t)
        return snr.rsqrt() if self.prediction == "epsilon" else snr.sqrt() / (snr + 1)

    def snr(self, t: Tensor) -> Tensor:
        """(B,) signal² / sigma²."""
        alphas = self.alphas_bar[t.to(self.alphas_bar.device)]
        return alphas / (1 - alphas)

    def _levels(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        alphas = self.alphas_bar[t.to(self.alphas_bar.device)].to(like.device)
        alphas = alphas.view(-1, *[1] * (like.ndim - 1))
        return alphas.sqrt(), (1 - alphas).sqrt()


@dataclass(frozen=True)
class RectifiedFlow:
    """x_t = (1 - sigma) x0 + sigma eps along a straight line, with sigma = t / 1000; the network
    answers its direction, eps - x0 (arXiv:2210.02747; arXiv:2403.03206, sec. 2)."""

    levels: TimestepSampling = field(default_factory=lambda: TimestepSampling(logit_normal=True))

    def sample_t(self, n: int, rng: torch.Generator) -> Tensor:
        """(n,) float32 levels on the generator's device."""
        tiny = torch.finfo(torch.float32).eps
        return (1000 * self.levels.draw(n, rng).clamp(tiny, 1 - tiny)).float()

    def add_noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The latent at level t, in x0's type."""
        sigma = _beside(t / 1000, x0)
        return ((1 - sigma) * x0.float() + sigma * eps.float()).to(x0.dtype)

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the network should answer, the same at every level; float32."""
        return eps.float() - x0.float()

    def weight(self, t: Tensor, name: str = "flat") -> Tensor:
        """(B,) loss weights beside the density of the levels (arXiv:2403.03206, sec. 3.1)."""
        return FLOW_WEIGHTS[name](t.float() / 1000)


# By the name that diffusers has for them; sigma in 0..1
FLOW_WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "flat": torch.ones_like,
    "sigma_sqrt": lambda sigma: sigma**-2,
    "cosmap": lambda sigma: 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2)),  # eq. 21
}


def flux_shift(tokens: int) -> float:
    """How far FLUX shifts levels for a picture of so many tokens: exp of a line through 0.5 at 256
    and 1.15 at 4096 (black-forest-labs/flux, sampling.py, get_lin_function)."""
    return math.exp(0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256))


def _beside(vector: Tensor, like: Tensor) -> Tensor:
    return vector.to(like.device).float().view(-1, *[1] * (like.ndim - 1))


def noise_like(
    shape: torch.Size, rng: torch.Generator, offset: float, layers: int, discount: float
) -> Tensor:
    """(B,C,h,w) noise for pictures, each row with a variance that depends on itself alone.

    `layers` coarser ones are added, each 2 to 4 times coarser than the one before and `discount`
    times as strong, and every row brought back to unit variance (Whitaker, Multi-Resolution Noise
    for Diffusion Model Training, 2023; the same as kohya-ss/sd-scripts,
    custom_train_functions.py, but by row). `offset` is the strength of one number for a whole
    channel (Guttenberg, Diffusion with Offset Noise, 2023).
    """
    noise = torch.randn(shape, generator=rng)
    rows, channels, height, width = shape
    h, w, strength = height, width, 1.0
    for _ in range(layers):
        coarser = 2 + 2 * float(torch.rand((), generator=rng))
        h, w, strength = max(int(h / coarser), 1), max(int(w / coarser), 1), strength * discount
        layer = torch.randn(rows, channels, h, w, generator=rng)
        noise += strength * interpolate(layer, (height, width), mode="bilinear")
        if 1 in (h, w):
            break
    if layers:
        noise /= noise.flatten(1).std(1).view(-1, 1, 1, 1)
    if offset:
        noise += offset * torch.randn(rows, channels, 1, 1, generator=rng)
    return noise
