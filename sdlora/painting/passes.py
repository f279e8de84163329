"""A batch of images from noise to latents, in one pass or two."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from sdlora.families.base import Family
from sdlora.painting.course import Conditions, Course, When
from sdlora.painting.denoise import Guide, Work, denoise
from sdlora.painting.sheet import Sheet
from sdlora.settings import ImageRequest


def passes_of(request: ImageRequest) -> tuple[tuple[int, int], ...]:
    """(steps, steps before it) of each pass."""
    first = (request.steps, 0)
    second = (request.hires_steps or request.steps, request.steps)
    return (first, second) if request.hires_scale > 1 else (first,)


@dataclass(frozen=True)
class Batch:
    """Images of a request that are denoised side by side, by their numbers in it.

    `dice` are theirs alone: image i is the same in any batch.
    """

    family: Family
    request: ImageRequest
    sheet: Sheet
    conditions: Conditions
    images: range
    dice: list[torch.Generator]

    def latents(self) -> Work:
        """The finished latents (B,C,h,w)."""
        latents = yield from self._first()
        if len(self.sheet.passes) > 1:
            latents = yield from self._second(latents)
        return latents

    def _first(self) -> Work:
        request, family, pipeline = self.request, self.family, self.family.pipeline
        width, height = request.width or family.resolution, request.height or family.resolution
        pipeline.scheduler.set_timesteps(request.steps, device=family.device)
        channels, where = family.denoiser.config.in_channels, (family.dtype, family.device)
        latents = pipeline.prepare_latents(
            len(self.images), channels, height, width, *where, self.dice
        )
        return (yield from self._denoised(latents, pipeline.scheduler.timesteps, 0))

    def _second(self, latents: Tensor) -> Work:
        """From the first pass's latents, enlarged and noised again (SDEdit, arXiv:2108.01073).

        As many steps are taken as asked for, so the whole way is longer (A1111,
        modules/sd_samplers_common.py setup_img2img_steps).
        """
        steps, scheduler = self.sheet.passes[1][0], self.family.pipeline.scheduler
        whole = max(steps, round(steps / self.request.hires_strength))
        scheduler.set_timesteps(whole, device=self.family.device)
        start = (whole - steps) * scheduler.order
        if hasattr(scheduler, "set_begin_index"):  # DDIM finds its place by the timestep
            scheduler.set_begin_index(start)
        timesteps = scheduler.timesteps[start:]
        large = self._enlarged(latents)
        noise = torch.stack([torch.randn(large.shape[1:], generator=dice) for dice in self.dice])
        noisy = scheduler.add_noise(large, noise.to(large), timesteps[:1].repeat(len(large)))
        return (yield from self._denoised(noisy, timesteps, 1))

    def _enlarged(self, latents: Tensor) -> Tensor:
        """Latents of `hires_scale` times the size, in whole cells."""
        scale, cell = self.request.hires_scale, self.family.pipeline.vae_scale_factor
        height, width = (round(side * scale) for side in latents.shape[-2:])
        if self.request.hires_upscaler == "latent":
            large = functional.interpolate(latents.float(), (height, width), mode="bilinear")
            return large.to(latents.dtype)
        images = self.family.decode_latents(latents)
        size = width * cell, height * cell
        pixels = [np.asarray(i.resize(size, Image.Resampling.LANCZOS)) for i in images]
        tensor = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
        return self.family.encode_images(tensor.float() / 127.5 - 1).to(latents.dtype)

    def _denoised(self, latents: Tensor, timesteps: Tensor, number: int) -> Work:
        """One pass, the first being 0."""
        steps, before = self.sheet.passes[number]
        courses = [Course.of(self.sheet.wishes[image], steps, before) for image in self.images]
        sides = [side * self.family.pipeline.vae_scale_factor for side in latents.shape[-2:]]
        sizes = torch.tensor([[*sides, 0, 0, *sides]]).to(latents)
        when: When = (0, steps, before)
        guide = Guide(
            self.family, self.request.guidance, sizes,
            lambda rows: self.conditions.set_rows(rows, self.images, when),
        )  # fmt: skip

        def answer(step: int, noisy: Tensor, t: Tensor) -> Tensor:
            nonlocal when
            when = (step, steps, before)
            pairs = zip(courses, self.images, strict=True)
            guide.lead([self.conditions.aim(course, image, when) for course, image in pairs])
            return guide(noisy, t)

        return (yield from denoise(self.family, latents, timesteps, self.dice, answer))
