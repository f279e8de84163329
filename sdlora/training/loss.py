"""What is asked of the network in a step, and what its answer costs.

Chance decides noise levels and noise, from a generator of the step's own; everything else follows
from the settings. Each row of a batch is judged by itself, so how a batch is split changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sdlora.errors import SettingsError
from sdlora.messages import Setting
from sdlora.models.base import Family
from sdlora.noise_schedule import ALL_LEVELS, DDPM, TimestepSampling, noise_like
from sdlora.settings.train import TrainSettings
from sdlora.training.latent_dataset import LatentBatch


@dataclass(frozen=True)
class NoisedLatents:
    """What chance decided for a batch: levels t (B,), and noise (B,C,h,w) as the network is to tell
    it and as it is mixed in."""

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
    """Noise, weights and distance, as settings have them; `DiffusionLoss(noise)` is the plain loss:
    all levels alike, squared errors (arXiv:2006.11239, eq. 14)."""

    noise: DDPM
    levels: TimestepSampling = ALL_LEVELS
    weighting: str = "flat"
    gamma: float = 0.0
    loss: str = "l2"
    threshold: float = 0.1
    schedule: str = "constant"
    offset: float = 0.0
    layers: int = 0
    discount: float = 1.0
    perturbation: float = 0.0

    @classmethod
    def of(cls, settings: TrainSettings, noise: DDPM) -> DiffusionLoss:
        """For a model with that noise. SettingsError: they do not go together."""
        if settings.zero_terminal_snr:
            if noise.prediction == "epsilon":
                raise SettingsError(
                    "{setting} needs a model that predicts v: this one predicts the noise, of "
                    "which a picture of noise alone says nothing new. Leave it off",
                    setting=Setting("zero_terminal_snr"),
                )
            noise = noise.rescaled()
        levels = TimestepSampling(
            settings.timestep_density == "logit_normal", settings.timestep_mean,
            settings.timestep_spread, settings.timestep_shift,
            settings.min_timestep / 1000, settings.max_timestep / 1000,
        )  # fmt: skip
        return cls(
            noise, levels, settings.loss_weighting, settings.min_snr_gamma, settings.loss,
            settings.huber_threshold, settings.huber_schedule, settings.noise_offset,
            settings.multires_noise, settings.multires_discount, settings.input_perturbation,
        )  # fmt: skip

    def draw(self, shape: torch.Size, rng: torch.Generator) -> NoisedLatents:
        """For latents of this shape, on the CPU.

        With input perturbation the network sees eps + gamma xi and is to tell eps
        (arXiv:2301.11706).
        """
        t = self.noise.sample_t(shape[0], rng, self.levels)
        eps = noise_like(shape, rng, self.offset, self.layers, self.discount)
        if not self.perturbation:
            return NoisedLatents(t, eps, eps)
        return NoisedLatents(t, eps, eps + self.perturbation * torch.randn(shape, generator=rng))

    def weight(self, t: Tensor) -> Tensor:
        """(B,) of the levels' losses."""
        if self.weighting == "debiased":
            return self.noise.debiased(t)
        return self.noise.weight(t, self.gamma if self.weighting == "min_snr" else 0.0)

    def distance(self, answer: Tensor, target: Tensor, t: Tensor) -> Tensor:
        """(B,C,h,w) of every number by itself."""
        difference = answer - target
        if self.loss == "l2":
            return difference.square()
        if self.loss == "l1":
            return difference.abs()
        c = _SCHEDULES[self.schedule](self.threshold, self.noise, t).view(-1, 1, 1, 1)
        root = (difference.square() + c.square()).sqrt() - c
        return 2 * c * root if self.loss == "huber" else 2 * root


# The size c at which huber turns from squared to plain: threshold, noise, t (B,) -> (B,)
# (pseudo-Huber with a schedule, arXiv:2403.16728; kohya-ss/sd-scripts, train_util.py)
_SCHEDULES: dict[str, Callable[[float, DDPM, Tensor], Tensor]] = {
    "constant": lambda c, noise, t: torch.full_like(t, c, dtype=torch.float32),
    "exponential": lambda c, noise, t: c ** (t.float() / noise.steps),
    "snr": lambda c, noise, t: (1 - c) / (1 + noise.snr(t).rsqrt()).square() + c,
}


def loss_of(
    family: Family, batch: LatentBatch, draw: NoisedLatents, objective: DiffusionLoss
) -> Tensor:
    """(B,) of a batch, each row by what `family` answers to it, weighted.

    Where there is a mask it is the mean over what the mask shows, so that a small subject counts as
    much as a large one. A row's own weight is that of prior preservation (arXiv:2208.12242, eq. 2).
    """
    x0, noise = batch.latents, objective.noise
    if not batch.cond:  # the text encoder learns, so captions mean something new in every step
        batch = replace(batch, cond=family.encode_captions(batch.captions))
    predicted = family.predict(noise.add_noise(x0, draw.mixed, draw.t), draw.t, batch)
    target = noise.target(x0, draw.eps, draw.t)
    errors = objective.distance(predicted.float(), target, draw.t).mean(1)  # (B,h,w)
    if batch.mask is None:
        losses = errors.flatten(1).mean(1)
    else:
        shown = batch.mask.float()[:, 0]
        losses = (errors * shown).sum((1, 2)) / shown.sum((1, 2)).clamp(min=1e-6)
    losses = objective.weight(draw.t) * losses
    return losses if batch.weights is None else batch.weights * losses
