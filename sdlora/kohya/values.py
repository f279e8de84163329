"""Readers of values in kohya's files: like sd-scripts' argparse, they accept numbers as strings.

Each function raises ValueError or TypeError for a value that it cannot read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any


def number(value: Any) -> float:
    """Read a finite number, also from a string."""
    if isinstance(value, bool):
        raise TypeError("a number is needed")
    result = float(value)
    if not math.isfinite(result):
        raise ValueError("a finite number is needed")
    return result


def whole(value: Any) -> int:
    """Read a whole number, also from 1.0 or '1'."""
    result = number(value)
    if result != int(result):
        raise ValueError("a whole number is needed")
    return int(result)


def flag(value: Any) -> bool:
    """Read true or false, also from 0, 1 or a word."""
    booleans = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    word = str(value).strip().lower()
    if word not in booleans:
        raise ValueError("true or false is needed")
    return booleans[word]


def text(value: Any) -> str:
    """Return a string unchanged; refuse any other type."""
    if not isinstance(value, str):
        raise TypeError("a text is needed")
    return value


def word_list(value: Any) -> list[str]:
    """Read a list of words: a list of strings, or a string split at spaces."""
    parts = value.split() if isinstance(value, str) else value
    if not isinstance(parts, list):
        raise TypeError("a list of words is needed")
    return [text(part).strip().strip("\"'") for part in parts]


def name_reader(names: dict[str, str]) -> Callable[[Any], str]:
    """Return a reader of names that both programs have; `names` maps theirs to ours."""
    ours = {theirs.lower(): name for theirs, name in names.items()}
    known = set(ours.values())

    def read(value: Any) -> str:
        name = ours.get(text(value).lower(), text(value).lower())
        if name not in known:
            raise ValueError(f"one of {', '.join(names)} is needed")
        return name

    return read


def side(value: Any) -> int:
    """Read a resolution, 512, '512,768' or [512, 768], as the side in pixels of a square with its
    area."""
    parts = value.strip("()[] ").split(",") if isinstance(value, str) else value
    sides = [whole(part) for part in parts] if isinstance(parts, list) else [whole(parts)]
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise ValueError("one or two sides are needed")
    return round(math.sqrt(sides[0] * sides[-1]))


def steps_or_share(value: Any) -> float:
    """Read a number of steps, or below 1 a share of all (sd-scripts' int_or_float)."""
    result = number(value)
    return result if result < 1 else float(whole(value))
