"""Images from an open family: a plan from a request, then steps and images, in one or two passes,
and at last the upscaler.

`generate` is one straight loop: conditioning of the step, the guided denoiser, one step of the
sampler. It yields events and changes nothing of the plan.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from sdlora.adapters import Blend
from sdlora.errors import ModelError
from sdlora.inference.conditioning import BatchConditioning, ConditioningCache
from sdlora.inference.guidance import guided
from sdlora.inference.lora_selection import LoraSelector
from sdlora.inference.plan import GenerationPlan, ImagePlan, ImageProblem, image_problem, passes_of
from sdlora.inference.samplers import FALLBACK, SAMPLERS
from sdlora.lora.library.library import Library
from sdlora.messages import Message, Setting
from sdlora.models.base import ModelFamily
from sdlora.models.stock_sampler import Sigmas, StepState, StockSampler
from sdlora.models.text_encoding import TextEncodeOptions
from sdlora.prompt.emphasis import compose, parse_emphasis
from sdlora.prompt.resources import PromptResources
from sdlora.prompt.tags import parse_prompt
from sdlora.settings.image_request import ImageRequest
from sdlora.upscalers.upscale import Upscaler

OVERFLOW = "the numbers overflowed, and the picture is black; lower the weights of the LoRAs"
NO_RESOURCES = PromptResources()


@dataclass(frozen=True)
class StepDone:
    """One step of a batch was taken."""

    state: StepState


@dataclass(frozen=True)
class ImageDone:
    """Image `number` of a request, and what came up while it was made."""

    number: int
    image: Image.Image
    problems: tuple[ImageProblem, ...] = ()


Denoising = Generator[StepDone, None, Tensor]  # the latents (B,C,h,w) at last


class ImagePipeline:
    """An open family, and the blend of LoRAs in it."""

    def __init__(
        self, family: ModelFamily, library: Library, resources: PromptResources = NO_RESOURCES
    ) -> None:
        self.family, self.resources, self.blend = family, resources, Blend(family)
        self._selector = LoraSelector(self.blend, library, resources)
        self._upscaler: Upscaler | None = None  # the model's own, once it was asked for

    def plan(self, request: ImageRequest) -> GenerationPlan:
        """Read the prompts of every image, and apply their LoRAs to the model.

        What cannot be used is a problem of the plan, never an error: the rest is used.
        """
        resources = replace(self.resources)  # which sees the folders as they are now
        texts = [
            resources.expand(request.prompt, request.negative_prompt, seed, request.styles)
            for seed in range(request.seed, request.seed + request.count)
        ]
        images = tuple(
            ImagePlan(
                request.seed + number, p.text, n.text, parse_prompt(p.text), parse_prompt(n.text)
            )
            for number, (p, n) in enumerate(texts)
        )
        problems = [
            image_problem(message, [number])
            for number, (image, pair) in enumerate(zip(images, texts, strict=True))
            for message in self._text_problems(image, [m for text in pair for m in text.problems])
        ]
        unusable = list(self._unusable(request, images))
        problems += [image_problem(message, range(len(images))) for message in unusable]
        upscaler, message = self._upscaler_for(request)
        problems += [image_problem(m, range(len(images))) for m in message]
        passes = passes_of(request)
        selection = self._selector.select(images, len(passes) > 1)
        return GenerationPlan(
            request, images, passes,
            sampler=request.sampler if self._scheduler(request.sampler) else FALLBACK,
            zero_terminal_snr=self._from_noise(request),
            loras=self._selector.apply(selection, images),
            upscaler=upscaler,
            other_problems=tuple(problems),
        )  # fmt: skip

    def _text_problems(self, image: ImagePlan, messages: Sequence[str]) -> Iterator[str]:
        """Yield what of an image's prompts cannot be used as it stands."""
        yield from (*messages, *image.positive.problems, *image.negative.problems)
        if len(compose(image.negative.text)) > 1:
            yield Message("AND in the negative prompt is read as a word")
        for text in (image.positive.text, image.negative.text):
            if unread := self.family.unread_text(text):
                yield Message(
                    "{model} does not read the end of the prompt: {text!r}",
                    model=self.family.title, text=unread,
                )  # fmt: skip

    def _unusable(self, request: ImageRequest, images: Sequence[ImagePlan]) -> Iterator[Message]:
        """Yield what of a request this model has no use for."""
        family = self.family
        if (asked := request.clip_skip) > (limit := family.max_clip_skip):
            yield Message(
                "{setting} = {given} is more than this model has layers; {limit} is used",
                setting=Setting("clip_skip"), given=asked, limit=limit,
            )  # fmt: skip
        if request.zero_terminal_snr and not self._from_noise(request):
            yield Message(
                "{setting} is not used: it takes a model that predicts v, not the noise",
                setting=Setting("zero_terminal_snr"),
            )
        if not self._scheduler(request.sampler):
            yield Message(
                "{setting} = {given} is not for {model}; {used} is used",
                setting=Setting("sampler"), given=request.sampler, model=family.title,
                used=FALLBACK,
            )  # fmt: skip
        composed = any(len(compose(image.positive.text)) > 1 for image in images)
        if not composed and any(image.negative_prompt for image in images):
            if family.embeds_guidance:
                yield Message(
                    "the negative prompt is not used: {model} has its guidance distilled into it",
                    model=family.title,
                )
            elif request.guidance <= 1:
                yield Message("the negative prompt is not used: that takes a guidance above 1")
        texts = [text for image in images for text in (image.positive.text, image.negative.text)]
        weighted = any(weight != 1 for text in texts for _, weight in parse_emphasis(text))
        if weighted and not family.spec.reads_emphasis:
            yield Message("emphasis such as (word:1.2) is not used by {model}", model=family.title)
        width, height = _pixels(request, family)
        w, h = family.latent_size(width, height)
        if (w * family.cell, h * family.cell) != (width, height):
            yield Message(
                "{width} x {height} pixels are not whole cells of {model}; it makes {w} x {h}",
                width=width, height=height, model=family.title, w=w * family.cell,
                h=h * family.cell,
            )  # fmt: skip

    def _upscaler_for(self, request: ImageRequest) -> tuple[Upscaler | None, list[Message]]:
        """Return the upscaler of a request; a problem in place of one that cannot be opened."""
        path = self.family.upscaler
        if request.upscaler == "none" or not path:
            return None, []
        try:
            self._upscaler = self._upscaler or Upscaler.from_file(path, self.family.device)
        except ModelError as error:
            text = "the image keeps the model's own size: {why}"
            return None, [Message(text, why=error.message)]
        return self._upscaler, []

    def _from_noise(self, request: ImageRequest) -> bool:
        return request.zero_terminal_snr and self.family.noise.allows_zero_terminal_snr

    def _scheduler(self, sampler: str) -> object:
        return SAMPLERS[sampler].scheduler_for(self.family.noise)

    @torch.no_grad()
    def generate(self, plan: GenerationPlan) -> Generator[StepDone | ImageDone]:
        """Make the plan's images in order.

        Image i begins from the noise of seed + i, whichever batch it is in.
        """
        request = plan.request
        options = TextEncodeOptions(request.emphasis, request.clip_skip)
        cache = ConditioningCache(self.blend, options, plan.loras.changing)
        with self.family.eval_mode():
            for first in range(0, request.count, request.batch_size):
                numbers = range(first, min(first + request.batch_size, request.count))
                batch = ImageBatch(self.family, self.blend, plan, cache, numbers)
                latents = yield from batch.denoise()
                finite = latents.isfinite().flatten(1).all(1).tolist()
                images = self.family.decode_latents(latents)
                for number, image, is_finite in zip(numbers, images, finite, strict=True):
                    problems = () if is_finite else (image_problem(OVERFLOW, [number]),)
                    large = plan.upscaler.enlarge(image) if plan.upscaler else image
                    yield ImageDone(number, large, problems)


