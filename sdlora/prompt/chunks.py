"""A text in the chunks that a text encoder reads, as A1111 cuts it (modules/sd_hijack_clip.py).

A CLIP text encoder reads 75 tokens and two marks. A longer text is read in several chunks, one
beside the other; where one is full, what follows its last comma moves on with the rest, if that is
at most 20 tokens. BREAK ends a chunk. A tokenizer is a function here, so this loads no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from sdlora.prompt.emphasis import BREAK

CHUNK, BACKTRACK = 75, 20  # tokens


class Unit(NamedTuple):
    """What is never cut: one token, or all those of a textual inversion's word; and its text, the
    spaces before it included, where the tokenizer tells."""

    numbers: tuple[int, ...]
    text: str = ""


class Weighed(NamedTuple):
    """A unit in a chunk, and how strongly it counts."""

    unit: Unit
    weight: float


Tokenize = Callable[[str], Sequence[Unit]]
Chunk = list[Weighed]


def chunked(pieces: Iterable[tuple[str, float]], tokenize: Tokenize) -> list[Chunk]:
    """The chunks of what `parse_emphasis` gave, at least one."""
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


def size(chunk: Chunk) -> int:
    """Its tokens."""
    return sum(len(unit.numbers) for unit, _ in chunk)


def shown(chunk: Chunk) -> tuple[tuple[str, float], ...]:
    """Its text by weight, as the tokenizer told it."""
    groups = groupby(chunk, key=lambda weighed: weighed.weight)
    return tuple(("".join(unit.text for unit, _ in group), weight) for weight, group in groups)


class _Cutter:
    """Chunks that are closed, and the one that is being filled."""

    def __init__(self, comma: Sequence[Unit]) -> None:
        self.comma = comma[0].numbers if len(comma) == 1 else ()
        self.chunks: list[Chunk] = []
        self.open: Chunk = []
        self.size = 0
        self.movable = 0  # where the unit after the last comma stands; 0: there is none near

    def close(self, keep: Chunk | None = None) -> None:
        """End the chunk; `keep` begins the next one."""
        self.chunks.append(self.open)
        self.open, self.movable = keep or [], 0
        self.size = size(self.open)

    def add(self, weighed: Weighed) -> None:
        """One more, in a new chunk where this one is full."""
        unit = weighed.unit
        if len(unit.numbers) > CHUNK:
            unit = unit._replace(numbers=unit.numbers[:CHUNK])
        is_comma = unit.numbers == self.comma
        if self.size + len(unit.numbers) > CHUNK:
            moved = self.open[self.movable :] if self.movable else []
            if is_comma or self.size < CHUNK or size(moved) >= BACKTRACK:
                moved = []
            if moved:
                del self.open[self.movable :]
            self.close(moved)
        elif is_comma:
            self.movable = len(self.open) + 1
        self.open.append(Weighed(unit, weighed.weight))
        self.size += len(unit.numbers)
