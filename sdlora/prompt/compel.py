"""Warnings about InvokeAI's prompt syntax (compel): cat++, (red)1.3, .swap().

In damian0815/compel each + is 1.1 times as strong, each - 0.9 times. Here and in A1111 these signs
are text, and (red) alone is emphasis, so such syntax is reported and not converted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from sdlora.messages import Message

_BEFORE = 40  # letters of the weighted text that are shown
# A weight behind a word or behind brackets, and what joins several texts
_WEIGHT = re.compile(
    r"(?:(?<=\w)(?P<word>\+{2,9}|-{2,9})|(?<!\\)\)(?P<round>[+-]{1,9}))(?=[\s,;)]|\Z)"
)
_NUMBER = re.compile(r"(?<!\\)\)(?P<number>[0-9]{0,3}\.[0-9]{1,6})(?![\w.])")
_METHOD = re.compile(r"\)\.(?:swap|blend|and)\(")


def compel_warnings(text: str) -> Iterator[Message]:
    """Yield a warning for each kind of compel syntax in a text, with its first occurrence."""
    if match := _WEIGHT.search(text):
        signs = match["word"] or match["round"]
        weight = (1.1 if signs[0] == "+" else 0.9) ** len(signs)
        yield _weight_warning(text, match, f"{weight:.3g}")
    if match := _NUMBER.search(text):
        yield _weight_warning(text, match, match["number"])
    if match := _METHOD.search(text):
        yield Message(
            "'{mark}' is InvokeAI's syntax and is read as text; here it is [from:to:0.5] over "
            "the steps, and AND between texts",
            mark=match[0],
        )


def _weight_warning(text: str, match: re.Match[str], weight: str) -> Message:
    before = text[max(0, match.start() - _BEFORE) : match.start()]
    is_round = match[0][0] == ")"
    weighted_text = before.rpartition("(")[2] if is_round else re.split(r"[\s,;(]", before)[-1]
    return Message(
        "'{mark}' is InvokeAI's syntax for emphasis and is read as text; here it is "
        "({weighted_text}:{weight})",
        mark=f"{'(' if is_round else ''}{weighted_text}{match[0]}",
        weighted_text=weighted_text,
        weight=weight,
    )
