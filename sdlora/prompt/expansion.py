"""From what was typed to what is meant: # comments out, styles around, wildcards drawn."""

from __future__ import annotations

from collections.abc import Iterable

from sdlora.prompt.scanner import tokens
from sdlora.prompt.styles import apply_styles
from sdlora.prompt.wildcards import Expanded, Lists, expand_wildcards, no_lists


def expand(text: str, seed: int, styles: Iterable[str] = (), lists: Lists = no_lists) -> Expanded:
    """The prompt of one image: the first three stages. LoRA tags come out as they went in.

    `styles` are the texts of the chosen styles, `seed` is the image's own.
    """
    return expand_wildcards(apply_styles(strip_comments(text), styles), seed, lists)


def strip_comments(text: str) -> str:
    r"""The text without # to the end of the line; a line that is only a comment goes as a whole.

    As in A1111 (modules/scripts comments.py), except that \# is a plain # and that a LoRA tag may
    hold one.

    >>> strip_comments("a cat # not a dog\n# nor this\nin a hat")
    'a cat\nin a hat'
    """
    kept: list[str] = []
    place = 0
    while comment := next((t for t in tokens(text, place) if t.sign == "#"), None):
        before = text[place : comment.start]
        above, line_end, line = before.rpartition("\n")
        end = text.find("\n", comment.start)
        place = end if end >= 0 else len(text)
        if line.strip():
            kept.append(before.rstrip(" \t"))
        else:
            kept.append(above + line_end)
            place = min(place + 1, len(text))
    return "".join([*kept, text[place:]])
