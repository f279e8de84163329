"""Textual inversions (arXiv:2208.01618) that are bundled with LoRA files, in an open family.

While they are active, the family has tokenizers and token embeddings made from copies; when they
go it has its own ones again, the very objects, so nothing of them is left. diffusers'
`unload_textual_inversion` edits in place, and of a word of several vectors it takes the first only
(measured with diffusers 0.42.1, transformers 5.23).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken
from torch import Tensor, nn

from sdlora.adapters.matching import WordEmbeddings
from sdlora.messages import Message
from sdlora.models.base import ModelFamily


@dataclass(frozen=True)
class _Own:
    """The tokenizer and token embedding of a text encoder without any textual inversion."""

    tokenizer: Any
    embedding: nn.Embedding
    end: int


class Embeddings:
    """The textual inversions that an open family knows now, beside its own tokens."""

    def __init__(self, family: ModelFamily) -> None:
        self.family = family
        self._current: dict[str, Mapping[str, Tensor]] = {}
        self._own: dict[str, _Own] = {}
        for part, model in family.text_encoders.items():
            end = getattr(_clip_model(model), "eos_token_id", 0)  # T5 does not look for it
            self._own[part] = _Own(family.tokenizer(part), model.get_input_embeddings(), end)

    def set_embeddings(self, brought: Iterable[WordEmbeddings]) -> list[Message]:
        """Make exactly these words known; return messages about those that are not used."""
        active: dict[str, Mapping[str, Tensor]] = {}
        notes = []
        for word, vectors in (row for bundle in brought for row in bundle.items()):
            if any(word in self._own[part].tokenizer.get_vocab() for part in vectors):
                template = "the LoRA's own word {word!r} is not used: the model has one"
                notes.append(Message(template, word=word[:80]))
            elif not _are_equal(active.setdefault(word, vectors), vectors):
                template = "two LoRAs bring the word {word!r}; the first one's is used"
                notes.append(Message(template, word=word[:80]))
        is_new = any(self._current.get(word) is not vectors for word, vectors in active.items())
        if is_new or len(active) < len(self._current):
            self.clear()
            self._current = active
            for part in self._own:
                self._add_tokens(part, {w: v[part] for w, v in active.items() if part in v})
        return notes

    def clear(self) -> None:
        """Give the family its own tokenizers and token embeddings back."""
        if self._current:
            for part, own in self._own.items():
                self._install(part, own.tokenizer, own.embedding, own.end)
            self._current = {}

    def _add_tokens(self, part: str, vectors_by_word: Mapping[str, Tensor]) -> None:
        """Add tokens to an encoder: a word of n vectors becomes `word`, `word_1`, ...

        diffusers writes them out in a prompt that has the first
        (TextualInversionLoaderMixin.maybe_convert_prompt).
        """
        if not vectors_by_word:
            return
        own = self._own[part]
        tokenizer = copy.deepcopy(own.tokenizer)
        weight = own.embedding.weight.detach()
        for word, vectors in vectors_by_word.items():
            names = [word, *(f"{word}_{number}" for number in range(1, len(vectors)))]
            # as words of their own: 'cat' does not begin 'category'
            tokenizer.add_tokens([AddedToken(name, single_word=True) for name in names])
            numbers = tokenizer.convert_tokens_to_ids(names)
            grown = weight.new_zeros(max(*numbers, len(weight) - 1) + 1, weight.shape[1])
            grown[: len(weight)] = weight
            grown[numbers] = vectors.to(weight)
            weight = grown
        # where the config says 2, transformers takes the highest token for the end of the text:
        # a new one would be taken for it (modeling_clip.py)
        count, width = weight.shape
        embedding = nn.Embedding(count, width, _weight=weight, _freeze=True)
        self._install(part, tokenizer, embedding, tokenizer.eos_token_id)

    def _install(self, part: str, tokenizer: Any, embedding: nn.Embedding, end: int) -> None:
        model = self.family.text_encoders[part]
        self.family.set_tokenizer(part, tokenizer)
        model.set_input_embeddings(embedding)
        _clip_model(model).eos_token_id = end


def _clip_model(model: Any) -> Any:
    """The part of a text encoder that looks for the end of the text."""
    return getattr(model, "text_model", model)


def _are_equal(vectors: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return vectors.keys() == other.keys() and all(vectors[k].equal(other[k]) for k in vectors)
