"""Caption tables: captions of many pictures in one file, metadata.jsonl or metadata.csv, as the
datasets library and the Hugging Face hub have them (docs of 🤗 Datasets, "ImageFolder")."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from sdlora.data.captions import has_half_characters
from sdlora.data.foreign_files import ForeignDataError, parsing
from sdlora.messages import Message
from sdlora.text_files import Decoded, UnreadTextError, read_whole

TABLES = ("metadata.jsonl", "metadata.csv")
MAX_BYTES = 64 * 2**20
FILE_COLUMNS = ("file_name", "file", "image", "path", "filename", "image_path")
# The first of these that a row has is its caption.
TEXT_COLUMNS = ("text", "caption", "prompt", "description", "tags")
MOST_LISTED = 3  # lines with the same fault that are named one by one
_NOTHING = frozenset(("", "nan", "none", "null", "<na>", "n/a"))  # as pandas writes a missing text
_TAG_WORDS = 3  # a list of longer texts, or of texts with commas, is one of whole captions
_SEPARATORS = (",", ";", "\t", "|")

Row = tuple[int, Mapping[str, Any]]  # line, and its columns


@dataclass
class Table:
    """Captions of a table, picture -> caption, and the problems of its rows."""

    path: Path
    captions: dict[Path, str] = field(default_factory=dict)
    problems: list[Message] = field(default_factory=list)
    faults: dict[str, list[tuple[int, str]]] = field(default_factory=dict)

    def fault(self, fault: str, line: int, name: str = "") -> None:
        """Note what is wrong with a line; `fault` is a row of FAULTS."""
        self.faults.setdefault(fault, []).append((line, name))

    def take(self, name: str, value: Any, line: int) -> None:
        """Take the value of a row as the caption of the picture `name`, or note why not."""
        relative = PurePosixPath(name.replace("\\", "/"))
        file = self.path.parent / relative
        if relative.is_absolute() or ".." in relative.parts or not _is_file(file):
            self.fault("elsewhere", line, name[:80])
            return
        text, fault = caption_of(value)
        if fault:
            self.fault(fault, line)
        if text or not fault:
            self.captions[file] = text

    def messages(self) -> list[Message]:
        """Return all problems; a fault of many lines is one message."""
        lines = [text for fault, rows in self.faults.items() for text in _faults(fault, rows)]
        return [*self.problems, *lines]


# Fault -> (message about one line, message about many lines). A name is that of the picture.
FAULTS = {
    "no name": ("has no {column} in line {line}", "has no {column} in {count} lines ({lines})"),
    "elsewhere": (
        "names {name!r} in line {line}, which is not in its folder",
        "names {count} pictures that are not in its folder ({names}; lines {lines})",
    ),
    "no object": (
        "has something other than a JSON object in line {line}",
        "has something other than a JSON object in {count} lines ({lines})",
    ),
    "no text": (
        "has something other than text for a caption in line {line}; it is not read",
        "has something other than text for captions in {count} lines ({lines}); they are not read",
    ),
    "nothing": (
        "has an empty value such as nan for a caption in line {line}; it is not read",
        "has empty values such as nan for captions in {count} lines ({lines}); they are not read",
    ),
    "several": (
        "has several captions in line {line}; the first is read",
        "has several captions in each of {count} lines ({lines}); the first is read",
    ),
    "half": (
        "has half a character in line {line}, which is left out",
        "has half characters in {count} lines ({lines}), which are left out",
    ),
    "commas": (
        "has a caption with commas and without quotes in line {line}; all of it is read",
        "has captions with commas and without quotes in {count} lines ({lines}); all of each is "
        "read",
    ),
    "columns": (
        "has more columns than its first line in line {line}; it is not read",
        "has more columns than its first line in {count} lines ({lines}); they are not read",
    ),
}


def _faults(fault: str, rows: list[tuple[int, str]]) -> Iterator[Message]:
    single, several = FAULTS[fault]
    if len(rows) <= MOST_LISTED:
        for line, name in rows:
            yield Message(single, line=line, name=name, column=FILE_COLUMNS[0])
        return
    lines = [*(line for line, _ in rows[:MOST_LISTED]), "..."]
    names = [*(repr(name) for _, name in rows[:MOST_LISTED]), "..."]
    yield Message(several, count=len(rows), lines=lines, names=names, column=FILE_COLUMNS[0])


def _is_file(file: Path) -> bool:
    try:
        return file.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def caption_of(value: Any) -> tuple[str, str]:
    """(caption, fault) of a value, the fault a row of FAULTS or ''. A list of tags is joined; of a
    list of captions the first is read."""
    fault = ""
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        whole = any("," in part or len(part.split()) > _TAG_WORDS for part in value)
        fault = "several" if whole and len(value) > 1 else ""
        value = value[0] if whole else ", ".join(value)
    if value is None or value != value or value == []:  # nan is not itself
        return "", "nothing" if value is not None else ""
    if not isinstance(value, str):
        return "", "no text"
    if value.strip().lower() in _NOTHING:
        return "", "nothing" if value.strip() else ""
    return value, "half" if has_half_characters(value) else fault


def read_file(path: Path) -> Decoded:
    """Return the text of a file of captions and its encoding. UnreadTextError: why it is not
    read."""
    return read_whole(path, MAX_BYTES)


def read_table(path: Path) -> Table:
    """Return a table's captions; a row with a fault is a problem of the table, the others are
    used."""
    table = Table(path)
    try:
        with parsing(UnreadTextError):
            decoded = read_file(path)
            table.problems += decoded.remarks
            _take(table, _ROWS[path.suffix.lower()](decoded.text, table))
    except ForeignDataError as error:
        table.problems.append(Message("cannot be read: {why}", why=error))
    except UnreadTextError as error:
        table.problems.append(error.message)
    table.problems, table.faults = table.messages(), {}
    if not table.problems and not any(table.captions.values()):
        table.problems.append(Message("holds no captions"))
    return table


def _take(table: Table, rows: Iterable[Row]) -> None:
    for line, row in rows:
        name = next((row[c] for c in FILE_COLUMNS if isinstance(row.get(c), str)), "")
        if not name.strip():
            table.fault("no name", line)
            continue
        value = next((row[c] for c in TEXT_COLUMNS if row.get(c)), None)
        table.take(name.strip(), value, line)


def _json_rows(text: str, table: Table) -> Iterator[Row]:
    for line, row_text in enumerate(text.split("\n"), 1):
        if not row_text.strip():
            continue
        try:
            row = json.loads(row_text)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            yield line, row
        else:
            table.fault("no object", line)


def _csv_rows(text: str, table: Table) -> Iterator[Row]:
    header = text.lstrip().partition("\n")[0]
    separator = next((s for s in _SEPARATORS if _names_columns(header, s)), ",")
    spaced = bool(re.search(rf"{re.escape(separator)}[ \t]+\"", text)) or f"{separator} " in header
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=spaced)
    try:
        names = [name.strip().lower() for name in next(reader, [])]
        if names and not _has_columns(names):
            table.problems.append(_no_header(names))
            return
        for cells in filter(None, reader):
            row = _cells(names, cells, separator + " " * spaced, table, reader.line_num)
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        message = Message(
            "cannot be read after line {line}: {why}", line=reader.line_num, why=error
        )
        table.problems.append(message)


def _cells(
    names: list[str], cells: list[str], glue: str, table: Table, line: int
) -> Mapping[str, Any] | None:
    """Return a line's columns by name. A line with too many cells has a caption with separators and
    no quotes where every other column is as the first line says; None where that cannot be."""
    extra = len(cells) - len(names)
    place = next((names.index(column) for column in TEXT_COLUMNS if column in names), None)
    if extra > 0:
        if place is None:
            table.fault("columns", line)
            return None
        whole = glue.join(cells[place : place + extra + 1])
        cells = [*cells[:place], whole, *cells[place + extra + 1 :]]
        table.fault("commas", line)
    return dict(zip(names, cells, strict=False))


def _names_columns(header: str, separator: str) -> bool:
    return _has_columns([name.strip(' "\r').lower() for name in header.split(separator)])


def _has_columns(names: list[str]) -> bool:
    return any(name in FILE_COLUMNS for name in names) and any(n in TEXT_COLUMNS for n in names)


def _no_header(names: list[str]) -> Message:
    return Message(
        "has no columns {file} and {text} in its first line, which begins with {first}; "
        "none of it is read",
        file=FILE_COLUMNS[0],
        text=TEXT_COLUMNS[0],
        first=repr(", ".join(names)[:80]),
    )


_ROWS = {".jsonl": _json_rows, ".csv": _csv_rows}
