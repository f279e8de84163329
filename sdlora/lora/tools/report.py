"""What a LoRA tool has to say, for people and for programs; no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from textwrap import wrap
from typing import Any


@dataclass(frozen=True)
class Report:
    """What one file turned out to be, or what was made. The facts are plain values by what they
    are, in the order to show; `good` is False when the file cannot be used."""

    title: str
    facts: Mapping[str, Any]
    warnings: tuple[str, ...] = ()
    good: bool = True
    legend: str = ""  # what the numbers mean, for people

    @property
    def as_json(self) -> dict[str, Any]:
        """Everything."""
        return {**self.facts, "warnings": list(self.warnings), "good": self.good}

    def lines(self) -> Iterator[str]:
        """The title, then a line per fact that says something."""
        yield self.title
        yield from _lines(self.facts, "  ")
        if self.legend:
            yield from wrap(self.legend, 88, initial_indent="  ", subsequent_indent="  ")


def _lines(facts: Mapping[str, Any], indent: str) -> Iterator[str]:
    shown = {what: value for what, value in facts.items() if value not in ("", None, [], {})}
    width = max((len(str(what)) for what in shown), default=0)
    for what, value in shown.items():
        if not isinstance(value, Mapping):
            yield f"{indent}{what!s:<{width}}  {_words(value)}"
        elif all(isinstance(row, Mapping) for row in value.values()):
            yield from _table(value, indent)
        else:
            yield f"{indent}{what}"
            yield from _lines(value, indent + "  ")


def _table(rows: Mapping[str, Mapping[str, Any]], indent: str) -> Iterator[str]:
    """Rows of the same facts, a column for each."""
    head = ["", *next(iter(rows.values()))]
    lines = [head, *([name, *map(_words, row.values())] for name, row in rows.items())]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (f"{cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=True))
        yield "  ".join([f"{indent}{line[0]:<{widths[0]}}", *cells])


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    return ", ".join(map(_words, value)) if isinstance(value, list | tuple) else str(value)
