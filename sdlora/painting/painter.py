"""Pictures from an open family: what the prompts say, over the steps, in one or two passes."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from sdlora.adapters import Blend
from sdlora.families.base import ZERO_TERMINAL_SNR, Family
from sdlora.families.texts import Manner
from sdlora.lora.library import Library
from sdlora.messages import Message, Setting
from sdlora.painting.cast import Cast
from sdlora.painting.course import Conditions
from sdlora.painting.denoise import SAMPLERS, Sampler
from sdlora.painting.passes import Batch, passes_of
from sdlora.painting.sheet import Sheet, Wish
from sdlora.prompt.emphasis import compose
from sdlora.prompt.tags import parse_prompt
from sdlora.prompt.wordbook import Wordbook
from sdlora.settings import ImageRequest

OVERFLOW = "the numbers overflowed, and the picture is black; lower the weights of the LoRAs"
NO_BOOK = Wordbook()


class Painter:
    """An open family, and the blend that stands in it."""

    def __init__(self, family: Family, library: Library, book: Wordbook = NO_BOOK) -> None:
        self.family, self.book, self.blend = family, book, Blend(family)
        self._cast = Cast(self.blend, library, book)

    def prepare(self, request: ImageRequest) -> Sheet:
        """Read the prompts of every image, and make their LoRAs stand in the model.

        What cannot be used is a problem on the sheet, never an error: the rest is used.
        """
        book = replace(self.book)  # which sees the folders as they are now
        texts = [
            book.expand(request.prompt, request.negative_prompt, seed, request.styles)
            for seed in range(request.seed, request.seed + request.count)
        ]
        wishes = tuple(
            Wish(request.seed + image, p.text, n.text, parse_prompt(p.text), parse_prompt(n.text))
            for image, (p, n) in enumerate(texts)
        )
        from_noise = request.zero_terminal_snr and self.family.noise.prediction == "v_prediction"
        sheet = Sheet(wishes, passes_of(request), from_noise)
        for image, (wish, its) in enumerate(zip(wishes, texts, strict=True)):
            parts = (*its, wish.positive, wish.negative)
            sheet.tell((told for part in parts for told in part.problems), [image])
            if len(compose(wish.negative.text)) > 1:
                sheet.tell([Message("AND in the negative prompt is read as a word")], [image])
        sheet.tell(self._unusable(request, sheet))
        self._cast.stand(sheet, len(sheet.passes) > 1)
        return sheet

    def _unusable(self, request: ImageRequest, sheet: Sheet) -> Iterator[Message]:
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
    def paint(self, request: ImageRequest, sheet: Sheet) -> Generator[Image.Image | None]:
        """The request's images in order; None after every step of a batch.

        Image i begins from the noise of seed + i, whichever batch it is in.
        """
        manner = Manner(request.emphasis, request.clip_skip)
        conditions = Conditions(self.blend, manner, sheet.moving)
        options = ZERO_TERMINAL_SNR if sheet.from_noise else {}
        with self._painting(SAMPLERS[request.sampler], options):
            for first in range(0, request.count, request.batch_size):
                images = range(first, min(first + request.batch_size, request.count))
                seeds = [sheet.wishes[image].seed for image in images]
                dice = [torch.Generator().manual_seed(seed) for seed in seeds]
                batch = Batch(self.family, request, sheet, conditions, images, dice)
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
