"""Words that LoRA files bring along, bundled textual inversions (arXiv:2208.01618), in a family.

While they stand, the family has tokenizers and token embeddings made from copies; when they go it
has its own ones again, the very objects, so nothing of them is left. diffusers'
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

from sdlora.adapters.matching import Words
from sdlora.messages import Message
from sdlora.models.base import Family


@dataclass(frozen=True)
class _Own:
    """What a text encoder of the family reads with when no word was brought."""

    tokenizer: Any
    embedding: nn.Embedding
    end: int


class Embeddings:
    """Which words, beside its own, an open family knows now."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self._standing: dict[str, Mapping[str, Tensor]] = {}
        self._own: dict[str, _Own] = {}
        for part, model in family.text_encoders.items():
            end = getattr(_reader(model), "eos_token_id", 0)
            self._own[part] = _Own(family.tokenizer(part), model.get_input_embeddings(), end)

    def stand(self, brought: Iterable[Words]) -> list[Message]:
        """Make exactly these words known; says which of them are not used, and why."""
        wanted: dict[str, Mapping[str, Tensor]] = {}
        notes = []
        for word, vectors in (row for words in brought for row in words.items()):
            if any(word in self._own[part].tokenizer.get_vocab() for part in vectors):
                template = "the LoRA's own word {word!r} is not used: the model has one"
                notes.append(Message(template, word=word[:80]))
            elif not _same(wanted.setdefault(word, vectors), vectors):
                template = "two LoRAs bring the word {word!r}; the first one's is used"
                notes.append(Message(template, word=word[:80]))
        is_new = any(self._standing.get(word) is not vectors for word, vectors in wanted.items())
        if is_new or len(wanted) < len(self._standing):
            self.clear()
            self._standing = wanted
            for part in self._own:
                self._teach(part, {w: v[part] for w, v in wanted.items() if part in v})
        return notes

    def clear(self) -> None:
        """Give the family its own tokenizers and token embeddings back."""
        if self._standing:
            for part, own in self._own.items():
                self._give(part, own.tokenizer, own.embedding, own.end)
            self._standing = {}

    def _teach(self, part: str, words: Mapping[str, Tensor]) -> None:
        """A word of n vectors becomes the tokens `word`, `word_1`, ...; diffusers writes them out
        in a prompt that has the first (TextualInversionLoaderMixin.maybe_convert_prompt)."""
        if not words:
            return
        own = self._own[part]
        tokenizer = copy.deepcopy(own.tokenizer)
        weight = own.embedding.weight.detach()
        for word, vectors in words.items():
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
        self._give(part, tokenizer, nn.Embedding.from_pretrained(weight), tokenizer.eos_token_id)

    def _give(self, part: str, tokenizer: Any, embedding: nn.Embedding, end: int) -> None:
        model = self.family.text_encoders[part]
        self.family.set_tokenizer(part, tokenizer)
        model.set_input_embeddings(embedding)
        _reader(model).eos_token_id = end


def _reader(model: Any) -> Any:
    """The part of a text encoder that looks for the end of the text."""
    return getattr(model, "text_model", model)


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[k].equal(other[k]) for k in one)
