"""Text files of users, whichever program saved them; never with replacement signs; no torch."""

from __future__ import annotations

import codecs
import json
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from sdlora.messages import Message

# The longer marks first: that of UTF-32 begins with that of UTF-16
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_WESTERN_SIGNS = "‘’“”«»–—…€£°·\xa0"  # beside letters
_SAVE = "save it as UTF-8"


class TextFile(NamedTuple):
    """The text of a file, and what of the file is not used as it was meant."""

    text: str
    problems: tuple[Message, ...] = ()


def json_value(text: str | bytes) -> Any:
    """What JSON of anybody says. ValueError: it is none, or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_text_file(path: Path, max_bytes: int) -> TextFile:
    """The text of the file at `path`; of a longer one the lines within the first `max_bytes`.

    ValueError, its text a sentence about the file: it cannot be read, or is no text.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(max_bytes + 1)
    except OSError as error:
        raise ValueError(_unread(path, error.strerror or str(error))) from None
    problems: list[Message] = []
    is_cut = len(raw) > max_bytes
    try:
        text = decode(raw[:max_bytes], path, problems, is_cut)
    except ValueError as error:
        raise ValueError(_unread(path, str(error))) from None
    if is_cut:
        text = text.rpartition("\n")[0]
        limit = max_bytes / 2**20
        cut = Message("only the first {limit:g} MiB of {file} are used", limit=limit, file=path)
        problems.append(cut)
    return TextFile(text, tuple(problems))


def _unread(path: Path, why: str) -> Message:
    return Message("{file} is not used: {why}", file=path, why=why)


def decode(raw: bytes, path: Path, problems: list[Message], is_cut: bool = False) -> str:
    """Bytes as text: by their mark, as UTF-8, as UTF-16 without a mark, or else as Windows-1252,
    which is a problem to tell of the file `path`. ValueError: they are none of these."""
    for mark, encoding in _MARKS:
        if raw.startswith(mark):
            return _strictly(raw.removeprefix(mark), encoding, is_cut)
    if b"\0" in raw:
        return _unmarked_utf_16(raw, is_cut)
    try:
        return _strictly(raw, "utf-8", is_cut)
    except ValueError:
        return _not_utf_8(raw, path, problems)


def _strictly(raw: bytes, encoding: str, is_cut: bool) -> str:
    """ValueError where a byte does not fit; a letter cut in two at the end is left out."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(raw, final=not is_cut)
    except UnicodeDecodeError:
        raise ValueError(f"it is not {encoding.upper()[:6].rstrip('-')} text; {_SAVE}") from None


def _unmarked_utf_16(raw: bytes, is_cut: bool) -> str:
    """The zeros of plain letters tell which byte comes first."""
    little = raw[1::2].count(0) > raw[0::2].count(0)
    text = _strictly(raw, "utf-16-le" if little else "utf-16-be", is_cut)
    if "\0" in text or not all(letter.isprintable() or letter.isspace() for letter in text):
        raise ValueError("it is not text")
    return text


def _not_utf_8(raw: bytes, path: Path, problems: list[Message]) -> str:
    """A file of UTF-8 with a few damaged lines, without those; or one of Windows' Western letters.
    ValueError where that is not certain: a wrong guess would be words that nobody wrote."""
    lines = raw.splitlines(keepends=True)
    utf_8 = [line for line in lines if _is_utf_8(line)]
    count, special = len(lines) - len(utf_8), sum(not line.isascii() for line in utf_8)
    if special >= 4 * count:
        problems.append(
            Message(
                "{count} damaged lines of {file} are not used: they are not UTF-8 text",
                count=count,
                file=path,
            )
        )
        return b"".join(utf_8).decode("utf-8")
    if special or not _looks_western(raw):
        raise ValueError(f"it is not UTF-8 text, and its encoding cannot be told; {_SAVE}")
    problems.append(
        Message("{file} is not UTF-8 text and is read as Windows-1252; save it as UTF-8", file=path)
    )
    return raw.decode("cp1252")


def _looks_western(raw: bytes) -> bool:
    """Whether bytes are Windows-1252: single letters with accents among plain ones. Letters of
    several bytes and those of other alphabets would stand side by side, or be odd signs."""
    try:
        high = [letter if ord(letter) > 127 else "" for letter in raw.decode("cp1252")]
    except UnicodeDecodeError:
        return False
    beside = sum(bool(a and b) for a, b in pairwise(high))
    return 2 * beside <= sum(map(bool, high)) and all(
        letter.isalpha() or letter in _WESTERN_SIGNS for letter in high if letter
    )


def _is_utf_8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
