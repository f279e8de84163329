"""From noise to latents: a stock scheduler, the network, and what each image is to become.

For one plain text per image this computes what the stock pipelines compute, to the bit. A loop of
our own is for the rest: several texts per image, each with a weight (AND, composable diffusion, Liu
et al. 2022, arXiv:2206.01714, eq. 11), texts of different lengths side by side, and texts and LoRA
weights that are others at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from sdlora.image_metadata.sampler_names import SAMPLER_TITLES
from sdlora.models.base import Family

Cond = Mapping[str, Tensor]  # what the network reads of a text, without a batch
Work = Generator[None, None, Tensor]  # pauses after every step; the latents (B,C,h,w) at last


@dataclass(frozen=True)
class Sampler:
    """One way to take the noise away: its names in A1111, and diffusers' class and options."""

    title: str
    schedule: str
    kind: Any
    options: dict[str, Any] = field(default_factory=dict)


_CLASSES: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddim": (DDIMScheduler, {}),
    "euler": (EulerDiscreteScheduler, {}),
    "euler_a": (EulerAncestralDiscreteScheduler, {}),
    "dpm++_2m": (DPMSolverMultistepScheduler, {}),
    "dpm++_2m_karras": (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "dpm++_2m_sde": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": (UniPCMultistepScheduler, {}),
}
SAMPLERS = {name: Sampler(*titles, *_CLASSES[name]) for name, titles in SAMPLER_TITLES.items()}


@dataclass(frozen=True, eq=False)
class GuidanceTarget:
    """What one image is denoised towards: each wanted text by its weight, away from `unwanted`.

    All texts of an aim have one length. Compared by identity.
    """

    unwanted: Cond
    wanted: tuple[tuple[Cond, float], ...]

    @property
    def is_plain(self) -> bool:
        """Whether there is one text of weight 1."""
        return len(self.wanted) == 1 and self.wanted[0][1] == 1.0


class GuidanceRow(NamedTuple):
    """One text that the network is asked about, of which image, and whether it is unwanted."""

    image: int
    is_unwanted: bool
    cond: Cond


@dataclass(frozen=True)
class _GuidanceGroup:
    """Rows that go through the network together, for their texts have one length."""

    rows: list[GuidanceRow]
    places: list[int]
    images: Tensor
    cond: dict[str, Tensor]


class ClassifierFreeGuidance:
    """The network's answer to a batch of images, led by their aims (arXiv:2207.12598, eq. 6).

    `before` is told the rows ahead of each call of the network. Without guidance an image with one
    text is led by that alone.
    """

    def __init__(
        self,
        family: Family,
        guidance: float,
        sizes: Tensor,
        before: Callable[[list[GuidanceRow]], None],
    ) -> None:
        self.family, self.guidance, self.sizes, self.before = family, guidance, sizes, before
        self.aims: Sequence[GuidanceTarget] = ()
        self._groups: list[_GuidanceGroup] = []
        self._places: list[tuple[int | None, list[int]]] = []  # unwanted and wanted, by image

    def lead(self, aims: Sequence[GuidanceTarget]) -> None:
        """Where to go from now on."""
        if aims == self.aims:
            return
        self.aims, rows = aims, list[GuidanceRow]()
        guided = self.guidance > 1
        places: list[tuple[int | None, list[int]]] = []
        for image, aim in enumerate(aims):
            needed = guided or not aim.is_plain
            places.append((len(rows) if needed else None, []))
            rows += [GuidanceRow(image, True, aim.unwanted)] * needed
        for image, aim in enumerate(aims):
            for cond, _ in aim.wanted:
                places[image][1].append(len(rows))
                rows.append(GuidanceRow(image, False, cond))
        self._places, self._groups = places, self._grouped(rows)

    def __call__(self, latents: Tensor, t: Tensor) -> Tensor:
        """(B,C,h,w) for `latents` (B,C,h,w) at the scheduler's `t`."""
        answers: dict[int, Tensor] = {}
        for group in self._groups:
            self.before(group.rows)
            sizes = self.sizes.expand(len(group.rows), -1)
            answer = self.family.network(latents[group.images], t, group.cond, sizes)
            answers |= dict(zip(group.places, answer, strict=True))
        led = []
        for aim, (unwanted, wanted) in zip(self.aims, self._places, strict=True):
            if unwanted is None:
                led.append(answers[wanted[0]])
                continue
            start = total = answers[unwanted]
            for place, (_, weight) in zip(wanted, aim.wanted, strict=True):
                total = total + max(self.guidance, 1.0) * weight * (answers[place] - start)
            led.append(total)
        return torch.stack(led)

    def _grouped(self, rows: list[GuidanceRow]) -> list[_GuidanceGroup]:
        lengths: dict[int, list[int]] = {}
        for place, row in enumerate(rows):
            lengths.setdefault(len(row.cond["context"]), []).append(place)
        groups = []
        most = 2 * len(self.aims)  # as many as a plain prompt has: AND takes time, not memory
        for places in (
            same[start : start + most]
            for same in lengths.values()
            for start in range(0, len(same), most)
        ):
            its = [rows[place] for place in places]
            images = torch.tensor([row.image for row in its], device=self.family.device)
            cond = {key: torch.stack([row.cond[key] for row in its]) for key in its[0].cond}
            groups.append(_GuidanceGroup(its, places, images, cond))
        return groups


def denoise(
    family: Family,
    latents: Tensor,
    timesteps: Tensor,
    dice: list[torch.Generator],
    guide: Callable[[int, Tensor, Tensor], Tensor],
) -> Work:
    """Latents (B,C,h,w) down the scheduler's `timesteps`.

    `guide(step, latents, t)` is the network's answer at `step`, the first being 0.
    """
    scheduler = family.pipeline.scheduler
    options = family.pipeline.prepare_extra_step_kwargs(dice, 0.0)
    for step, t in enumerate(timesteps):
        answer = guide(step, scheduler.scale_model_input(latents, t), t)
        latents = scheduler.step(answer, t, latents, **options, return_dict=False)[0]
        yield
    return latents
