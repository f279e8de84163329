"""A text as a CLIP text encoder reads it: chunk by chunk, each token weighed, from any layer.

What diffusers' pipelines do themselves for a plain text, this does to the bit; the rest is A1111's
(modules/sd_hijack_clip.py, modules/sd_emphasis.py). Their own clip skip fails for SD 1 with
transformers 5, which has no `text_model` in its CLIPTextModel, and leaves the negative text out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdlora.prompt.chunks import CHUNK, Chunk, Unit, chunked
from sdlora.prompt.emphasis import parse_emphasis


@dataclass(frozen=True)
class TextEncodeOptions:
    """How texts are read: A1111's emphasis mode, and its clip skip, where 1 is the last layer."""

    emphasis: str = "original"
    clip_skip: int = 1


@dataclass(frozen=True)
class ClipLayer:
    """Which layer of its text encoders a family reads.

    `read`: counted from the end, 1 is the last. `gone`: how many A1111 counts that the files do not
    have. `normed`: whether the encoder's last norm follows.
    """

    read: int = 1
    gone: int = 0
    normed: bool = True

    def at(self, clip_skip: int, model: Any) -> int:
        """Which to read, counted from the end: deeper only than what the family reads anyway."""
        deeper = max(clip_skip - self.read - self.gone, 0)
        return min(self.read + deeper, self.most(model))

    def most(self, model: Any) -> int:
        """How many there are."""
        return int(model.config.num_hidden_layers)


class ClipEncoder:
    """A CLIP text encoder of an open family, with its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any, layers: ClipLayer) -> None:
        self.model, self.tokenizer, self.layers = model, tokenizer, layers

    def chunks(self, text: str) -> list[Chunk]:
        """The text's chunks; the whole vocabulary as it stands now, brought words included."""
        return chunked(parse_emphasis(text), self._units)

    def literal(self, text: str) -> list[Chunk]:
        """The chunks of a text in which no sign means anything."""
        return chunked([(text, 1.0)], self._units)

    def read(self, chunks: list[Chunk], manner: TextEncodeOptions) -> tuple[Tensor, Tensor]:
        """(77n,D) of n chunks; and (D2) of the first one's end, what SDXL calls pooled."""
        numbers = torch.tensor([self._numbers(chunk) for chunk in chunks])
        its = self.layers
        layer = its.at(manner.clip_skip, self.model)
        is_last = layer == 1 and its.normed  # what the encoder gives of itself
        answer = self.model(numbers.to(self.model.device), output_hidden_states=not is_last)
        states = answer.last_hidden_state if is_last else answer.hidden_states[-layer].clone()
        if its.normed and not is_last:
            # transformers 5 has dropped `text_model` from one of the two classes
            states = getattr(self.model, "text_model", self.model).final_layer_norm(states)
        for index, chunk in enumerate(chunks):
            if any(weight != 1.0 for _, weight in chunk):
                states[index] = weighed(states[index], _weights(chunk), manner.emphasis)
        return states.flatten(0, 1).to(self.model.dtype), answer[0][0]

    def _units(self, text: str) -> list[Unit]:
        """Tokens; a brought word of n vectors, the tokens `word`, `word_1`, ..., is one unit."""
        its = self.tokenizer
        added = its.added_tokens_encoder
        words = {number: [number] for number in added.values()}
        for word, number in added.items():
            while (following := f"{word}_{len(words[number])}") in added:
                words[number].append(added[following])
        numbers = its(text, add_special_tokens=False, truncation=False, verbose=False).input_ids
        return [Unit(tuple(words.get(number, (number,)))) for number in numbers]

    def _numbers(self, chunk: Chunk) -> list[int]:
        """All 77: the marks around the tokens, then padding."""
        its = self.tokenizer
        numbers = [number for unit, _ in chunk for number in unit.numbers]
        padding = [its.pad_token_id] * (CHUNK - len(numbers))
        return [its.bos_token_id, *numbers, its.eos_token_id, *padding]


def weighed(states: Tensor, weights: list[float], emphasis: str) -> Tensor:
    """States (77,D) times a weight per token, in float32; in `original` their mean is restored."""
    its = states.float()
    changed = its * torch.tensor(weights, device=its.device)[:, None]
    mean = changed.mean()
    if emphasis == "original" and mean != 0:
        changed = changed * (its.mean() / mean)
    return changed.to(states.dtype)


def _weights(chunk: Chunk) -> list[float]:
    inner = [weight for unit, weight in chunk for _ in unit.numbers]
    return [1.0, *inner, *[1.0] * (CHUNK + 1 - len(inner))]
