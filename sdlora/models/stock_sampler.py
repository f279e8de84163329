"""A diffusers scheduler as a sampler: one step from a sigma to the next, its quirks kept inside.

Input scaling, the place in the table, options of `step` and the scale of the first noise differ
between the stock schedulers; what they compute is kept to the bit.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdlora.models.protocols import Scheduler

# (latents as the network reads them, timestep) -> the network's prediction
Denoiser = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Sigmas:
    """The noise levels of a pass: `timesteps` (n,) in the model's time, one for each step, and
    `begin`, the place of the first in the whole schedule."""

    timesteps: Tensor
    begin: int = 0

    def __len__(self) -> int:
        return len(self.timesteps)

    def last(self, count: int) -> Sigmas:
        """Return the last `count` levels, as a second pass takes them."""
        skipped = len(self.timesteps) - count
        return Sigmas(self.timesteps[skipped:], self.begin + skipped)


@dataclass(frozen=True)
class StepState:
    """Latents between two steps: `step` of the user's have been taken, `x` (B,C,h,w) is what the
    next begins from, `x0` the clean latents that the last one aimed at; None before the first."""

    step: int
    x: Tensor
    x0: Tensor | None = None


class StockSampler:
    """One pass by a fresh diffusers scheduler, which remembers the steps before."""

    def __init__(
        self, scheduler: Scheduler, steps: int, device: torch.device, options: Mapping[str, Any]
    ) -> None:
        self._scheduler = scheduler
        scheduler.set_timesteps(steps, device=device, **options)
        self.sigmas = Sigmas(scheduler.timesteps)
        self._step_options = inspect.signature(scheduler.step).parameters.keys()

    def begin_at(self, sigmas: Sigmas) -> None:
        """Make the first of `sigmas` the first step."""
        if sigmas.begin and hasattr(self._scheduler, "set_begin_index"):
            self._scheduler.set_begin_index(sigmas.begin)  # DDIM finds its place by the timestep

    def first_latents(self, noise: Tensor) -> Tensor:
        """Return unit noise (B,C,h,w) at the strength that the first step wants."""
        scale = getattr(self._scheduler, "init_noise_sigma", 1.0)
        return noise * scale

    def add_noise(self, x0: Tensor, noise: Tensor, sigmas: Sigmas) -> Tensor:
        """Return latents (B,C,h,w) with noise of the first level of `sigmas`."""
        t = sigmas.timesteps[:1].repeat(len(x0))
        scheduler: Any = self._scheduler
        if hasattr(scheduler, "add_noise"):
            noised: Tensor = scheduler.add_noise(x0, noise, t)
        else:  # of flows, in this order
            noised = scheduler.scale_noise(x0, t, noise)
        return noised

    def step(
        self,
        denoiser: Denoiser,
        state: StepState,
        sigmas: Sigmas,
        generators: Sequence[torch.Generator],
    ) -> StepState:
        """Take the next of the user's steps; `generators`, one per row, draw what it adds."""
        scheduler, t = self._scheduler, sigmas.timesteps[state.step]
        scale = getattr(scheduler, "scale_model_input", None)
        prediction = denoiser(scale(state.x, t) if scale else state.x, t)
        offered = {"eta": 0.0, "generator": list(generators)}
        options = {name: offered[name] for name in offered.keys() & self._step_options}
        taken = scheduler.step(prediction, t, state.x, **options)
        x0 = getattr(taken, "pred_original_sample", None)
        outputs = getattr(scheduler, "model_outputs", None)
        if x0 is None and outputs:
            x0 = outputs[-1]  # of the solvers that predict clean latents
        return StepState(state.step + 1, taken.prev_sample, x0)
