"""Captions in one table for a whole folder: metadata.jsonl or metadata.csv, as the datasets library
and the Hugging Face hub have them (docs of 🤗 Datasets, "ImageFolder")."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

TABLES = ("metadata.jsonl", "metadata.csv")
MAX_BYTES = 64 * 2**20
FILE_COLUMNS = ("file_name", "file", "image", "path")
# The first of these that a row has is its caption.
TEXT_COLUMNS = ("text", "caption", "prompt", "description", "tags")


@dataclass
class Table:
    """What a table says: picture -> caption, and what of it cannot be used."""

    path: Path
    captions: dict[Path, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def read_table(path: Path) -> Table:
    """A table's captions; whatever is wrong with a row is said and the others are used."""
    table = Table(path)
    try:
        raw = path.read_bytes() if path.stat().st_size <= MAX_BYTES else None
        if raw is None:
            table.problems.append(f"is larger than {MAX_BYTES // 2**20} MiB; it is not read")
            return table
        rows = _ROWS[path.suffix.lower()](raw.decode("utf-8-sig"), table.problems)
        _take(table, rows)
    except OSError as error:
        table.problems.append(f"cannot be read ({error.strerror})")
    except UnicodeDecodeError:
        table.problems.append("is not UTF-8 text; it is not read")
    return table


def _take(table: Table, rows: Iterable[tuple[int, Mapping[str, Any]]]) -> None:
    for line, row in rows:
        name = next((row[c] for c in FILE_COLUMNS if isinstance(row.get(c), str)), "")
        if not name:
            table.problems.append(f"has no {FILE_COLUMNS[0]} in line {line}")
            continue
        place = PurePosixPath(name.replace("\\", "/"))
        file = table.path.parent / place
        if place.is_absolute() or ".." in place.parts or not file.is_file():
            table.problems.append(f"names {name[:80]!r} in line {line}, which is not in its folder")
            continue
        said = next((row[c] for c in TEXT_COLUMNS if row.get(c)), "")
        text = ", ".join(map(str, said)) if isinstance(said, list) else str(said)
        table.captions[file] = text


def _json_rows(text: str, problems: list[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for line, words in enumerate(text.split("\n"), 1):
        if not words.strip():
            continue
        try:
            row = json.loads(words)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            yield line, row
        else:
            problems.append(f"has something other than a JSON object in line {line}")


def _csv_rows(text: str, problems: list[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        problems.append(f"cannot be read after line {reader.line_num}: {error}")


_ROWS = {".jsonl": _json_rows, ".csv": _csv_rows}
