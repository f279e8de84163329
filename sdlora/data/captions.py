"""Captions: reading the text file beside a picture, and the trigger word that captions share."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path

CAPTION_SUFFIXES = (".txt", ".caption")
MAX_CAPTION_BYTES = 64 * 1024
# What Windows editors put before their text.
_MARKED = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
# Words a caption may end its shared beginning with that call nothing by themselves.
_FILLERS = frozenset((
    "a", "an", "the", "of", "in", "on", "with", "photo", "picture", "image", "drawing", "painting",
))  # fmt: skip


def read_caption(path: Path) -> str:
    """The caption in a text file as one line. ValueError says what is wrong with the file."""
    return " ".join(read_lines(path))


def read_lines(path: Path) -> list[str]:
    """The lines of a caption file that say something. ValueError says what is wrong with it."""
    return said_lines(read_text(path))


def read_text(path: Path) -> str:
    """A caption file's text as it stands. ValueError says what is wrong with the file."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CAPTION_BYTES + 1)
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from None
    if len(raw) > MAX_CAPTION_BYTES:
        raise ValueError(f"is longer than {MAX_CAPTION_BYTES // 1024} KiB, too long for a caption")
    try:
        return raw.decode(_MARKED.get(raw[:2], "utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 text") from None


def said_lines(text: str) -> list[str]:
    """The lines of a text, tidied, without the empty ones."""
    lines = (" ".join(line.split()) for line in text.replace("\0", " ").splitlines())
    return [line for line in lines if line]


def tags_of(caption: str) -> list[str]:
    """What stands between the commas of a caption."""
    return [tag for tag in (part.strip() for part in caption.split(",")) if tag]


def common_trigger(captions: Iterable[str]) -> str:
    """The words that all captions begin with, before their first comma; '' when they share none.

    'zibo, night' and 'zibo, sea' share 'zibo'; 'a photo of a cat' and 'a photo of a dog' nothing,
    since what is left without fillers is empty.
    """
    heads = [caption.partition(",")[0].split() for caption in captions]
    if not heads:
        return ""
    alike = takewhile(lambda words: len({w.lower() for w in words}) == 1, zip(*heads, strict=False))
    shared = [words[0] for words in alike]
    while shared and shared[-1].lower() in _FILLERS:
        shared.pop()
    return " ".join(shared)


def with_trigger(caption: str, trigger: str) -> str:
    """The caption, begun with the trigger unless it already says it somewhere."""
    if trigger.lower() in caption.lower():
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def spread(captions: Iterable[str], count: int = 2) -> list[str]:
    """At most `count` different captions, from all over the set."""
    different = list(dict.fromkeys(captions))
    return different[:: max(1, -(-len(different) // count))]
