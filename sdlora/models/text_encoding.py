"""CLIP text encoding: chunk by chunk, each token weighed, from any layer.

What diffusers' pipelines do themselves for a plain text, this does to the bit; the rest is A1111's
(modules/sd_hijack_clip.py, modules/sd_emphasis.py). Their own clip skip fails for SD 1 with
transformers 5, which has no `text_model` in its CLIPTextModel, and leaves the negative text out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdlora.models.protocols import Tokenizer
from sdlora.prompt.chunks import CHUNK, Chunk, Unit, chunked
from sdlora.prompt.emphasis import parse_emphasis


@dataclass(frozen=True)
class TextEncodeOptions:
    """Options of text encoding: A1111's emphasis mode and clip skip, where 1 is the last layer."""

    emphasis: str = "original"
    clip_skip: int = 1


@dataclass(frozen=True)
class ClipLayer:
    """Layer of its text encoders that a family reads.

    `read`: counted from the end, 1 is the last. `gone`: how many A1111 counts that the files do not
    have. `normed`: whether the encoder's last norm follows.
    """

    read: int = 1
    gone: int = 0
    normed: bool = True

    def at(self, clip_skip: int, model: Any) -> int:
        """Return the layer to read, counted from the end; never one above the family's own."""
        deeper = max(clip_skip - self.read - self.gone, 0)
        return min(self.read + deeper, self.count(model))

    def count(self, model: Any) -> int:
        """Return the number of the encoder's layers."""
        return int(model.config.num_hidden_layers)


class ClipEncoder:
    """A CLIP text encoder of an open family, with its tokenizer."""

    def __init__(self, model: Any, tokenizer: Tokenizer, layer: ClipLayer) -> None:
        self.model, self.tokenizer, self.layer = model, tokenizer, layer

    def chunks(self, text: str) -> list[Chunk]:
        """Split a prompt into chunks; textual inversions of the moment are words of it."""
        return chunked(parse_emphasis(text), self._units)

    def literal(self, text: str) -> list[Chunk]:
        """Split a text in which no sign means anything into chunks."""
        return chunked([(text, 1.0)], self._units)

    def encode(self, chunks: list[Chunk], options: TextEncodeOptions) -> tuple[Tensor, Tensor]:
        """Return (77n,D) of n chunks; and (D2) of the first one's end, what SDXL calls pooled."""
        tokens = torch.tensor([self._token_ids(chunk) for chunk in chunks])
        layer = self.layer.at(options.clip_skip, self.model)
        is_last = layer == 1 and self.layer.normed  # the output of the encoder as it stands
        output = self.model(tokens.to(self.model.device), output_hidden_states=not is_last)
        states = output.last_hidden_state if is_last else output.hidden_states[-layer].clone()
        if self.layer.normed and not is_last:
            # transformers 5 has dropped `text_model` from one of the two classes
            states = getattr(self.model, "text_model", self.model).final_layer_norm(states)
        for index, chunk in enumerate(chunks):
            if any(weight != 1.0 for _, weight in chunk):
                states[index] = apply_emphasis(states[index], _weights(chunk), options.emphasis)
        return states.flatten(0, 1).to(self.model.dtype), output[0][0]

    def _units(self, text: str) -> list[Unit]:
        """Split into tokens; an inversion's word of n vectors, the tokens `word`, `word_1`, ..., is
        one unit."""
        added = self.tokenizer.added_tokens_encoder
        vectors = {number: [number] for number in added.values()}
        for word, number in added.items():
            while (following := f"{word}_{len(vectors[number])}") in added:
                vectors[number].append(added[following])
        tokens = self.tokenizer(
            text, add_special_tokens=False, truncation=False, verbose=False
        ).input_ids
        return [Unit(tuple(vectors.get(token, (token,)))) for token in tokens]

    def _token_ids(self, chunk: Chunk) -> list[int]:
        """Return all 77: the marks around the tokens, then padding."""
        tokens = [number for unit, _ in chunk for number in unit.numbers]
        tokenizer = self.tokenizer
        padding = [tokenizer.pad_token_id] * (CHUNK - len(tokens))
        return [tokenizer.bos_token_id, *tokens, tokenizer.eos_token_id, *padding]


def apply_emphasis(states: Tensor, weights: list[float], emphasis: str) -> Tensor:
    """Return states (77,D) times a weight per token, in float32; in `original` their mean is
    restored."""
    plain = states.float()
    weighted = plain * torch.tensor(weights, device=plain.device)[:, None]
    mean = weighted.mean()
    if emphasis == "original" and mean != 0:
        weighted = weighted * (plain.mean() / mean)
    return weighted.to(states.dtype)


def _weights(chunk: Chunk) -> list[float]:
    inner = [weight for unit, weight in chunk for _ in unit.numbers]
    return [1.0, *inner, *[1.0] * (CHUNK + 1 - len(inner))]
