"""Text of any encoding: decoded where it is sure which one it is.

A mark at the beginning (Unicode 15, 23.8) decides. Without one a text is UTF-8 unless that leaves
control characters; UTF-16 and UTF-32 then show by decoding to letters alone, which text of another
encoding, or of the other byte order, does not. Bytes that are none of these are Windows-1252, and
with it Latin-1, where they look like words of a European language with some accents.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from typing import NamedTuple

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Encodings of text without a mark, by what a text of theirs is called.
_WIDE = {
    "utf-32-le": "UTF-32", "utf-32-be": "UTF-32", "utf-16-le": "UTF-16", "utf-16-be": "UTF-16",
}  # fmt: skip
_MOST_STRAY = 0.2  # share of NUL that UTF-8 may hold; UTF-16 of Latin letters is half of NUL
_NO_TEXT = frozenset(("Cc", "Cn", "Co", "Cs"))
_SPACES = frozenset("\t\n\v\f\r\x1c\x1d\x1e\x1f\x85")
_MARKS_OF_WINDOWS = "‘’‚“”„–—…€°©®™«»¡¿·×§´¨"
_RUN = re.compile(r"[^\x00-\x7f]+")


class Decoded(NamedTuple):
    """Text, and the name of its encoding where that was guessed; '' where it is sure."""

    text: str
    guessed: str = ""


def decode(raw: bytes) -> Decoded:
    """The text that bytes stand for. ValueError: it is not sure which it is."""
    for mark, encoding in _MARKS:
        if raw.startswith(mark):
            return Decoded(_strict(raw, encoding))
    plain = _attempt(raw, "utf-8")
    if plain is not None:
        stray = plain.count("\0")
        if _is_text(plain.replace("\0", " ")) and stray <= _MOST_STRAY * max(1, len(plain)):
            return Decoded(plain)
    wide = {name: text for name in _WIDE if (text := _attempt(raw, name)) and _is_text(text)}
    if wide and (b"\0" in raw or plain is not None):
        best = min(wide, key=lambda name: _strangeness(wide[name]))
        return Decoded(wide[best], _WIDE[best])
    if plain is not None:  # control characters, but no other reading of it
        return Decoded(plain)
    western = _attempt(raw, "cp1252")
    if western is not None and _is_western(western):
        return Decoded(western, "Windows-1252")
    raise ValueError("is not UTF-8 text, and what else it may be is not sure")


def _strict(raw: bytes, encoding: str) -> str:
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError:
        name = encoding.removesuffix("-sig").upper()
        raise ValueError(f"is not {name} text, although it begins as such") from None


def _attempt(raw: bytes, encoding: str) -> str | None:
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError:
        return None


def _is_text(text: str) -> bool:
    return all(c in _SPACES or unicodedata.category(c) not in _NO_TEXT for c in text)


def _strangeness(text: str) -> tuple[int, int]:
    """Of two byte orders the right one has more of ASCII, and its letters from fewer blocks."""
    return -sum(c.isascii() for c in text), len({ord(c) >> 8 for c in text})


def _is_western(text: str) -> bool:
    """Whether text read as Windows-1252 looks like a European language: single accented letters
    among many plain ones. Text of an Asian or Cyrillic code page has long runs of others."""
    runs = _RUN.findall(text)
    letters = sum(c.isascii() and c.isalpha() for c in text)
    known = all(c.isalpha() or c in _MARKS_OF_WINDOWS for run in runs for c in run)
    return known and max(map(len, runs), default=0) <= 2 and 2 * sum(map(len, runs)) <= letters
