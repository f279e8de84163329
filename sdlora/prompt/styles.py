"""Styles: texts applied to a prompt, read from A1111's styles.csv (modules/styles.py)."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sdlora.errors import SettingsError
from sdlora.messages import Message
from sdlora.text_files import UnreadTextError, read_text_file

MAX_BYTES = 16 * 2**20
_PLACE = "{prompt}"
_NAME, _COLUMNS = "name", ("prompt", "text")  # the second is that of A1111's first versions
_SEPARATORS = (",", ";", "\t")  # the last two are a spreadsheet's
_SEPARATOR_LINE = re.compile(r"\Asep=.\r?\n")  # which Excel puts first
_CSV_COLUMNS = "name, prompt and negative_prompt"
_UNREADABLE = (
    "the styles in {file} cannot be read ({why}); it has to be a CSV file with the columns "
    "{columns}"
)


@dataclass(frozen=True)
class Style:
    """One style: its texts for the prompt and for the negative prompt."""

    name: str
    prompt: str = ""
    negative_prompt: str = ""


def apply_styles(text: str, styles: Iterable[str]) -> str:
    """Apply styles to a text: each replaces {prompt} in its own text, else is appended.

    >>> apply_styles("a cat", ["oil painting of {prompt}", "masterpiece"])
    'oil painting of a cat, masterpiece'
    """
    for style in styles:
        if _PLACE in style:
            text = style.replace(_PLACE, text)
        else:
            text = ", ".join(filter(None, (text.strip(), style.strip())))
    return text


class Styles(dict[str, Style]):
    """Styles by name, and messages about rows of the file that are not used."""

    problems: tuple[Message, ...] = ()


def read_styles(path: Path) -> Styles:
    """Read the styles of a table with the columns name, prompt and negative_prompt, separated by
    commas, semicolons or tabs.

    SettingsError when the file is no such table; a bad row is left out, with a problem.
    """
    try:
        text, problems = read_text_file(path, MAX_BYTES)
    except UnreadTextError as error:
        raise SettingsError(
            _UNREADABLE, file=path, why=error.message, columns=_CSV_COLUMNS
        ) from None
    text = _SEPARATOR_LINE.sub("", text)
    header = text.partition("\n")[0]
    try:
        rows, unclosed = _read_rows(text, max(_SEPARATORS, key=header.count))
    except csv.Error as error:
        raise SettingsError(_UNREADABLE, file=path, why=error, columns=_CSV_COLUMNS) from None
    names = [cell.strip().lower() for cell in rows[0]] if rows else []
    if rows and not (_NAME in names and set(_COLUMNS) & set(names)):
        raise SettingsError(
            "{file} has no columns name and prompt in its first line, which is {line!r}; its "
            "columns have to be {columns}",
            file=path,
            line=header.strip()[:120],
            columns=_CSV_COLUMNS,
        )
    styles, left_out = _styles_of_rows(names, rows[1:], path)
    quotes = [
        Message("a row of {file} is not used: its quotes are not closed: {row}", file=path, row=row)
        for row in unclosed
    ]
    styles.problems = (*problems, *left_out, *quotes)
    return styles


def _read_rows(text: str, separator: str) -> tuple[list[list[str]], list[str]]:
    """Return (rows of a table, beginnings of rows whose quotes never close and would swallow all
    following rows)."""
    lines, rows, unclosed = text.splitlines(keepends=True), [], []
    while lines:
        reader = csv.reader(iter(lines), delimiter=separator, skipinitialspace=True)
        begin = 0
        for row in reader:
            read, begin = begin, reader.line_num
            rows.append(row)
        record = lines[read:]
        if len(record) < 2 or "".join(record).count('"') % 2 == 0:
            break
        rows.pop()
        unclosed.append(record[0].strip()[:80])
        lines = record[1:]
    return rows, unclosed


def _styles_of_rows(
    names: list[str], rows: list[list[str]], path: Path
) -> tuple[Styles, list[Message]]:
    styles, problems = Styles(), []
    for number, row in enumerate(rows, 2):
        cells = dict(zip(names, row, strict=False))
        name = cells.get(_NAME, "").strip()
        prompt = next(filter(None, (cells.get(column) for column in _COLUMNS)), "")
        why = None
        if any(cell.strip() for cell in row[len(names) :]):
            why = Message("it has more cells than there are columns; put its texts in quotes")
        elif not name and any(cell.strip() for cell in row):
            why = Message("it has no name")
        elif name in styles:
            why = Message("there is a style {name!r} before it", name=name[:80])
        if why:
            shown = name[:80] or number
            problems.append(
                Message("row {row} of {file} is not used: {why}", row=shown, file=path, why=why)
            )
        elif name:
            styles[name] = Style(name, prompt, cells.get("negative_prompt", ""))
    return styles, problems
