"""Diffusion loss: noised latents of a step, and the cost of the prediction for them.

Timesteps and noise are random, from a generator of the step's own; everything else follows from
the settings. Each row of a batch counts by itself, so how a batch is split changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sdlora.models.base import ModelFamily
from sdlora.noise_schedule import (
    FLAT,
    UNIFORM,
    LossWeighting,
    NoiseSchedule,
    TimestepSampling,
    noise_like,
)
from sdlora.settings.train import TrainSettings
from sdlora.training.latent_dataset import LatentBatch


@dataclass(frozen=True)
class NoisedLatents:
    """Random numbers of a batch: timesteps t (B,), and noise (B,C,h,w) as the denoiser is to
    predict it (`eps`) and as it is added (`mixed`)."""

    t: Tensor
    eps: Tensor
    mixed: Tensor

    def __getitem__(self, rows: slice) -> NoisedLatents:
        """Some of the rows."""
        return NoisedLatents(self.t[rows], self.eps[rows], self.mixed[rows])

    def to(self, device: torch.device) -> NoisedLatents:
        """The same on `device`, copied without waiting for it."""
        return NoisedLatents(
            *(x.to(device, non_blocking=True) for x in (self.t, self.eps, self.mixed))
        )


@dataclass(frozen=True)
class DiffusionLoss:
    """Noise, weights and distance, by the settings; `DiffusionLoss(noise)` is the plain loss:
    all levels alike, squared errors (arXiv:2006.11239, eq. 14)."""

    noise: NoiseSchedule
    sampling: TimestepSampling = UNIFORM
    weighting: LossWeighting = FLAT
    loss: str = "l2"
    threshold: float = 0.1
    schedule: str = "constant"
    offset: float = 0.0
    layers: int = 0
    discount: float = 1.0
    perturbation: float = 0.0

    @classmethod
    def from_settings(cls, settings: TrainSettings, noise: NoiseSchedule) -> DiffusionLoss:
        """Build it for a model with that noise. SettingsError: they do not go together."""
        if settings.zero_terminal_snr:
            noise = noise.zero_terminal_snr()
        weighting = LossWeighting(settings.loss_weighting, settings.min_snr_gamma)
        noise.check_weighting(weighting)
        sampling = TimestepSampling(
            settings.timestep_density == "logit_normal", settings.timestep_mean,
            settings.timestep_spread, settings.timestep_shift,
            settings.min_timestep / 1000, settings.max_timestep / 1000,
        )  # fmt: skip
        return cls(
            noise, sampling, weighting, loss=settings.loss, threshold=settings.huber_threshold,
            schedule=settings.huber_schedule, offset=settings.noise_offset,
            layers=settings.multires_noise, discount=settings.multires_discount,
            perturbation=settings.input_perturbation,
        )  # fmt: skip

    def sample(self, shape: torch.Size, rng: torch.Generator) -> NoisedLatents:
        """Draw timesteps and noise for latents of this shape, on the CPU.

        With input perturbation the denoiser sees eps + gamma xi and is to predict eps
        (arXiv:2301.11706).
        """
        t = self.noise.sample_timesteps(shape[0], rng, self.sampling)
        eps = noise_like(shape, rng, self.offset, self.layers, self.discount)
        if not self.perturbation:
            return NoisedLatents(t, eps, eps)
        return NoisedLatents(t, eps, eps + self.perturbation * torch.randn(shape, generator=rng))

    def distance(self, prediction: Tensor, target: Tensor, t: Tensor) -> Tensor:
        """Return the error (B,C,h,w) of every number by itself."""
        difference = prediction - target
        if self.loss == "l2":
            return difference.square()
        if self.loss == "l1":
            return difference.abs()
        c = _SCHEDULES[self.schedule](self.threshold, self.noise, t).view(-1, 1, 1, 1)
        root = (difference.square() + c.square()).sqrt() - c
        return 2 * c * root if self.loss == "huber" else 2 * root


# The size c at which huber turns from squared to plain: threshold, noise, t (B,) -> (B,)
# (pseudo-Huber with a schedule, arXiv:2403.16728; kohya-ss/sd-scripts, train_util.py)
_SCHEDULES: dict[str, Callable[[float, NoiseSchedule, Tensor], Tensor]] = {
    "constant": lambda c, noise, t: torch.full_like(t, c, dtype=torch.float32),
    "exponential": lambda c, noise, t: c ** (t.float() / noise.num_steps),
    "snr": lambda c, noise, t: (1 - c) / (1 + noise.snr(t).rsqrt()).square() + c,
}


def loss_of(
    family: ModelFamily, batch: LatentBatch, draw: NoisedLatents, objective: DiffusionLoss
) -> Tensor:
    """Return the losses (B,) of a batch, weighted by level.

    Where there is a mask it is the mean over what the mask shows, so that a small subject counts as
    much as a large one. A row's own weight is that of prior preservation (arXiv:2208.12242, eq. 2).
    """
    x0, noise = batch.latents, objective.noise
    conditioning = batch.conditioning
    if conditioning is None:  # the text encoder is trained, so captions are encoded in every step
        conditioning = family.encode_captions(batch.captions)
    conditioning = family.condition_on_size(
        conditioning.to(family.device, family.dtype), batch.sizes
    )
    with family.autocast():
        x = noise.add_noise(x0, draw.mixed, draw.t)
        predicted = family.predict(x, draw.t, conditioning)
    target = noise.target(x0, draw.eps, draw.t)
    errors = objective.distance(predicted.float(), target, draw.t).mean(1)  # (B,h,w)
    if batch.mask is None:
        losses = errors.flatten(1).mean(1)
    else:
        shown = batch.mask.float()[:, 0]
        losses = (errors * shown).sum((1, 2)) / shown.sum((1, 2)).clamp(min=1e-6)
    losses = noise.loss_weight(draw.t, objective.weighting) * losses
    return losses if batch.weights is None else batch.weights * losses
