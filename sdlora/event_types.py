"""Types of an event's fields, checked when a line is read: lines of other programs, newer versions
and damaged disks are not trusted."""

from __future__ import annotations

import math
import typing
from collections.abc import Callable
from typing import Any

_LIMIT = 1e300
Check = Callable[[Any], Any]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("no text")
    return value


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 2**63:
        raise ValueError("no whole number")
    return value


def _number(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not -_LIMIT < value < _LIMIT:  # no NaN is, nor a whole number too large
        raise ValueError("no number")
    number: float = value
    return number


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("neither true nor false")
    return value


def _texts_by_name(value: Any) -> dict[str, str]:
    return {name: _text(entry) for name, entry in _table(value).items()}


def _table(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("no table")
    return value


def _number_or_none(value: Any) -> float | None:
    """A number; one that is not finite, such as a loss that has diverged, is none."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return None if value is None else _number(value)


_CHECKS: dict[Any, Check] = {
    str: _text,
    int: _integer,
    float: _number,
    bool: _truth,
    float | None: _number_or_none,
    dict[str, str]: _texts_by_name,
    dict[str, Any]: _table,
}


def checks_of(kind: type) -> dict[str, Check]:
    """Field -> check of a dataclass of events; a check gives the value or raises ValueError."""
    hints = typing.get_type_hints(kind)
    return {name: _CHECKS[hint] for name, hint in hints.items()}
