"""Text files of users, in any common encoding: one reader for captions, lists and tables.

A byte order mark (Unicode 15, 23.8) decides. Without one a text is UTF-8 unless that leaves control
characters; UTF-16 and UTF-32 are then recognised since they decode to letters alone, which text of
another encoding, or of the other byte order, does not. UTF-8 with a few damaged lines is read
without those. Other bytes are Windows-1252, and with it Latin-1, where they look like words of a
European language with some accents. There are never replacement characters; no torch.
"""

from __future__ import annotations

import codecs
import json
import re
import unicodedata
from pathlib import Path
from typing import Any, NamedTuple

from sdlora.messages import Message

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
_WESTERN = "Windows-1252"
_MAX_NUL_SHARE = 0.2  # share of NUL that UTF-8 may hold; UTF-16 of Latin letters is half of NUL
_SOUND_LINES = 4  # of UTF-8 beyond ASCII, for each damaged one that is left out
_NO_TEXT = frozenset(("Cc", "Cn", "Co", "Cs"))
_SPACES = frozenset("\t\n\v\f\r\x1c\x1d\x1e\x1f\x85")
_MARKS_OF_WINDOWS = "‘’‚“”„–—…€°©®™«»¡¿·×§´¨£\xa0"
_RUN = re.compile(r"[^\x00-\x7f]+")


class UnreadTextError(ValueError):
    """A file is not read as text. `message` goes on from the file's name: 'is not UTF-8 text'."""

    def __init__(self, template: str, /, **values: Any) -> None:
        self.message = Message(template, **values)
        super().__init__(self.message)


class Decoded(NamedTuple):
    """Text; the name of its encoding where that was guessed, '' where it is sure; and how many
    lines are empty since they were damaged."""

    text: str
    guessed: str = ""
    damaged: int = 0

    @property
    def remarks(self) -> list[Message]:
        """Messages about the file's encoding, going on from its name."""
        remarks = []
        if self.guessed:
            template = "is not UTF-8 text and is read as {encoding}"
            remarks.append(Message(template, encoding=self.guessed))
        if self.damaged:
            template = "has {count} damaged lines, which are not used: they are not UTF-8 text"
            remarks.append(Message(template, count=self.damaged))
        return remarks


class TextFile(NamedTuple):
    """The text of a file, and what of the file is not used as it was meant."""

    text: str
    problems: tuple[Message, ...] = ()


def read_whole(path: Path, max_bytes: int) -> Decoded:
    """The text of a file that has to be read to its end, as captions have. UnreadTextError: it
    cannot be read, is larger than `max_bytes`, or is no text."""
    raw = _read_start(path, max_bytes)
    if len(raw) > max_bytes:
        raise UnreadTextError("is larger than {limit}; it is not read", limit=_size(max_bytes))
    return decode(raw)


