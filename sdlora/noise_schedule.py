"""Noise schedules: how noise is added to latents, and what the denoiser is trained to predict.

`DDPM` (arXiv:2006.11239) is the schedule of Stable Diffusion 1, 2 and XL, `RectifiedFlow`
(arXiv:2403.03206) that of SD 3 and FLUX; training and sampling use the protocol `NoiseSchedule`.
Shapes: x0, noise and their mixtures (B,C,h,w); t (B,), long in 0..999 of DDPM, float32 above 0 and
below 1000 of flows. Arithmetic is done in float32 whatever the latents' type.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, TypedDict

import torch
from diffusers import DDPMScheduler
from torch import Tensor
from torch.nn.functional import interpolate

from sdlora.errors import ModelError, SettingsError
from sdlora.messages import Setting

Prediction = Literal["epsilon", "v_prediction", "flow"]


class _RandomOptions(TypedDict):
    generator: torch.Generator
    device: torch.device
    dtype: torch.dtype


@dataclass(frozen=True)
class TimestepSampling:
    """Distribution of the noise levels u that a training draws: u in 0..1, 1 is all noise.

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
    def is_uniform(self) -> bool:
        """True when all levels of the range are equally likely."""
        return not self.logit_normal and self.shift == 1

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        """(n,) float64 on the generator's device."""
        options: _RandomOptions = {
            "generator": rng, "device": rng.device, "dtype": torch.float64,
        }  # fmt: skip
        if self.logit_normal:
            u = torch.sigmoid(self.mean + self.spread * torch.randn(n, **options))
        else:
            u = torch.rand(n, **options)
        u = self.shift * u / (1 + (self.shift - 1) * u)
        return self.low + (self.high - self.low) * u


UNIFORM = TimestepSampling()


@dataclass(frozen=True)
class LossWeighting:
    """Weight of a level's loss, by name: flat, min_snr (up to `gamma`), debiased, or for flows
    sigma_sqrt and cosmap."""

    name: str = "flat"
    gamma: float = 0.0


FLAT = LossWeighting()


class NoiseSchedule(Protocol):
    """The way from latents to noise that a model was trained on. Immutable."""

    @property
    def num_steps(self) -> int:
        """Noise levels; 1000 in every model so far."""

    @property
    def prediction(self) -> Prediction:
        """The quantity that the denoiser predicts."""

    def to(self, device: torch.device) -> NoiseSchedule:
        """Return the same schedule with its tables on `device`."""

    def sample_timesteps(
        self, n: int, rng: torch.Generator, sampling: TimestepSampling = UNIFORM
    ) -> Tensor:
        """Return (n,) timesteps on the generator's device."""

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return the latents at level t, in x0's type."""

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return the right prediction at level t, float32."""

    def snr(self, t: Tensor) -> Tensor:
        """Return (B,) signal² / noise² at level t."""

    def loss_weight(self, t: Tensor, weighting: LossWeighting = FLAT) -> Tensor:
        """Return (B,) weights of the levels' losses."""

    def check_weighting(self, weighting: LossWeighting) -> None:
        """Raise SettingsError when the weighting has no meaning for this schedule."""

    @property
    def allows_zero_terminal_snr(self) -> bool:
        """True when the schedule can be rescaled to end in noise alone."""

    def zero_terminal_snr(self) -> NoiseSchedule:
        """Return the schedule rescaled to end in noise alone. SettingsError: it cannot be."""


