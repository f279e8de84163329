"""Values of kohya's files as ours: sd-scripts' argparse takes strings for numbers, and so do these.

Each function raises ValueError or TypeError for what it cannot read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any


def number(value: Any) -> float:
    """A finite number, or a string of one."""
    if isinstance(value, bool):
        raise TypeError("a number is needed")
    result = float(value)
    if not math.isfinite(result):
        raise ValueError("a finite number is needed")
    return result


def whole(value: Any) -> int:
    """A whole number, also as 1.0 or '1'."""
    result = number(value)
    if result != int(result):
        raise ValueError("a whole number is needed")
    return int(result)


def flag(value: Any) -> bool:
    """True or false, also as 0, 1 or a word."""
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    word = str(value).strip().lower()
    if word not in words:
        raise ValueError("true or false is needed")
    return words[word]


def text(value: Any) -> str:
    """A string as it is; nothing else."""
    if not isinstance(value, str):
        raise TypeError("a text is needed")
    return value


def words(value: Any) -> list[str]:
    """A list of words: a list, or a string with spaces between them."""
    parts = value.split() if isinstance(value, str) else value
    if not isinstance(parts, list):
        raise TypeError("a list of words is needed")
    return [text(part).strip().strip("\"'") for part in parts]


def renamed(names: dict[str, str]) -> Callable[[Any], str]:
    """A reader of names that both programs have, of which some differ."""
    ours = {theirs.lower(): name for theirs, name in names.items()}
    known = set(ours.values())

    def read(value: Any) -> str:
        name = ours.get(text(value).lower(), text(value).lower())
        if name not in known:
            raise ValueError(f"one of {', '.join(names)} is needed")
        return name

    return read


def side(value: Any) -> int:
    """Pixels a side of a square with the area of a resolution: 512, '512,768' or [512, 768]."""
    parts = value.strip("()[] ").split(",") if isinstance(value, str) else value
    sides = [whole(part) for part in parts] if isinstance(parts, list) else [whole(parts)]
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise ValueError("one or two sides are needed")
    return round(math.sqrt(sides[0] * sides[-1]))


def steps_or_share(value: Any) -> float:
    """Whole steps, or below 1 a share of all (sd-scripts' int_or_float)."""
    result = number(value)
    return result if result < 1 else float(whole(value))
