"""Scanner of the prompt language: splits a text into tokens, in time linear in its length.

Every stage reads these tokens and treats unknown ones as text, so that all agree on LoRA tags,
escapes and brackets. A tag is one token: only wildcards are read inside it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

# Each alternative fails at once or takes what it has looked at, or looks at a limited number of
# letters, so that the time is linear. [^<>] stops at the next tag. A bare tag is never part of a
# word, a path or an address, ends where prompt grammar begins, and leaves a sentence its full stop.
_TAGS = r"""
      (?P<tag> <(?i:[a-z])\w*:[^<>]+> )
    | (?P<bare> (?<![\w<:/\\.@\#-]) (?i:lora|lyco):\w
                (?: [^\s,;<>()\[\]{}|"]* [^\s,;<>()\[\]{}|"`*.!?:'] )? )
    | """
_OTHERS = r"""
      (?P<wildcard> __(?=[^\W_]|\*) (?:(?!__)[\w./*\ -]){1,200} (?<!\ )__ )
    | (?P<escape> \\. )
    | (?P<word> (?<!\w)(?:BREAK|AND)(?!\w) )
    | (?P<sign> [()\[\]{}:|$\#\n] )
    | (?P<text> [^\W_]+ | [^\w\\()\[\]{}:|$\#\n<]+ | . )
    """
_TOKEN = re.compile(_TAGS + _OTHERS, re.VERBOSE | re.DOTALL)
_IN_A_TAG = re.compile(_OTHERS, re.VERBOSE | re.DOTALL)
_MEANING_ALONE = frozenset("()[]{}|#")  # a ':' means something in brackets only
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)")
_EXPONENT = re.compile(r"e[+-]?[0-9]+", re.IGNORECASE)


class Token(NamedTuple):
    """A piece of a prompt.

    `kind` is tag, bare (a tag without its <>), wildcard, escape (a backslash and what it keeps
    from being read), word (BREAK or AND), sign (one of ()[]{}:|$# and the end of a line) or text.
    """

    kind: str
    text: str
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.text)

    @property
    def sign(self) -> str:
        """The sign that it is, or nothing."""
        return self.text if self.kind == "sign" else ""


def tokens(text: str, start: int = 0) -> Iterator[Token]:
    """The tokens from `start` on; their texts joined are the text."""
    rounds = 0  # how many ( are open
    for match in _TOKEN.finditer(text, start):
        token = Token(match.lastgroup or "", match[0], match.start())
        if token.kind == "sign":
            rounds = max(0, rounds + (token.text == "(") - (token.text == ")"))
        if rounds and token.kind == "bare" and text.startswith(")", token.end):
            yield from _without_emphasis(token)
        else:
            yield token


def tokens_in_tag(tag: Token) -> Iterator[Token]:
    """Yield the tokens inside a tag, for the wildcards in it; `start` counts from the tag."""
    for match in _IN_A_TAG.finditer(tag.text):
        yield Token(match.lastgroup or "", match[0], match.start())


def _without_emphasis(bare: Token) -> Iterator[Token]:
    """(cat lora:a:0.8:1.2) ends with the emphasis of the brackets, as (cat lora:a :1.2) does."""
    tag, _, last = bare.text.rpartition(":")
    if tag.count(":") < 2 or number(last, exponent=False) is None:
        yield bare
        return
    yield bare._replace(text=tag)
    yield Token("sign", ":", bare.start + len(tag))
    yield Token("text", last, bare.start + len(tag) + 1)


def joined(tokens_kept: Iterable[Token]) -> str:
    """Join tokens to a text. A space keeps AND and BREAK separate words where tokens beside them
    are left out."""
    pieces: list[str] = []
    before = Token("text", "", 0)
    for token in tokens_kept:
        is_glued = "word" in (before.kind, token.kind) and token.start > before.end
        if is_glued and _is_letter(before.text[-1:]) and _is_letter(token.text[:1]):
            pieces.append(" ")
        pieces.append(token.text)
        before = token
    return "".join(pieces)


def _is_letter(letter: str) -> bool:
    return letter.isalnum() or letter == "_"


def escaped(text: str) -> str:
    r"""Escape words for a prompt, so that they are read literally: saber \(fate\).

    Existing escapes stay.
    """
    pieces: list[str] = []
    for token in tokens(text):
        means_more = token.sign in _MEANING_ALONE or token.kind in (
            "tag",
            "bare",
            "wildcard",
            "word",
        )
        pieces.append(f"\\{token.text}" if means_more else token.text)
    return "".join(pieces)


def without_escapes(prompt: str) -> str:
    """Return the text without the backslashes of its escapes."""
    pieces = [t.text[1:] if t.kind == "escape" else t.text for t in tokens(prompt)]
    return "".join(pieces)


def number(text: str, exponent: bool = True) -> float | None:
    """Parse a finite number, spaces around it allowed: 0.8, .5, -1, and 1e-1 with `exponent`."""
    text = text.strip()
    plain = _NUMBER.match(text)
    if not plain:
        return None
    rest = text[plain.end() :]
    if rest and not (exponent and _EXPONENT.fullmatch(rest)):
        return None
    value = float(text)
    return value if math.isfinite(value) else None
