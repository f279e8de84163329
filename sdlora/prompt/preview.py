"""Preview of a prompt: its texts by step, their chunks and token counts, and the LoRA tags.

Loads no torch: the token counts come from the model's tokenizer alone (`prompt.tokenizer`).
"""

from __future__ import annotations

from dataclasses import dataclass

from sdlora.prompt.chunks import CHUNK, Tokenize, chunked, token_count, weighted_texts
from sdlora.prompt.emphasis import compose, parse_emphasis
from sdlora.prompt.schedules import schedule
from sdlora.prompt.tags import LoraTag, parse_prompt


@dataclass(frozen=True)
class ChunkView:
    """One chunk: its text by weight, and the number of its tokens, of `CHUNK` at most."""

    pieces: tuple[tuple[str, float], ...]
    tokens: int
    room: int = CHUNK


@dataclass(frozen=True)
class PreviewPart:
    """One of the texts joined by AND, and its weight."""

    weight: float
    chunks: tuple[ChunkView, ...]


@dataclass(frozen=True)
class PreviewStage:
    """A text and its steps: spans (first, last), counted from 1."""

    text: str
    spans: tuple[tuple[int, int], ...]
    parts: tuple[PreviewPart, ...]

    @property
    def tokens(self) -> int:
        """Number of tokens in all parts and chunks."""
        return sum(chunk.tokens for part in self.parts for chunk in part.chunks)


@dataclass(frozen=True)
class PromptPreview:
    """Preview of a whole prompt: each of its texts once, in the order of the steps."""

    stages: tuple[PreviewStage, ...]
    loras: tuple[LoraTag, ...]
    problems: tuple[str, ...]

    @property
    def tokens(self) -> int:
        """Number of tokens of the longest text."""
        return max(stage.tokens for stage in self.stages)


def preview_prompt(text: str, steps: int, tokenize: Tokenize) -> PromptPreview:
    """Preview `text`, already expanded, over `steps` steps. Never raises."""
    prompt = parse_prompt(text)
    spans: dict[str, list[tuple[int, int]]] = {}
    begin = 1
    for end, stage in schedule(prompt.text, steps):
        spans.setdefault(stage, []).append((begin, end))
        begin = end + 1
    stages = tuple(_stage(stage_text, tuple(when), tokenize) for stage_text, when in spans.items())
    return PromptPreview(stages, prompt.loras, prompt.problems)


def _stage(text: str, spans: tuple[tuple[int, int], ...], tokenize: Tokenize) -> PreviewStage:
    parts = []
    for part, weight in compose(text):
        chunks = chunked(parse_emphasis(part), tokenize)
        views = tuple(ChunkView(weighted_texts(chunk), token_count(chunk)) for chunk in chunks)
        parts.append(PreviewPart(weight, views))
    return PreviewStage(text, spans, tuple(parts))