@dataclass(frozen=True)
class DDPM:
    """x_t = signal[t] x0 + sigma[t] eps; the denoiser predicts eps, or v of arXiv:2202.00512."""

    alphas_bar: Tensor  # (steps,) float32: share of the variance that is still signal at t
    prediction: Prediction

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> DDPM:
        """Read any diffusers scheduler's config. ModelError: its prediction is not known."""
        prediction = config.get("prediction_type", "epsilon")
        alphas_bar = DDPMScheduler.from_config(config).alphas_cumprod.float()
        if prediction == "epsilon":
            return cls(alphas_bar, "epsilon")
        if prediction == "v_prediction":
            return cls(alphas_bar, "v_prediction")
        raise ModelError(
            "this model predicts {prediction!r}; {known} can be trained",
            prediction=prediction, known=["epsilon", "v_prediction"],
        )  # fmt: skip

    @property
    def num_steps(self) -> int:
        """Noise levels; 1000 in every Stable Diffusion."""
        return len(self.alphas_bar)

    def to(self, device: torch.device) -> DDPM:
        """Return the same schedule with its table on `device`."""
        return replace(self, alphas_bar=self.alphas_bar.to(device))

    @property
    def allows_zero_terminal_snr(self) -> bool:
        """True for v: of noise alone, epsilon is what the denoiser was given."""
        return self.prediction == "v_prediction"

    def zero_terminal_snr(self) -> DDPM:
        """Return the same levels, the last of them noise alone (arXiv:2305.08891, algorithm 1):
        without it a picture's mean brightness is never learnt to be far from grey."""
        if not self.allows_zero_terminal_snr:
            raise SettingsError(
                "{setting} needs a model that predicts v: this one predicts the noise, of "
                "which a picture of noise alone says nothing new. Leave it off",
                setting=Setting("zero_terminal_snr"),
            )
        roots = self.alphas_bar.double().sqrt()
        first, last = roots[0], roots[-1]
        roots = (roots - last) * first / (first - last)
        return replace(self, alphas_bar=roots.square().float())

    def sample_timesteps(
        self, n: int, rng: torch.Generator, sampling: TimestepSampling = UNIFORM
    ) -> Tensor:
        """(n,) long, on the generator's device."""
        if sampling.is_uniform:
            low, high = (round(end * self.num_steps) for end in (sampling.low, sampling.high))
            return torch.randint(low, high, (n,), generator=rng, device=rng.device)
        return (sampling.sample(n, rng) * self.num_steps).long().clamp(max=self.num_steps - 1)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The latents at noise level t, in x0's type (arXiv:2006.11239, eq. 4)."""
        signal, sigma = self._levels(t, x0)
        return (signal * x0.float() + sigma * noise.float()).to(x0.dtype)

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """eps, or v as in arXiv:2202.00512, app. D; float32."""
        if self.prediction == "epsilon":
            return noise.float()
        signal, sigma = self._levels(t, x0)
        return signal * noise.float() - sigma * x0.float()

    def check_weighting(self, weighting: LossWeighting) -> None:
        """Raise SettingsError when the weighting is one of flows."""
        if weighting.name not in _DDPM_WEIGHTS:
            raise _unfit_weighting(weighting, tuple(_DDPM_WEIGHTS))

    def loss_weight(self, t: Tensor, weighting: LossWeighting = FLAT) -> Tensor:
        """(B,) float32, by the name in `weighting`."""
        return _DDPM_WEIGHTS[weighting.name](self, t, weighting.gamma)

    def snr(self, t: Tensor) -> Tensor:
        """(B,) signal² / sigma²."""
        alphas = self.alphas_bar[t.to(self.alphas_bar.device)]
        return alphas / (1 - alphas)

    def _levels(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        alphas = self.alphas_bar[t.to(self.alphas_bar.device)].to(like.device)
        alphas = alphas.view(-1, *[1] * (like.ndim - 1))
        return alphas.sqrt(), (1 - alphas).sqrt()


def _flat_weight(noise: DDPM, t: Tensor, gamma: float) -> Tensor:
    return torch.ones_like(noise.alphas_bar[t.to(noise.alphas_bar.device)])


def _min_snr_weight(noise: DDPM, t: Tensor, gamma: float) -> Tensor:
    """min-SNR-gamma loss weights (arXiv:2303.09556, sec. 3.4); gamma 0: all 1.

    With snr = signal²/sigma²: min(snr, gamma) / snr for eps, min(snr, gamma) / (snr + 1) for v.
    Written without dividing by snr, which is 0 at the last level of a zero-terminal-SNR table.
    """
    if gamma == 0:
        return _flat_weight(noise, t, gamma)
    snr = noise.snr(t)
    if noise.prediction == "epsilon":
        return (gamma / snr).clamp(max=1)
    return snr.clamp(max=gamma) / (snr + 1)


def _debiased_weight(noise: DDPM, t: Tensor, gamma: float) -> Tensor:
    """Loss weights 1 / sqrt(snr) for eps (arXiv:2310.08442). The same asked of v, whose squared
    error is (snr + 1) / snr times that of eps: sqrt(snr) / (snr + 1)."""
    snr = noise.snr(t)
    return snr.rsqrt() if noise.prediction == "epsilon" else snr.sqrt() / (snr + 1)


_DDPM_WEIGHTS: dict[str, Callable[[DDPM, Tensor, float], Tensor]] = {
    "flat": _flat_weight,
    "min_snr": _min_snr_weight,
    "debiased": _debiased_weight,
}


@dataclass(frozen=True)
class RectifiedFlow:
    """x_t = (1 - sigma) x0 + sigma eps along a straight line, with sigma = t / 1000; the denoiser
    predicts its direction, eps - x0 (arXiv:2210.02747; arXiv:2403.03206, sec. 2)."""

    num_steps: int = field(default=1000, init=False)
    prediction: Prediction = field(default="flow", init=False)

    def to(self, device: torch.device) -> RectifiedFlow:
        """Return the schedule itself, which has no tables."""
        return self

    @property
    def allows_zero_terminal_snr(self) -> bool:
        """False: a flow ends in noise alone already."""
        return False

    def zero_terminal_snr(self) -> RectifiedFlow:
        """Raise SettingsError: there is nothing to rescale."""
        raise SettingsError(
            "{setting} is for models that predict v: this one is a rectified flow, which begins "
            "from noise alone as it is. Leave it off",
            setting=Setting("zero_terminal_snr"),
        )

    def sample_timesteps(
        self, n: int, rng: torch.Generator, sampling: TimestepSampling = UNIFORM
    ) -> Tensor:
        """(n,) float32 above 0 and below 1000, on the generator's device."""
        tiny = torch.finfo(torch.float32).eps
        return (self.num_steps * sampling.sample(n, rng).clamp(tiny, 1 - tiny)).float()

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The latents at level t, in x0's type."""
        sigma = _as_column(t / self.num_steps, x0)
        return ((1 - sigma) * x0.float() + sigma * noise.float()).to(x0.dtype)

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The direction from latents to noise, the same at every level; float32."""
        return noise.float() - x0.float()

    def snr(self, t: Tensor) -> Tensor:
        """(B,) ((1 - sigma) / sigma)²."""
        sigma = t.float() / self.num_steps
        return ((1 - sigma) / sigma).square()

    def check_weighting(self, weighting: LossWeighting) -> None:
        """Raise SettingsError when the weighting is one of DDPM."""
        if weighting.name not in FLOW_WEIGHTS:
            raise _unfit_weighting(weighting, tuple(FLOW_WEIGHTS))

    def loss_weight(self, t: Tensor, weighting: LossWeighting = FLAT) -> Tensor:
        """(B,) beside the density of the levels (arXiv:2403.03206, sec. 3.1)."""
        return FLOW_WEIGHTS[weighting.name](t.float() / self.num_steps)


# By the name that diffusers has for them; sigma in 0..1
FLOW_WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "flat": torch.ones_like,
    "sigma_sqrt": lambda sigma: sigma**-2,
    "cosmap": lambda sigma: 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2)),  # eq. 21
}


def _unfit_weighting(weighting: LossWeighting, known: tuple[str, ...]) -> SettingsError:
    return SettingsError(
        "{setting} = {given} has no meaning for this model's noise; it knows {known}",
        setting=Setting("loss_weighting"), given=weighting.name, known=", ".join(known),
    )  # fmt: skip


def dynamic_shift(
    tokens: int, *, base: float = 0.5, highest: float = 1.15, low: int = 256, high: int = 4096
) -> float:
    """Return mu, the logarithm of the shift of the levels for a picture of so many tokens: on a
    line through `base` at `low` and `highest` at `high` tokens (black-forest-labs/flux,
    sampling.py, get_lin_function)."""
    slope = (highest - base) / (high - low)
    return tokens * slope + (base - slope * low)


def _as_column(vector: Tensor, like: Tensor) -> Tensor:
    """A number per row, shaped to be multiplied with `like` (B,...)."""
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
