"""Blend: the LoRAs that are active in an open family, and their weights.

What can be merged into the weights is: then a step costs what it costs without LoRAs. What cannot,
because the weight is quantised, or changes over the steps or between the images of a batch, runs
as forward hooks. Either way the family is as before when it is cleared.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from sdlora.adapters.embeddings import Embeddings
from sdlora.adapters.forward_hooks import Stack, UnmergedLoras, dequantized_weight
from sdlora.adapters.matching import LoraMatch, ParameterPath, match_layers
from sdlora.adapters.merged_weights import MergedWeights, WeightedAdapters, is_mergeable
from sdlora.lora.format.file import LoraFile
from sdlora.lora.format.layer import Adapter
from sdlora.messages import Message
from sdlora.models.base import ModelFamily

RowWeights = Sequence[float]  # a weight per image of a batch, or one for all of them
WeightedLora = tuple[
    LoraFile, float, float
]  # a LoRA, its weight on the denoiser, on the text encoders
RowWeightedLora = tuple[LoraFile, RowWeights, RowWeights]


class Blend:
    """The LoRAs of an open family."""

    def __init__(self, family: ModelFamily) -> None:
        self.family = family
        self.notes: list[Message] = []  # parts of active LoRAs that are not used, and why
        self._matches: WeakKeyDictionary[LoraFile, LoraMatch] = WeakKeyDictionary()
        self._merged = MergedWeights(family)
        self._unmerged, self._varying = UnmergedLoras(family), UnmergedLoras(family)
        self._embeddings = Embeddings(family)
        self._used: dict[UnmergedLoras | MergedWeights, list[LoraMatch]] = {}

    def match(self, file: LoraFile) -> LoraMatch:
        """Return `match_layers` of a file, computed once per file."""
        if file not in self._matches:
            self._matches[file] = match_layers(file, self.family)
        return self._matches[file]

    def apply(self, loras: Iterable[WeightedLora]) -> list[LoraMatch]:
        """Make exactly these LoRAs active at these weights; what is merged already is not touched.

        The same LoRA twice adds up. LoraFileError when one does not fit: nothing has changed then;
        or when the sum overflows: the family is then pristine, as after any interruption.
        """
        loras = list(loras)
        matches = [self.match(file) for file, _, _ in loras]
        merged: dict[ParameterPath, WeightedAdapters] = {}
        unmerged: dict[ParameterPath, Stack] = {}
        for place, rows in _changes_by_parameter(loras, matches).items():
            if is_mergeable(self.family, place):
                merged[place] = tuple([(adapter, weight) for adapter, weight, _ in rows])
            else:
                unmerged[place] = tuple([(adapter, column) for adapter, _, column in rows])
        with self._pristine_on_failure():
            self._merged.set_adapters(merged)
            self._unmerged.set_adapters(unmerged, self._original)
            constant = [(file, (denoiser,), (text,)) for file, denoiser, text in loras]
            self._unmerged.set_weights(_table(constant, 1), _table(constant, 2))
            used = [m for m, (_, *weights) in zip(matches, loras, strict=True) if any(weights)]
            self._set_embeddings(self._merged, used)
        return matches

    def set_row_weights(self, loras: Iterable[RowWeightedLora]) -> list[LoraMatch]:
        """Make exactly these LoRAs run as forward hooks, on top of what is merged.

        Weights are rows: one per image of the batch, in its order, or one for all. Called again
        with the same LoRAs, as between two steps, it changes a small table and computes nothing.
        LoraFileError when one does not fit: nothing has changed then.
        """
        loras = list(loras)
        matches = [self.match(file) for file, _, _ in loras]
        stacks: dict[ParameterPath, Stack] = {}
        for column, match in enumerate(matches):
            for place, adapter in match.places.items():
                stacks[place] = (*stacks.get(place, ()), (adapter, column))
        denoiser, text_encoders = _table(loras, 1), _table(loras, 2)
        with self._pristine_on_failure():
            self._varying.set_adapters(stacks, self._original)
            self._varying.set_weights(denoiser, text_encoders)
            self._set_embeddings(self._varying, matches)
        return matches

    def clear(self) -> None:
        """Take every LoRA away; what they changed is as it was, bit for bit."""
        for active in (self._merged, self._unmerged, self._varying, self._embeddings):
            active.clear()
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

    def _set_embeddings(
        self, user: UnmergedLoras | MergedWeights, matches: list[LoraMatch]
    ) -> None:
        self._used[user] = matches
        every = [match for used in self._used.values() for match in used]
        self.notes = self._embeddings.set_embeddings(match.embeddings for match in every)

    def _original(self, place: ParameterPath) -> Tensor:
        """The parameter that a change builds on, without any LoRA."""
        if place[2] == "weight" and not is_mergeable(self.family, place):
            return dequantized_weight(self.family, place)
        return self._merged.original(place)


def _changes_by_parameter(
    loras: Sequence[WeightedLora], matches: Sequence[LoraMatch]
) -> dict[ParameterPath, list[tuple[Adapter, float, int]]]:
    """Parameter -> its changes: an adapter, its weight, the number of its LoRA."""
    changes: dict[ParameterPath, list[tuple[Adapter, float, int]]] = defaultdict(list)
    rows = zip(matches, loras, strict=True)
    for column, (match, (_, denoiser, text_encoders)) in enumerate(rows):
        for place, adapter in match.places.items():
            if weight := denoiser if place[0] == "denoiser" else text_encoders:
                changes[place].append((adapter, weight, column))
    return changes


def _table(loras: Sequence[RowWeightedLora], side: int) -> Tensor:
    """(rows,LoRAs): the weights of one side, 1 the denoiser's, 2 the text encoders'."""
    if not loras:
        return torch.ones(1, 0)
    columns = [torch.tensor(lora[side]) for lora in loras]
    rows = max(len(column) for column in columns)
    return torch.stack([column.expand(rows) for column in columns], 1)
