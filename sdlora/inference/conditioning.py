"""Texts of images over the steps of a pass, encoded once each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from sdlora.adapters import Blend
from sdlora.inference.guidance import (
    GuidanceGroup,
    GuidanceRow,
    GuidanceTarget,
    StepConditioning,
    Weights,
    places_together,
    rows_of,
)
from sdlora.inference.plan import ImagePlan, Moment, SamplingPass, SelectedLora
from sdlora.models.base import Conditioning
from sdlora.models.text_encoding import TextEncodeOptions
from sdlora.prompt.emphasis import compose
from sdlora.prompt.schedules import schedule


@dataclass(frozen=True)
class PromptSchedule:
    """One image's prompts at each step of a pass: texts joined by AND, and the negative text.

    Equal for the same prompts, so that a batch of one prompt keeps one.
    """

    positive: tuple[tuple[tuple[str, float], ...], ...]
    negative: tuple[str, ...]

    @classmethod
    def from_plan(cls, image: ImagePlan, sampling_pass: SamplingPass) -> PromptSchedule:
        """Read an image's prompts for one pass."""
        positive = _by_step(image.positive.text, sampling_pass)
        negative = _by_step(image.negative.text, sampling_pass)
        composed = {text: tuple(compose(text)) for text in dict.fromkeys(positive)}
        return cls(tuple(composed[text] for text in positive), tuple(negative))


def _by_step(text: str, sampling_pass: SamplingPass) -> list[str]:
    texts: list[str] = []
    for end, part in schedule(text, sampling_pass.steps, sampling_pass.before):
        texts += [part] * (end - len(texts))
    return texts


class ConditioningCache:
    """Encodes texts with the LoRAs that the text encoders have, each once."""

    def __init__(
        self, blend: Blend, options: TextEncodeOptions, changing: Sequence[SelectedLora]
    ) -> None:
        self.blend, self.options, self.changing = blend, options, changing
        self._encoded: dict[tuple[str, bool, Weights], Conditioning] = {}
        self._targets: dict[tuple[object, ...], GuidanceTarget] = {}

    def target(self, prompts: PromptSchedule, image: int, moment: Moment) -> GuidanceTarget:
        """Return the texts of `image` at `moment`, padded to one length."""
        positive, negative = prompts.positive[moment[0]], prompts.negative[moment[0]]
        weights = [self._text_weights(image, side, moment) for side in (False, True)]
        key = positive, negative, *weights
        if key not in self._targets:
            texts = [self._encode(text, False, weights[0]) for text, _ in positive]
            away = self._encode(negative, not negative, weights[1])
            length = max(text.length for text in (*texts, away))
            empty = partial(self._encode, "", False, weights[0])
            pad = self.blend.family.pad
            padded = [pad(text, length, empty) for text in texts]
            away = pad(away, length, partial(self._encode, "", not negative, weights[1]))
            pairs = zip(padded, (weight for _, weight in positive), strict=True)
            self._targets[key] = GuidanceTarget(away, tuple(pairs))
        return self._targets[key]

    def _text_weights(self, image: int, negative: bool, moment: Moment) -> Weights:
        return tuple(lora.weights_at(image, negative, moment)[1] for lora in self.changing)

    def _encode(self, text: str, is_empty: bool, weights: Weights) -> Conditioning:
        key = text, is_empty, weights
        if key not in self._encoded:
            if self.changing:
                pairs = zip(self.changing, weights, strict=True)
                self.blend.set_row_weights((lora.file, (0.0,), (weight,)) for lora, weight in pairs)
            family = self.blend.family
            with torch.no_grad():
                self._encoded[key] = (
                    family.encode_empty_prompt(self.options)
                    if is_empty
                    else family.encode_prompt(text, self.options)
                )
        return self._encoded[key]


class BatchConditioning:
    """The conditioning of a batch of images in one pass, step by step."""

    def __init__(
        self,
        cache: ConditioningCache,
        images: Sequence[tuple[int, ImagePlan]],
        sampling_pass: SamplingPass,
        size: tuple[int, int],
        is_guided: bool,
    ) -> None:
        """`images` by their numbers in the request; `size` = (width, height) in pixels."""
        self._cache, self._pass, self._is_guided = cache, sampling_pass, is_guided
        self._numbers = [number for number, _ in images]
        self._prompts = [PromptSchedule.from_plan(image, sampling_pass) for _, image in images]
        width, height = size
        self._sizes = torch.tensor([[height, width, 0, 0, height, width]])
        self._latest: tuple[object, StepConditioning] | None = None

    def at(self, step: int) -> StepConditioning:
        """Return the conditioning of a step, the first being 0; the same object while nothing of
        it changes."""
        moment = (step, self._pass.steps, self._pass.before)
        pairs = zip(self._prompts, self._numbers, strict=True)
        targets = tuple(self._cache.target(prompts, n, moment) for prompts, n in pairs)
        rows = rows_of(targets, self._is_guided)
        weights = [self._weights(row, moment) for row in rows]
        key = targets, weights
        if self._latest is None or self._latest[0] != key:
            groups = [
                self._group([*places], rows, weights)
                for places in places_together(rows, len(targets))
            ]
            self._latest = key, StepConditioning(targets, rows, tuple(groups))
        return self._latest[1]

    def _weights(self, row: GuidanceRow, moment: Moment) -> Weights:
        """Return the denoiser's weights of the changing LoRAs in one row."""
        number = self._numbers[row.image]
        changing = self._cache.changing
        return tuple(lora.weights_at(number, row.is_negative, moment)[0] for lora in changing)

    def _group(
        self, places: list[int], rows: Sequence[GuidanceRow], weights: list[Weights]
    ) -> GuidanceGroup:
        family = self._cache.blend.family
        conditioning = family.condition_on_size(
            family.collate([rows[place].text for place in places]), self._sizes
        )
        images = torch.tensor([rows[place].image for place in places], device=family.device)
        by_lora = tuple(zip(*(weights[place] for place in places), strict=True))
        return GuidanceGroup(tuple(places), images, conditioning, by_lora)
