"""Pictures from an open family: what the prompts say, over the steps, in one or two passes."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from sdlora.adapters import Blend
from sdlora.inference.conditioning import ConditioningCache, PromptSchedule, When
from sdlora.inference.lora_selection import LoraSelector
from sdlora.inference.plan import GenerationPlan, ImagePlan
from sdlora.inference.sampling import SAMPLERS, ClassifierFreeGuidance, Sampler, Work, denoise
from sdlora.lora.library.library import Library
from sdlora.messages import Message, Setting
from sdlora.models.base import ZERO_TERMINAL_SNR, Family
from sdlora.models.text_encoding import TextEncodeOptions
from sdlora.prompt.emphasis import compose
from sdlora.prompt.resources import PromptResources
from sdlora.prompt.tags import parse_prompt
from sdlora.settings.image_request import ImageRequest


def passes_of(request: ImageRequest) -> tuple[tuple[int, int], ...]:
    """(steps, steps before it) of each pass."""
    first = (request.steps, 0)
    second = (request.hires_steps or request.steps, request.steps)
    return (first, second) if request.hires_scale > 1 else (first,)


@dataclass(frozen=True)
class ImageBatch:
    """Images of a request that are denoised side by side, by their numbers in it.

    `dice` are theirs alone: image i is the same in any batch.
    """

    family: Family
    request: ImageRequest
    sheet: GenerationPlan
    conditions: ConditioningCache
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
        courses = [
            PromptSchedule.of(self.sheet.wishes[image], steps, before) for image in self.images
        ]
        sides = [side * self.family.pipeline.vae_scale_factor for side in latents.shape[-2:]]
        sizes = torch.tensor([[*sides, 0, 0, *sides]]).to(latents)
        when: When = (0, steps, before)
        guide = ClassifierFreeGuidance(
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


OVERFLOW = "the numbers overflowed, and the picture is black; lower the weights of the LoRAs"
NO_BOOK = PromptResources()


class ImagePipeline:
    """An open family, and the blend that stands in it."""

    def __init__(self, family: Family, library: Library, book: PromptResources = NO_BOOK) -> None:
        self.family, self.book, self.blend = family, book, Blend(family)
        self._cast = LoraSelector(self.blend, library, book)

    def prepare(self, request: ImageRequest) -> GenerationPlan:
        """Read the prompts of every image, and make their LoRAs stand in the model.

        What cannot be used is a problem on the sheet, never an error: the rest is used.
        """
        book = replace(self.book)  # which sees the folders as they are now
        texts = [
            book.expand(request.prompt, request.negative_prompt, seed, request.styles)
            for seed in range(request.seed, request.seed + request.count)
        ]
        wishes = tuple(
            ImagePlan(
                request.seed + image, p.text, n.text, parse_prompt(p.text), parse_prompt(n.text)
            )
            for image, (p, n) in enumerate(texts)
        )
        from_noise = request.zero_terminal_snr and self.family.noise.prediction == "v_prediction"
        sheet = GenerationPlan(wishes, passes_of(request), from_noise)
        for image, (wish, its) in enumerate(zip(wishes, texts, strict=True)):
            parts = (*its, wish.positive, wish.negative)
            sheet.tell((told for part in parts for told in part.problems), [image])
            if len(compose(wish.negative.text)) > 1:
                sheet.tell([Message("AND in the negative prompt is read as a word")], [image])
        sheet.tell(self._unusable(request, sheet))
        self._cast.stand(sheet, len(sheet.passes) > 1)
        return sheet

    def _unusable(self, request: ImageRequest, sheet: GenerationPlan) -> Iterator[Message]:
        wishes = sheet.wishes
        if (asked := request.clip_skip) > (most := self.family.deepest_skip):
            yield Message(
                "{setting} = {given} is more than this model has layers; {most} is used",
                setting=Setting("clip_skip"), given=asked, most=most,
            )  # fmt: skip
        if request.zero_terminal_snr and not sheet.from_noise:
            yield Message(
                "{setting} is not used: it takes a model that predicts v, not the noise",
                setting=Setting("zero_terminal_snr"),
            )
        composed = any(len(compose(wish.positive.text)) > 1 for wish in wishes)
        if request.guidance <= 1 and not composed and any(w.negative_prompt for w in wishes):
            yield Message("the negative prompt is not used: that takes a guidance above 1")

    def steps(self, request: ImageRequest) -> int:
        """How often `paint` will have worked before it is done."""
        batches = -(-request.count // request.batch_size)
        return batches * sum(steps for steps, _ in passes_of(request))

    @torch.no_grad()
    def paint(self, request: ImageRequest, sheet: GenerationPlan) -> Generator[Image.Image | None]:
        """The request's images in order; None after every step of a batch.

        Image i begins from the noise of seed + i, whichever batch it is in.
        """
        manner = TextEncodeOptions(request.emphasis, request.clip_skip)
        conditions = ConditioningCache(self.blend, manner, sheet.moving)
        options = ZERO_TERMINAL_SNR if sheet.from_noise else {}
        with self._painting(SAMPLERS[request.sampler], options):
            for first in range(0, request.count, request.batch_size):
                images = range(first, min(first + request.batch_size, request.count))
                seeds = [sheet.wishes[image].seed for image in images]
                dice = [torch.Generator().manual_seed(seed) for seed in seeds]
                batch = ImageBatch(self.family, request, sheet, conditions, images, dice)
                latents = yield from batch.latents()
                finite = latents.isfinite().flatten(1).all(1).tolist()
                lost = [image for image, its in zip(images, finite, strict=True) if not its]
                sheet.tell([OVERFLOW] * bool(lost), lost)
                yield from self.family.decode_latents(latents)

    @contextmanager
    def _painting(self, sampler: Sampler, options: Mapping[str, Any]) -> Iterator[None]:
        """The pipeline with the sampler's scheduler and without dropout; then as it was."""
        pipeline = self.family.pipeline
        its_own = pipeline.scheduler
        pipeline.scheduler = sampler.kind.from_config(its_own.config, **sampler.options, **options)
        try:
            with self.family.evaluating():
                yield
        finally:
            pipeline.scheduler = its_own
