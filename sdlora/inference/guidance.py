"""Guidance: the denoiser's prediction for a batch of images, led by their texts.

Several texts per image, each with a weight (AND, composable diffusion, Liu et al. 2022,
arXiv:2206.01714, eq. 11), and texts of different lengths side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from sdlora.adapters import Blend
from sdlora.lora.format.file import LoraFile
from sdlora.models.base import Conditioning, ModelFamily, NetworkInputs
from sdlora.models.stock_sampler import Denoiser

Weights = tuple[float, ...]  # one number for each LoRA whose weight changes


@dataclass(frozen=True, eq=False)
class GuidanceTarget:
    """The texts that one image is denoised towards, each with its weight, and the negative text
    that it is led away from. All are of one length. Compared by identity."""

    negative: Conditioning
    positive: tuple[tuple[Conditioning, float], ...]

    @property
    def is_plain(self) -> bool:
        """True when there is one text of weight 1."""
        return len(self.positive) == 1 and self.positive[0][1] == 1.0


class GuidanceRow(NamedTuple):
    """One text that the denoiser is asked about, and the image, by its place in the batch."""

    image: int
    is_negative: bool
    text: Conditioning


@dataclass(frozen=True)
class GuidanceGroup:
    """Rows that go through the denoiser together, for their texts have one length.

    `places` are the rows' places among all, `images` (B,) those of their images; `lora_weights`
    has, for each LoRA whose weight changes, a number per row.
    """

    places: tuple[int, ...]
    images: Tensor
    conditioning: Conditioning
    lora_weights: tuple[Weights, ...] = ()


@dataclass(frozen=True, eq=False)
class StepConditioning:
    """All that a step's predictions depend on beside the latents: targets by image, and the rows
    that the denoiser is asked about, in groups."""

    targets: tuple[GuidanceTarget, ...]
    rows: tuple[GuidanceRow, ...]
    groups: tuple[GuidanceGroup, ...]

    @cached_property
    def places(self) -> list[tuple[int | None, list[int]]]:
        """By image: the place of its negative row, None without one, and of its positive rows."""
        places: list[tuple[int | None, list[int]]] = [(None, []) for _ in self.targets]
        for place, row in enumerate(self.rows):
            if row.is_negative:
                places[row.image] = (place, places[row.image][1])
            else:
                places[row.image][1].append(place)
        return places


def rows_of(targets: Sequence[GuidanceTarget], is_guided: bool) -> tuple[GuidanceRow, ...]:
    """Return the rows of a batch: negative texts first. Without guidance an image with one text
    needs that alone."""
    rows = [
        GuidanceRow(image, True, target.negative)
        for image, target in enumerate(targets)
        if is_guided or not target.is_plain
    ]
    rows += [
        GuidanceRow(image, False, text)
        for image, target in enumerate(targets)
        for text, _ in target.positive
    ]
    return tuple(rows)


def places_together(rows: Sequence[GuidanceRow], images: int) -> list[list[int]]:
    """Return the places of rows that go through the denoiser together: of one length, and not more
    than a batch of plain prompts has, so that AND takes time and not memory."""
    by_length: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        by_length.setdefault(row.text.length, []).append(place)
    limit = 2 * images
    return [
        places[start : start + limit]
        for places in by_length.values()
        for start in range(0, len(places), limit)
    ]


@dataclass(frozen=True)
class GuidedDenoiser:
    """Classifier-free guidance over one step's conditioning (arXiv:2207.12598, eq. 6).

    `changing` are the LoRAs whose weights `lora_weights` has, in their order.
    """

    family: ModelFamily
    blend: Blend
    conditioning: StepConditioning
    scale: float
    changing: Sequence[LoraFile] = ()
    extras: NetworkInputs | None = None

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the prediction (B,C,h,w) for latents `x` (B,C,h,w) at the timestep `t` ()."""
        predictions = self._predictions(x, t)
        scale = 1.0 if self.family.embeds_guidance else max(self.scale, 1.0)
        guided = []
        pairs = zip(self.conditioning.targets, self.conditioning.places, strict=True)
        for target, (negative, positive) in pairs:
            if negative is None:
                guided.append(predictions[positive[0]])
                continue
            start = total = predictions[negative]
            for place, (_, weight) in zip(positive, target.positive, strict=True):
                total = total + scale * weight * (predictions[place] - start)
            guided.append(total)
        return torch.stack(guided)

    def _predictions(self, x: Tensor, t: Tensor) -> dict[int, Tensor]:
        """Return the prediction (C,h,w) of every row by its place."""
        predictions: dict[int, Tensor] = {}
        for group in self.conditioning.groups:
            if self.changing:
                weights = zip(self.changing, group.lora_weights, strict=True)
                self.blend.set_row_weights((file, numbers, (0.0,)) for file, numbers in weights)
            prediction = self.family.predict(
                x[group.images], t, group.conditioning, self.scale, self.extras
            )
            predictions |= dict(zip(group.places, prediction, strict=True))
        return predictions


def guided(
    family: ModelFamily,
    blend: Blend,
    conditioning: StepConditioning,
    scale: float,
    changing: Sequence[LoraFile] = (),
) -> Denoiser:
    """Return the denoiser of one step: (latents, timestep) -> prediction."""
    return GuidedDenoiser(family, blend, conditioning, scale, changing)
