"""A loss that two measurements can be compared by: the same pictures under the same noise.

The loss of a step is mostly the noise level that was drawn; this one differs by what was learnt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdlora.device import generator_for
from sdlora.encode import Batch, Dataset
from sdlora.families.base import Family
from sdlora.objective import Draw, Objective, loss_of
from sdlora.settings import TrainSettings

PICTURES, LEVELS = 2, (0.2, 0.5, 0.8)  # shares of the noise levels that are learnt
WORSE = 1.5  # times the base model's loss: what is learnt can only have made it lower


@torch.no_grad()
def steady_loss(
    family: Family, batch: Batch, settings: TrainSettings, levels: Sequence[float]
) -> Tensor:
    """(len(levels) * B,) squared errors at `levels`, shares of all noise levels, without dropout.
    A picture's noise is its own, so that the figure does not hang on how many stand together."""
    plain = Objective(Objective.of(settings, family.noise).noise)
    dice = [generator_for(settings.seed, name, "validation") for name in batch.names]
    shape = batch.latents.shape[1:]
    eps = torch.stack([torch.randn(shape, generator=rng) for rng in dice]).to(family.device)
    batch = batch.to(family.device)
    losses = []
    with family.evaluating():
        for level in levels:
            t = torch.full((len(batch),), round(level * family.noise.steps), device=family.device)
            losses.append(loss_of(family, batch, Draw(t, eps, eps), plain))
    return torch.cat(losses)


@dataclass
class Health:
    """Whether what is learnt is better than nothing, by a few of the pictures that it learns."""

    family: Family
    dataset: Dataset
    settings: TrainSettings
    base: float | None = None  # the base model's loss; None: nobody looked before the first step

    def see_base(self) -> None:
        """To be asked for while the adapter changes nothing yet."""
        self.base = self._loss()

    def complaint(self) -> str:
        """What is wrong with the adapter as it is now, '' for nothing. Waits for the device."""
        if not self.base:
            return ""
        times = self._loss() / self.base
        if times <= WORSE:
            return ""
        return f"its loss on the pictures that it learns is {times:.1f} times the base model's"

    def _loss(self) -> float:
        low, high = self.settings.min_timestep / 1000, self.settings.max_timestep / 1000
        levels = [low + level * (high - low) for level in LEVELS]
        batch = self.dataset.batch(1)[:PICTURES]
        return float(steady_loss(self.family, batch, self.settings, levels).mean())
