"""Which LoRAs stand in an open family, and how strongly.

What can be merged into the weights is: then a step costs what it costs without LoRAs. What cannot,
because the weight is quantised, or changes over the steps or between the images of a batch, runs
beside the layers. Either way nothing is left when it goes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from sdlora.adapters.embeddings import Embeddings
from sdlora.adapters.forward_hooks import Stack, UnmergedLoras, seen_weight
from sdlora.adapters.matching import LoraMatch, Place, fit
from sdlora.adapters.merged_weights import MergedWeights, Recipe, is_mergeable
from sdlora.lora.format.file import LoraFile
from sdlora.lora.format.layer import Adapter
from sdlora.messages import Message
from sdlora.models.base import Family

Rows = Sequence[float]  # a weight per image of a batch, or one for all of them
Weighted = tuple[LoraFile, float, float]  # a LoRA, its weight on the denoiser, on the text encoders
Varying = tuple[LoraFile, Rows, Rows]


class Blend:
    """The LoRAs of an open family."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.notes: list[Message] = []  # what of the LoRAs that stand is not used, and why
        self._fits: WeakKeyDictionary[LoraFile, LoraMatch] = WeakKeyDictionary()
        self._merged = MergedWeights(family)
        self._unmerged, self._varying = UnmergedLoras(family), UnmergedLoras(family)
        self._embeddings = Embeddings(family)
        self._used: dict[UnmergedLoras | MergedWeights, list[LoraMatch]] = {}

    def fit(self, file: LoraFile) -> LoraMatch:
        """Where the layers of `file` belong, see `places.fit`; asked for once per file."""
        if file not in self._fits:
            self._fits[file] = fit(file, self.family)
        return self._fits[file]

    def apply(self, loras: Iterable[Weighted]) -> list[LoraMatch]:
        """Make exactly these LoRAs stand at these weights; what already stands is not touched.

        The same LoRA twice adds up. LoraFileError when one does not fit: nothing has changed then;
        or when the sum overflows: the family is then pristine, as after any interruption.
        """
        loras = list(loras)
        fits = [self.fit(file) for file, _, _ in loras]
        merged: dict[Place, Recipe] = {}
        unmerged: dict[Place, Stack] = {}
        for place, rows in _by_place(loras, fits).items():
            if is_mergeable(self.family, place):
                merged[place] = tuple([(adapter, weight) for adapter, weight, _ in rows])
            else:
                unmerged[place] = tuple([(adapter, column) for adapter, _, column in rows])
        with self._pristine_on_failure():
            self._merged.stand(merged)
            self._unmerged.stand(unmerged, self._original)
            constant = [(file, (denoiser,), (text,)) for file, denoiser, text in loras]
            self._unmerged.set_weights(_table(constant, 1), _table(constant, 2))
            its = [one for one, (_, *weights) in zip(fits, loras, strict=True) if any(weights)]
            self._learn_words(self._merged, its)
        return fits

    def vary(self, loras: Iterable[Varying]) -> list[LoraMatch]:
        """Make exactly these LoRAs run beside the layers, over what is merged.

        Weights are rows: one per image of the batch, in its order, or one for all. Called again
        with the same LoRAs, as between two steps, it changes a small table and computes nothing.
        LoraFileError when one does not fit: nothing has changed then.
        """
        loras = list(loras)
        fits = [self.fit(file) for file, _, _ in loras]
        stacks: dict[Place, Stack] = {}
        for column, its in enumerate(fits):
            for place, adapter in its.places.items():
                stacks[place] = (*stacks.get(place, ()), (adapter, column))
        denoiser, text_encoders = _table(loras, 1), _table(loras, 2)
        with self._pristine_on_failure():
            self._varying.stand(stacks, self._original)
            self._varying.set_weights(denoiser, text_encoders)
            self._learn_words(self._varying, fits)
        return fits

    def clear(self) -> None:
        """Take every LoRA away; what they changed is as it was, bit for bit."""
        for standing in (self._merged, self._unmerged, self._varying, self._embeddings):
            standing.clear()
        self._used, self.notes = {}, []

    @contextmanager
    def _pristine_on_failure(self) -> Iterator[None]:
        finished = False
        try:
            yield
            finished = True
        finally:  # an interruption from the keyboard too
            if not finished:
                self.clear()

    def _learn_words(self, user: UnmergedLoras | MergedWeights, fits: list[LoraMatch]) -> None:
        self._used[user] = fits
        every = [its for used in self._used.values() for its in used]
        self.notes = self._embeddings.stand(its.words for its in every)

    def _original(self, place: Place) -> Tensor:
        """The parameter that a change builds on, without any LoRA."""
        if place[2] == "weight" and not is_mergeable(self.family, place):
            return seen_weight(self.family, place)
        return self._merged.original(place)


def _by_place(
    loras: Sequence[Weighted], fits: Sequence[LoraMatch]
) -> dict[Place, list[tuple[Adapter, float, int]]]:
    """Place -> what changes it: an adapter, its weight, which LoRA it is of."""
    found: dict[Place, list[tuple[Adapter, float, int]]] = defaultdict(list)
    for column, (its, (_, denoiser, text_encoders)) in enumerate(zip(fits, loras, strict=True)):
        for place, adapter in its.places.items():
            if weight := denoiser if place[0] == "denoiser" else text_encoders:
                found[place].append((adapter, weight, column))
    return found


def _table(loras: Sequence[Varying], side: int) -> Tensor:
    """(rows,LoRAs): the weights of one side, 1 the denoiser's, 2 the text encoders'."""
    if not loras:
        return torch.ones(1, 0)
    return torch.stack(torch.broadcast_tensors(*(torch.tensor(lora[side]) for lora in loras)), 1)
