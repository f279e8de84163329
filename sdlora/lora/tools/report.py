"""Report of a LoRA or model tool, as lines of text and as JSON; no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from textwrap import wrap
from typing import Any


@dataclass(frozen=True)
class Report:
    """Result of a tool: of a file that was checked, or of a file that was made.

    `facts` are plain values by name, in the order to show; `good` is False when the file cannot be
    used.
    """

    title: str
    facts: Mapping[str, Any]
    warnings: tuple[str, ...] = ()
    good: bool = True
    legend: str = ""  # the meaning of the numbers, shown in `lines` only
    is_line: bool = False  # the title says all: `lines` are that line

    @property
    def as_json(self) -> dict[str, Any]:
        """Facts, warnings and `good` as one JSON object."""
        return {**self.facts, "warnings": list(self.warnings), "good": self.good}

    def lines(self) -> Iterator[str]:
        """The title, then a line per fact that is not empty, then the legend."""
        yield self.title
        if self.is_line:
            return
        yield from _fact_lines(self.facts, "  ")
        if self.legend:
            yield from wrap(self.legend, 88, initial_indent="  ", subsequent_indent="  ")


def _fact_lines(facts: Mapping[str, Any], indent: str) -> Iterator[str]:
    shown = {name: value for name, value in facts.items() if value not in ("", None, [], {})}
    width = max((len(str(name)) for name in shown), default=0)
    for name, value in shown.items():
        if not isinstance(value, Mapping):
            yield f"{indent}{name!s:<{width}}  {_value_text(value)}"
        elif all(isinstance(row, Mapping) for row in value.values()):
            yield from _table_lines(value, indent)
        else:
            yield f"{indent}{name}"
            yield from _fact_lines(value, indent + "  ")


def _table_lines(rows: Mapping[str, Mapping[str, Any]], indent: str) -> Iterator[str]:
    """Lines of a table: a row per name, a column per fact, aligned to the right."""
    head = ["", *next(iter(rows.values()))]
    lines = [head, *([name, *map(_value_text, row.values())] for name, row in rows.items())]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (f"{cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=True))
        yield "  ".join([f"{indent}{line[0]:<{widths[0]}}", *cells])


def _value_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    return ", ".join(map(_value_text, value)) if isinstance(value, list | tuple) else str(value)
