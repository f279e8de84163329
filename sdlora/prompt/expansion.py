"""Expansion of a prompt as typed: # comments removed, styles applied, wildcards drawn."""

from __future__ import annotations

from collections.abc import Iterable

from sdlora.prompt.scanner import tokens
from sdlora.prompt.styles import apply_styles
from sdlora.prompt.wildcards import Expanded, Lists, expand_wildcards, no_wildcard_lists


def expand(
    text: str, seed: int, styles: Iterable[str] = (), lists: Lists = no_wildcard_lists
) -> Expanded:
    """Return the prompt of one image after the first three stages. LoRA tags do not change.

    `styles` are the texts of the chosen styles, `seed` is the image's own.
    """
    return expand_wildcards(apply_styles(strip_comments(text), styles), seed, lists)


def strip_comments(text: str) -> str:
    r"""Return the text without # to the end of the line; a line of a comment alone is removed.

    As in A1111 (modules/scripts comments.py), except that \# is a plain # and that a LoRA tag may
    hold one.

    >>> strip_comments("a cat # not a dog\n# nor this\nin a hat")
    'a cat\nin a hat'
    """
    lines_kept: list[str] = []
    place = 0
    while comment := next((t for t in tokens(text, place) if t.sign == "#"), None):
        before = text[place : comment.start]
        above, line_end, line = before.rpartition("\n")
        end = text.find("\n", comment.start)
        place = end if end >= 0 else len(text)
        if line.strip():
            lines_kept.append(before.rstrip(" \t"))
        else:
            lines_kept.append(above + line_end)
            place = min(place + 1, len(text))
    return "".join([*lines_kept, text[place:]])