def json_value(text: str | bytes) -> Any:
    """Return the value of a JSON text from outside. ValueError: invalid, or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_text_file(path: Path, max_bytes: int) -> TextFile:
    """Return the text of a list or a table; of a longer one the lines within the first `max_bytes`.

    UTF-16 without a mark is not reported, other than in captions: only problems that may lose lines
    or letters are. UnreadTextError, its text a sentence about the file: it cannot be read, or is no
    text.
    """
    unused = "{file} is not used: it {why}"
    try:
        raw = _read_start(path, max_bytes)
    except UnreadTextError as error:
        raise UnreadTextError(unused, file=path, why=error.message) from None
    is_cut = len(raw) > max_bytes
    try:
        decoded = decode(raw[:max_bytes], is_cut)
    except UnreadTextError as error:
        template = f"{unused}; save it as UTF-8"
        raise UnreadTextError(template, file=path, why=error.message) from None
    sure = decoded if decoded.guessed == _WESTERN else decoded._replace(guessed="")
    problems = [
        Message("{file} {remark}; save it as UTF-8", file=path, remark=remark)
        for remark in sure.remarks
    ]
    text = decoded.text.replace("\0", " ")
    if is_cut:
        text = text.rpartition("\n")[0]
        cut = "only the first {limit} of {file} are used"
        problems.append(Message(cut, limit=_size(max_bytes), file=path))
    return TextFile(text, tuple(problems))


def _read_start(path: Path, max_bytes: int) -> bytes:
    """The first bytes of a file; one more than `max_bytes` where it is longer."""
    try:
        with path.open("rb") as file:
            return file.read(max_bytes + 1)
    except OSError as error:
        raise UnreadTextError("cannot be read ({why})", why=error.strerror or error) from None


def _size(count: int) -> str:
    return f"{count / 2**20:g} MiB" if count >= 2**20 else f"{count / 2**10:g} KiB"


def decode(raw: bytes, is_cut: bool = False) -> Decoded:
    """Return the text of bytes; `is_cut`: they may end within a letter, which is left out.
    UnreadTextError: the encoding is not certain."""
    for mark, encoding in _MARKS:
        if raw.startswith(mark):
            return Decoded(_decode_marked(raw, encoding, is_cut))
    plain = _try_decode(raw, "utf-8", is_cut)
    if plain is not None and _is_plain(plain):
        return Decoded(plain)
    wide = {
        name: text for name in _WIDE if (text := _try_decode(raw, name, is_cut)) and _is_text(text)
    }
    if wide and (b"\0" in raw or plain is not None):
        best = min(wide, key=lambda name: _strangeness(wide[name]))
        return Decoded(wide[best], _WIDE[best])
    if plain is not None:  # control characters, but no other reading of it
        return Decoded(plain)
    if repaired := _without_damaged_lines(raw, is_cut):
        return repaired
    western = _try_decode(raw, "cp1252", is_cut)
    if western is not None and _is_western(western):
        return Decoded(western, _WESTERN)
    raise UnreadTextError("is not UTF-8 text, and what else it may be is not sure")


def _decode_marked(raw: bytes, encoding: str, is_cut: bool) -> str:
    text = _try_decode(raw, encoding, is_cut)
    if text is None:
        name = encoding.removesuffix("-sig").upper()
        raise UnreadTextError("is not {encoding} text, although it begins as such", encoding=name)
    return text


def _try_decode(raw: bytes, encoding: str, is_cut: bool) -> str | None:
    try:
        return codecs.getincrementaldecoder(encoding)().decode(raw, final=not is_cut)
    except UnicodeDecodeError:
        return None


def _without_damaged_lines(raw: bytes, is_cut: bool) -> Decoded | None:
    """Return text that is clearly UTF-8 but for a few lines, which are empty in it so that all
    others keep their numbers; None where it may be in another encoding."""
    lines = raw.splitlines(keepends=True)
    lines = lines[:-1] if is_cut else lines
    read = [_try_decode(line, "utf-8", False) for line in lines]
    damaged = read.count(None)
    special = sum(text is not None and not text.isascii() for text in read)
    if special < _SOUND_LINES * damaged:
        return None
    return Decoded("".join("\n" if text is None else text for text in read), damaged=damaged)


def _is_plain(text: str) -> bool:
    is_stray = text.count("\0") <= _MAX_NUL_SHARE * len(text)
    return is_stray and _is_text(text.replace("\0", " "))


def _is_text(text: str) -> bool:
    return all(c in _SPACES or unicodedata.category(c) not in _NO_TEXT for c in set(text))


def _strangeness(text: str) -> tuple[int, int]:
    """Return a sort key of two byte orders; the right one has more of ASCII, and its letters from
    fewer blocks."""
    return -sum(c.isascii() for c in text), len({ord(c) >> 8 for c in text})


def _is_western(text: str) -> bool:
    """Return True if text read as Windows-1252 looks like a European language: single accented
    letters among many plain ones. Text of an Asian or Cyrillic code page has long runs of others.
    """
    runs = _RUN.findall(text)
    letters = sum(c.isascii() and c.isalpha() for c in text)
    known = all(c.isalpha() or c in _MARKS_OF_WINDOWS for run in runs for c in run)
    return known and max(map(len, runs), default=0) <= 2 and 2 * sum(map(len, runs)) <= letters
