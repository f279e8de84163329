"""Chunks of 75 tokens for a text encoder, cut as in A1111 (modules/sd_hijack_clip.py).

A CLIP text encoder reads 75 tokens plus a begin and an end token. A longer text is encoded in
several chunks; where one is full, the tokens after its last comma move to the next chunk, if they
are at most 20. BREAK ends a chunk. The tokenizer is passed as a function, so this loads no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from sdlora.prompt.emphasis import BREAK

CHUNK, BACKTRACK = 75, 20  # tokens


class Unit(NamedTuple):
    """Tokens that stay in one chunk: one token, or all those of a textual inversion. `text` is
    their text with the spaces before it, empty when the tokenizer does not give it."""

    numbers: tuple[int, ...]
    text: str = ""


class Weighed(NamedTuple):
    """A unit in a chunk and its emphasis weight."""

    unit: Unit
    weight: float


Tokenize = Callable[[str], Sequence[Unit]]
Chunk = list[Weighed]


def chunked(pieces: Iterable[tuple[str, float]], tokenize: Tokenize) -> list[Chunk]:
    """Return the chunks of the pieces that `parse_emphasis` returned, at least one."""
    cutter = _Cutter(tokenize(","))
    for piece in pieces:
        if piece is BREAK:
            cutter.close()
        else:
            for unit in tokenize(piece[0]):
                cutter.add(Weighed(unit, piece[1]))
    if cutter.open or not cutter.chunks:
        cutter.close()
    return cutter.chunks


def token_count(chunk: Chunk) -> int:
    """Return the number of tokens in a chunk."""
    return sum(len(unit.numbers) for unit, _ in chunk)


def weighted_texts(chunk: Chunk) -> tuple[tuple[str, float], ...]:
    """Return the chunk's text as (text, weight), neighbours of one weight joined."""
    groups = groupby(chunk, key=lambda weighed: weighed.weight)
    return tuple(("".join(unit.text for unit, _ in group), weight) for weight, group in groups)


class _Cutter:
    """Builder of chunks: those that are closed, and the open one."""

    def __init__(self, comma: Sequence[Unit]) -> None:
        self.comma = comma[0].numbers if len(comma) == 1 else ()
        self.chunks: list[Chunk] = []
        self.open: Chunk = []
        self.open_tokens = 0
        self.after_comma = 0  # index of the unit after the last comma; 0: none

    def close(self, keep: Chunk | None = None) -> None:
        """End the chunk; `keep` begins the next one."""
        self.chunks.append(self.open)
        self.open, self.after_comma = keep or [], 0
        self.open_tokens = token_count(self.open)

    def add(self, weighed: Weighed) -> None:
        """Add a unit, in a new chunk where the open one is full."""
        unit = weighed.unit
        if len(unit.numbers) > CHUNK:
            unit = unit._replace(numbers=unit.numbers[:CHUNK])
        is_comma = unit.numbers == self.comma
        if self.open_tokens + len(unit.numbers) > CHUNK:
            moved = self.open[self.after_comma :] if self.after_comma else []
            if is_comma or self.open_tokens < CHUNK or token_count(moved) >= BACKTRACK:
                moved = []
            if moved:
                del self.open[self.after_comma :]
            self.close(moved)
        elif is_comma:
            self.after_comma = len(self.open) + 1
        self.open.append(Weighed(unit, weighed.weight))
        self.open_tokens += len(unit.numbers)