class ImageBatch:
    """Images of a plan that are denoised side by side, by their numbers in it.

    Each has a generator of its own: image i is the same in any batch.
    """

    def __init__(
        self,
        family: ModelFamily,
        blend: Blend,
        plan: GenerationPlan,
        cache: ConditioningCache,
        numbers: range,
    ) -> None:
        self.family, self.blend, self.plan, self.cache = family, blend, plan, cache
        self.images = [(number, plan.images[number]) for number in numbers]
        seeds = [image.seed for _, image in self.images]
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def denoise(self) -> Denoising:
        """Return the finished latents (B,C,h,w)."""
        latents = yield from self._first_pass()
        if len(self.plan.passes) > 1:
            latents = yield from self._second_pass(latents)
        return latents

    def _first_pass(self) -> Denoising:
        size = _pixels(self.plan.request, self.family)
        noise = self.family.initial_latents(size, self.generators)
        sampler = self._sampler(self.plan.passes[0].steps, noise)
        return (yield from self._sample(sampler.first_latents(noise), sampler, sampler.sigmas, 0))

    def _second_pass(self, latents: Tensor) -> Denoising:
        """Hires fix: the first pass's latents, enlarged and noised again (SDEdit,
        arXiv:2108.01073), denoised.

        As many steps are taken as asked for, so the whole way is longer (A1111,
        modules/sd_samplers_common.py setup_img2img_steps).
        """
        steps = self.plan.passes[1].steps
        whole = max(steps, round(steps / self.plan.request.hires_strength))
        large = self._enlarged(latents)
        sampler = self._sampler(whole, large)
        sigmas = sampler.sigmas.last(steps * len(sampler.sigmas) // whole)
        sampler.begin_at(sigmas)
        noise = torch.stack([torch.randn(large.shape[1:], generator=g) for g in self.generators])
        noised = sampler.add_noise(large, noise.to(large), sigmas)
        return (yield from self._sample(noised, sampler, sigmas, 1))

    def _sample(self, x: Tensor, sampler: StockSampler, sigmas: Sigmas, number: int) -> Denoising:
        """Denoise `x` in pass `number`, the first being 0."""
        request, changing = self.plan.request, [lora.file for lora in self.plan.loras.changing]
        conditionings = BatchConditioning(
            self.cache, self.images, self.plan.passes[number], self._size(x),
            is_guided=request.guidance > 1 and not self.family.embeds_guidance,
        )  # fmt: skip
        state = StepState(0, x)
        for step in range(len(sigmas)):
            conditioning = conditionings.at(step)
            denoiser = guided(self.family, self.blend, conditioning, request.guidance, changing)
            state = sampler.step(denoiser, state, sigmas, self.generators)
            yield StepDone(state)
        return state.x

    def _sampler(self, steps: int, latents: Tensor) -> StockSampler:
        row = SAMPLERS[self.plan.sampler].scheduler_for(self.family.noise)
        assert row is not None, "the plan names one that fits"
        scheduler_class, options = row
        return self.family.sampler(
            scheduler_class, options, steps, self._size(latents),
            zero_terminal_snr=self.plan.zero_terminal_snr,
        )  # fmt: skip

    def _size(self, latents: Tensor) -> tuple[int, int]:
        """Return (width, height) in pixels of latents."""
        height, width = (side * self.family.cell for side in latents.shape[-2:])
        return width, height

    def _enlarged(self, latents: Tensor) -> Tensor:
        """Return latents of `hires_scale` times the size, in whole cells."""
        request, family = self.plan.request, self.family
        step = max(1, family.spec.size_multiple // family.cell)
        height, width = (
            step * round(side * request.hires_scale / step) for side in latents.shape[-2:]
        )
        if request.hires_upscaler == "latent":
            large = functional.interpolate(latents.float(), (height, width), mode="bilinear")
            return large.to(latents.dtype)
        images = family.decode_latents(latents)
        size = width * family.cell, height * family.cell
        pixels = [np.asarray(i.resize(size, Image.Resampling.LANCZOS)) for i in images]
        tensor = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
        return family.encode_images(tensor.float() / 127.5 - 1).to(latents.dtype)


def _pixels(request: ImageRequest, family: ModelFamily) -> tuple[int, int]:
    """Return (width, height) of a request, in pixels."""
    return request.width or family.resolution, request.height or family.resolution
