"""Captions as text: how a file's bytes become lines, and the trigger word that captions share."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path

from sdlora.text_files import Decoded, read_whole

CAPTION_SUFFIXES = (".txt", ".caption")
MAX_CAPTION_BYTES = 64 * 1024
LONGEST_NAME_WORDS = 3  # of a phrase that may be a name where no other caption shows its end
# Words a caption may end its shared beginning with that call nothing by themselves.
_FILLERS = frozenset((
    "a", "an", "the", "of", "in", "on", "with", "photo", "picture", "image", "drawing", "painting",
))  # fmt: skip


def read_caption(path: Path) -> str:
    """The caption in a text file as one line. UnreadTextError: what is wrong with the file."""
    return " ".join(read_lines(path))


def read_lines(path: Path) -> list[str]:
    """Return the non-empty lines of a caption file. UnreadTextError: what is wrong with it."""
    return clean_lines(read_text(path))


def read_text(path: Path) -> str:
    """A caption file's text as it stands. UnreadTextError: what is wrong with the file."""
    return decode_file(path).text


def decode_file(path: Path) -> Decoded:
    """A caption file's text and its encoding. UnreadTextError: what is wrong with the file."""
    return read_whole(path, MAX_CAPTION_BYTES)


def clean_lines(text: str) -> list[str]:
    """Return the lines of a text, tidied, without empty ones and without unpaired surrogates."""
    whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "ignore")
    lines = (" ".join(line.split()) for line in whole.replace("\0", " ").splitlines())
    return [line for line in lines if line]


def has_half_characters(text: str) -> bool:
    """Return True if a text holds surrogates without their other half, which no encoding can
    write."""
    try:
        text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        return True
    return False


_ESCAPED = re.compile(r"\\([\\()\[\]])")


def unescaped(line: str) -> str:
    r"""Return a caption without the backslashes that A1111's taggers put before brackets and
    backslashes, so that a prompt can hold it: `miku \(singer\)` is learnt as `miku (singer)`."""
    return _ESCAPED.sub(r"\1", line)


def tags_of(caption: str) -> list[str]:
    """Return the texts between the commas of a caption, without empty ones."""
    return [tag for tag in (part.strip() for part in caption.split(",")) if tag]


def common_trigger(captions: Iterable[str]) -> str:
    """Return the words that all captions begin with, before their first comma; '' when they share
    none.

    'zibo, night' and 'zibo, sea' share 'zibo'; 'a photo of a cat' and 'a photo of a dog' nothing,
    since only filler words are shared. Captions that are all equal do not show where a name ends:
    only a short phrase without fillers is taken as one.
    """
    different: dict[str, str] = {}
    for caption in captions:
        different.setdefault(" ".join(caption.lower().split()), caption)
    heads = [caption.partition(",")[0].split() for caption in different.values()]
    if not heads:
        return ""
    alike = takewhile(
        lambda position: len({w.lower() for w in position}) == 1, zip(*heads, strict=False)
    )
    shared = [position[0] for position in alike]
    if len(heads) == 1:
        fillers = any(word.lower() in _FILLERS for word in shared)
        return "" if fillers or len(shared) > LONGEST_NAME_WORDS else " ".join(shared)
    while shared and shared[-1].lower() in _FILLERS:
        shared.pop()
    return " ".join(shared)


def contains_trigger(caption: str, trigger: str) -> bool:
    """Return True if a caption holds a trigger as whole words, in letters of any case: 'party' does
    not hold 'art'. A word goes on with letters, digits, their marks and underscores; scripts
    without spaces between words have no such ends."""
    text, trigger_text = (
        unicodedata.normalize("NFC", part).casefold() for part in (caption, trigger)
    )
    pattern = re.compile(r"\s+".join(map(re.escape, trigger_text.split())))
    place = 0
    while match := pattern.search(text, place):
        begin, end = match.span()
        if not _join(text[begin - 1 : begin], text[begin : begin + 1]) and not _join(
            text[end - 1 : end], text[end : end + 1]
        ):
            return True
        place = begin + 1
    return False


def _join(before: str, after: str) -> bool:
    """Return True if two neighbouring characters belong to one word; '' is the end of the text."""
    return _in_word(before) and _in_word(after)


# Scripts that are written without spaces between words (Unicode Standard Annex 14, SA and ID).
_SPACELESS = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "BOPOMOFO")


def _in_word(character: str) -> bool:
    if not character or not (character == "_" or unicodedata.category(character)[0] in "LNM"):
        return False
    return not unicodedata.name(character, "").startswith(_SPACELESS)


def with_trigger(caption: str, trigger: str) -> str:
    """Return the caption, begun with the trigger unless it holds it already."""
    if contains_trigger(caption, trigger):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def evenly_spaced(captions: Iterable[str], count: int = 2) -> list[str]:
    """Return at most `count` different captions, evenly spaced over the set."""
    different = list(dict.fromkeys(captions))
    return different[:: max(1, -(-len(different) // count))]
