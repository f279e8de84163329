"""Families whose context is that of CLIP text encoders, in chunks of 77 tokens."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sdlora.models.base import PLAIN, Conditioning, ModelFamily
from sdlora.models.text_encoding import ClipEncoder, ClipLayer, TextEncodeOptions
from sdlora.prompt.chunks import Chunk


class ClipFamily(ModelFamily):
    """Texts of any length: n chunks of 77 tokens one after the other, `context` (B,77n,D); and
    `pooled` (B,D2), the last encoder's summary of the first, where the family has that."""

    has_pooled: bool = False  # the denoiser reads a text's summary as well

    @property
    @abstractmethod
    def clip_layer(self) -> ClipLayer:
        """The layer of the text encoders that the denoiser reads."""

    def encoders(self) -> list[ClipEncoder]:
        """Return the text encoders, with the tokenizers that they have now."""
        return [
            ClipEncoder(model, self.tokenizer(key), self.clip_layer)
            for key, model in self.text_encoders.items()
        ]

    def encode_prompt(self, text: str, options: TextEncodeOptions = PLAIN) -> Conditioning:
        """See ModelFamily; of any length, with emphasis and BREAK."""
        return self._encode([encoder.chunks(text) for encoder in self.encoders()], options)

    def encode_captions(self, captions: Sequence[str]) -> Conditioning:
        """See ModelFamily; n chunks for the longest, and empty ones after the others."""
        if self.caption_clip_skip == 1 and not any(map(self.beyond_chunk, captions)):
            return self.encode_prompts(captions)
        encoders = self.encoders()
        texts = [[encoder.literal(caption) for encoder in encoders] for caption in captions]
        count = max(len(chunks) for text in texts for chunks in text)
        with self.autocast():
            options = TextEncodeOptions(clip_skip=self.caption_clip_skip)
            return self.collate([self._encode(text, options, count) for text in texts])

    def _encode(
        self, texts: Sequence[list[Chunk]], options: TextEncodeOptions, least: int = 1
    ) -> Conditioning:
        """Encode one text's chunks, by encoder, `least` of them at least."""
        # a textual inversion that only one encoder has may make more chunks there
        count = max(least, *map(len, texts))
        encoded = [
            encoder.encode([*chunks, *[[]] * (count - len(chunks))], options)
            for encoder, chunks in zip(self.encoders(), texts, strict=True)
        ]
        tensors = {"context": torch.cat([states for states, _ in encoded], -1)}
        if self.has_pooled:
            tensors["pooled"] = encoded[-1][1]
        return Conditioning(tensors).mapped(lambda tensor: tensor[None])

    def pad(
        self, conditioning: Conditioning, length: int, empty: Callable[[], Conditioning]
    ) -> Conditioning:
        """See ModelFamily; chunks of no text after it."""
        context = conditioning.tensors["context"]
        if context.shape[1] == length:
            return conditioning
        padding: Tensor = empty().tensors["context"]
        times = (length - context.shape[1]) // padding.shape[1]
        padded = torch.cat([context, *[padding] * times], dim=1)
        return Conditioning({**conditioning.tensors, "context": padded})

    @property
    def max_clip_skip(self) -> int:
        """See ModelFamily."""
        first = next(iter(self.text_encoders.values()))
        return self.clip_layer.count(first) + self.clip_layer.gone

    def beyond_chunk(self, text: str) -> str:
        """Return the end of a text that does not fit into one chunk of 77 tokens."""
        tokenizer = self.pipeline.tokenizer
        tokens = tokenizer(text, truncation=False, verbose=False).input_ids
        # the last place is the end mark's
        return str(tokenizer.decode(tokens[tokenizer.model_max_length - 1 : -1])).strip()
