"""Emphasis: (x) and [x], (x:1.2), BREAK between chunks, and texts joined by AND.

A1111's rules (modules/prompt_parser.py, parse_prompt_attention and get_multicond_prompt_list),
except that BREAK inside brackets ends the chunk too, that (x:1..2) is text instead of an error, and
that a backslash escapes any sign that follows it, BREAK's first letter too.
"""

from __future__ import annotations

from itertools import groupby

from sdlora.prompt.scanner import Token, number, tokens

BREAK = ("BREAK", -1.0)  # A1111's mark for the end of a chunk; tell it from text with `is`
_ROUND, _SQUARE = 1.1, 1 / 1.1
_STRONGEST = 1e6  # limit of a weight, since nested brackets multiply
_Piece = tuple[str | None, int, int]  # text or None for BREAK; index of its innermost ( and [


def parse_emphasis(text: str) -> list[tuple[str, float]]:
    """[(text, weight)], neighbours of one weight joined, and the object BREAK between chunks.

    >>> parse_emphasis("a (red:1.2) (cat) BREAK b")
    [('a ', 1.0), ('red', 1.2), (' ', 1.0), ('cat', 1.1), ('BREAK', -1.0), ('b', 1.0)]
    """
    rounds, squares = _Brackets(_ROUND), _Brackets(_SQUARE)
    pieces: list[_Piece] = []
    colon: tuple[int, int] | None = None  # since the last bracket: before which piece, and where
    for token in tokens(text):
        sign, closed = token.sign, False
        if sign in ("(", "["):
            (rounds if sign == "(" else squares).begin()
            colon = None
            continue
        if sign == ")":
            weight = number(text[colon[1] : token.start], exponent=False) if colon else None
            closed = rounds.end(weight)
            if closed and colon and weight is not None:
                del pieces[colon[0] :]
        elif sign == "]":
            closed = squares.end()
        if sign in (")", "]"):
            colon = None
        elif sign == ":":
            colon = len(pieces), token.end
        if not closed:
            pieces.append((_token_text(token), rounds.innermost, squares.innermost))
    return _merge_pieces(pieces, rounds.weights(), squares.weights())


def _token_text(token: Token) -> str | None:
    """Return a token's text without its escape; None is BREAK."""
    if token.kind == "escape":
        return token.text[1:]
    if token.kind == "word" and token.text == "BREAK":
        return None
    return "" if token.text == "\\" else token.text  # a backslash that nothing follows


class _Brackets:
    """The brackets of one kind, numbered as they open; 0 is the whole text."""

    def __init__(self, usual: float) -> None:
        self.usual = usual
        self.outer, self.factors, self.open = [0], [1.0], [0]

    @property
    def innermost(self) -> int:
        return self.open[-1]

    def begin(self) -> None:
        self.outer.append(self.open[-1])
        self.factors.append(self.usual)
        self.open.append(len(self.outer) - 1)

    def end(self, factor: float | None = None) -> bool:
        """Close the innermost; False when none is open."""
        if len(self.open) == 1:
            return False
        closed = self.open.pop()
        self.factors[closed] = self.usual if factor is None else factor
        return True

    def weights(self) -> list[float]:
        """Return the weight of each bracket: its factor times those of all brackets around it."""
        weights: list[float] = []
        for outer, factor in zip(self.outer, self.factors, strict=True):
            weight = factor * (weights[outer] if weights else 1.0)
            weights.append(max(-_STRONGEST, min(weight, _STRONGEST)))
        return weights


def _merge_pieces(
    pieces: list[_Piece], rounds: list[float], squares: list[float]
) -> list[tuple[str, float]]:
    """Join pieces of one weight; drop the spaces around BREAK and empty pieces."""

    def weight(piece: _Piece) -> float | None:
        return None if piece[0] is None else rounds[piece[1]] * squares[piece[2]]

    merged: list[tuple[str, float]] = []
    for piece_weight, group in groupby(pieces, weight):
        if piece_weight is None:
            if merged:
                merged[-1] = (merged[-1][0].rstrip(), merged[-1][1])
            merged += [BREAK for _ in group]
        else:
            text = "".join(piece[0] or "" for piece in group)
            after_break = bool(merged) and merged[-1] is BREAK
            merged.append((text.lstrip() if after_break else text, piece_weight))
    return [piece for piece in merged if piece[0]] or [("", 1.0)]


def compose(text: str) -> list[tuple[str, float]]:
    """[(text, weight)]: the texts joined by AND, and the weight of each one's noise prediction.

    Without an AND the whole text has weight 1, whatever it ends with.

    >>> compose("a cat :1.2 AND a dog:-1")
    [('a cat', 1.2), (' a dog', -1.0)]
    """
    joints = [token for token in tokens(text) if token.kind == "word" and token.text == "AND"]
    if not joints:
        return [(text, 1.0)]
    starts = [0, *(joint.end for joint in joints)]
    ends = [*(joint.start for joint in joints), len(text)]
    return [_split_weight(text[start:end]) for start, end in zip(starts, ends, strict=True)]


def _split_weight(text: str) -> tuple[str, float]:
    weighted_text, colon, last = text.rpartition(":")
    weight = number(last, exponent=False) if colon else None
    return (text.rstrip(), 1.0) if weight is None else (weighted_text.rstrip(), weight)
