"""What a prompt becomes, to be shown: texts by their steps, their chunks, the tags found.

Loads no torch: the token counts come from the model's tokenizer alone (`prompt.tokenizer`).
"""

from __future__ import annotations

from dataclasses import dataclass

from sdlora.prompt.chunks import CHUNK, Tokenize, chunked, shown, size
from sdlora.prompt.emphasis import compose, parse_emphasis
from sdlora.prompt.schedules import schedule
from sdlora.prompt.tags import LoraTag, parse_prompt


@dataclass(frozen=True)
class ChunkView:
    """A chunk: its text by weight, and how many of `CHUNK` tokens it has."""

    pieces: tuple[tuple[str, float], ...]
    tokens: int
    room: int = CHUNK


@dataclass(frozen=True)
class PreviewPart:
    """One of the texts that AND joins, and its weight."""

    weight: float
    chunks: tuple[ChunkView, ...]


@dataclass(frozen=True)
class PreviewStage:
    """A text, and when it stands: spans (first, last) of steps, counted from 1."""

    text: str
    spans: tuple[tuple[int, int], ...]
    parts: tuple[PreviewPart, ...]

    @property
    def tokens(self) -> int:
        """Of all its parts and chunks."""
        return sum(chunk.tokens for part in self.parts for chunk in part.chunks)


@dataclass(frozen=True)
class PromptPreview:
    """The whole prompt: each text that it becomes once, in the order of the steps."""

    stages: tuple[PreviewStage, ...]
    loras: tuple[LoraTag, ...]
    problems: tuple[str, ...]

    @property
    def tokens(self) -> int:
        """Of the text that has most."""
        return max(stage.tokens for stage in self.stages)


def view(text: str, steps: int, tokenize: Tokenize) -> PromptPreview:
    """What `text`, its styles and wildcards expanded, becomes over `steps` steps. Never raises."""
    prompt = parse_prompt(text)
    spans: dict[str, list[tuple[int, int]]] = {}
    begin = 1
    for end, stage in schedule(prompt.text, steps):
        spans.setdefault(stage, []).append((begin, end))
        begin = end + 1
    stages = tuple(_stage(its, tuple(when), tokenize) for its, when in spans.items())
    return PromptPreview(stages, prompt.loras, prompt.problems)


def _stage(text: str, spans: tuple[tuple[int, int], ...], tokenize: Tokenize) -> PreviewStage:
    parts = []
    for part, weight in compose(text):
        chunks = chunked(parse_emphasis(part), tokenize)
        views = tuple(ChunkView(shown(chunk), size(chunk)) for chunk in chunks)
        parts.append(PreviewPart(weight, views))
    return PreviewStage(text, spans, tuple(parts))
