"""The texts of an image over the steps of a pass, read once each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sdlora.adapters import Blend
from sdlora.inference.plan import ImagePlan, SelectedLora
from sdlora.inference.sampling import Cond, GuidanceRow, GuidanceTarget
from sdlora.models.text_encoding import TextEncodeOptions
from sdlora.prompt.emphasis import compose
from sdlora.prompt.schedules import schedule

When = tuple[int, int, int]  # step, the first being 0; of how many; how many before the pass


@dataclass(frozen=True)
class PromptSchedule:
    """What one image's prompts say at each step of a pass: texts joined by AND, and the negative's.

    Alike for the same prompts, so that a batch of one prompt keeps one.
    """

    wanted: tuple[tuple[tuple[str, float], ...], ...]
    unwanted: tuple[str, ...]

    @classmethod
    def of(cls, wish: ImagePlan, steps: int, before: int) -> PromptSchedule:
        """That of a pass of `steps` steps, with so many before it."""
        positive = _by_step(wish.positive.text, steps, before)
        negative = _by_step(wish.negative.text, steps, before)
        composed = {text: tuple(compose(text)) for text in dict.fromkeys(positive)}
        return cls(tuple(composed[text] for text in positive), tuple(negative))


def _by_step(text: str, steps: int, before: int) -> list[str]:
    found: list[str] = []
    for end, its in schedule(text, steps, before):
        found += [its] * (end - len(found))
    return found


class ConditioningCache:
    """Reads texts with the LoRAs that stand in the text encoders, each once."""

    def __init__(
        self, blend: Blend, manner: TextEncodeOptions, moving: Sequence[SelectedLora]
    ) -> None:
        self.blend, self.manner, self.moving = blend, manner, moving
        self._read: dict[tuple[str, bool, tuple[float, ...]], Cond] = {}
        self._aims: dict[tuple[object, ...], GuidanceTarget] = {}
        self._standing: list[tuple[float, ...]] = []  # the weights that the denoiser has now

    def aim(self, course: PromptSchedule, image: int, when: When) -> GuidanceTarget:
        """What `image` is denoised towards at `when`; its texts padded to one length."""
        wanted, unwanted = course.wanted[when[0]], course.unwanted[when[0]]
        weights = [self._weights(image, negative, when) for negative in (False, True)]
        key = wanted, unwanted, *weights
        if key not in self._aims:
            conds = [self._cond(text, False, weights[0]) for text, _ in wanted]
            away = self._cond(unwanted, not unwanted, weights[1])
            length = max(len(cond["context"]) for cond in (*conds, away))
            padded = [self._padded(cond, length, weights[0]) for cond in conds]
            pairs = zip(padded, (weight for _, weight in wanted), strict=True)
            away = self._padded(away, length, weights[1], is_nothing=not unwanted)
            self._aims[key] = GuidanceTarget(away, tuple(pairs))
        return self._aims[key]

    def set_rows(self, rows: Sequence[GuidanceRow], images: Sequence[int], when: When) -> None:
        """Give every row the weights that the moving LoRAs have for it; `images` are the batch's
        by their places in it."""
        if not self.moving:
            return
        table = [
            tuple(one.at(images[row.image], row.is_unwanted, when)[0] for row in rows)
            for one in self.moving
        ]
        if table != self._standing:
            files = (one.file for one in self.moving)
            self.blend.set_row_weights(
                (file, row, (0.0,)) for file, row in zip(files, table, strict=True)
            )
            self._standing = table

    def _weights(self, image: int, negative: bool, when: When) -> tuple[float, ...]:
        return tuple(one.at(image, negative, when)[1] for one in self.moving)

    def _cond(self, text: str, is_nothing: bool, weights: tuple[float, ...]) -> Cond:
        key = text, is_nothing, weights
        if key not in self._read:
            if self.moving:
                pairs = zip(self.moving, weights, strict=True)
                self.blend.set_row_weights((one.file, (0.0,), (weight,)) for one, weight in pairs)
                self._standing = []
            family = self.blend.family
            with torch.no_grad():
                self._read[key] = (
                    family.read_nothing(self.manner)
                    if is_nothing
                    else family.read_text(text, self.manner)
                )
        return self._read[key]

    def _padded(
        self, cond: Cond, length: int, weights: tuple[float, ...], is_nothing: bool = False
    ) -> Cond:
        """With chunks of no text behind it, so that it is `length` tokens long."""
        context = cond["context"]
        if len(context) == length:
            return cond
        empty = self._cond("", is_nothing, weights)["context"]
        times = (length - len(context)) // len(empty)
        return {**cond, "context": torch.cat([context, *[empty] * times])}
