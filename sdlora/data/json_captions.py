"""Captions in JSON files: NAME.json beside a picture, and the metadata files of kohya's sd-scripts
(finetune/merge_captions_to_metadata.py), picture -> caption.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

from sdlora.data.caption_tables import FILE_COLUMNS, TEXT_COLUMNS, Table, caption_of, read_file
from sdlora.data.foreign_files import ForeignDataError, parsing
from sdlora.messages import Message
from sdlora.text_files import UnreadTextError

JSON_TABLES = (
    "metadata.json", "meta_cap.json", "meta_cap_dd.json", "meta_clean.json", "meta_lat.json",
)  # fmt: skip
_SURE = ("caption", "text", "prompt")  # other columns are captions only where nothing else is


def read_sidecar(path: Path) -> str:
    """Return the caption that a JSON file beside a picture holds. UnreadTextError: the file holds
    nothing that is clearly a caption."""
    value = _parsed(path)
    if isinstance(value, dict):
        plain = value.keys() <= {*TEXT_COLUMNS, *FILE_COLUMNS}
        columns = TEXT_COLUMNS if plain else _SURE
        value = next((value[column] for column in columns if value.get(column)), None)
    text, _ = caption_of(value)
    if not text:
        raise UnreadTextError("holds no caption that is plainly one; it is not read")
    return text


def read_json_table(path: Path, pictures: Iterable[Path]) -> Table:
    """Return captions of the pictures of a folder, by their paths or bare names, or as rows of a
    table. Rows about pictures elsewhere are left out, since such files describe several folders."""
    table = Table(path)
    try:
        value = _parsed(path)
    except UnreadTextError as error:
        table.problems.append(error.message)
        return table
    near = [file for file in pictures if file.is_relative_to(path.parent)]
    by_name = {name: file for file in near for name in _names(file, path.parent)}
    for line, (name, row) in enumerate(_rows(value), 1):
        tidy = name.replace("\\", "/")
        file = by_name.get(tidy) or by_name.get(PurePath(tidy).name)
        if file is None:
            continue
        text, fault = caption_of(_kohya_caption(row))
        if fault:
            table.fault(fault, line)
        if text:
            table.captions[file] = text
    table.problems, table.faults = table.messages(), {}
    if not table.captions:
        table.problems.append(Message("holds no captions of these pictures; it is not read"))
    return table


def _parsed(path: Path) -> Any:
    try:
        with parsing(UnreadTextError):
            return json.loads(read_file(path).text)
    except ForeignDataError as error:
        raise UnreadTextError("cannot be read as JSON: {why}", why=error) from None


def _names(file: Path, folder: Path) -> Iterable[str]:
    place = file.relative_to(folder)
    return place.as_posix(), place.with_suffix("").as_posix(), file.name, file.stem


def _rows(value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict):
        return ((str(name), row) for name, row in value.items())
    rows = [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []
    names = ((next((r[c] for c in FILE_COLUMNS if isinstance(r.get(c), str)), ""), r) for r in rows)
    return ((name, row) for name, row in names if name)


def _kohya_caption(row: Any) -> Any:
    """Return the caption of a row with its tags behind it, as sd-scripts reads them together
    (library/train_util.py, FineTuningDataset)."""
    if not isinstance(row, Mapping):
        return row
    caption, tags = row.get("caption"), row.get("tags")
    if isinstance(caption, str) and isinstance(tags, str) and caption and tags:
        return f"{caption}, {tags}"
    return next((row[column] for column in TEXT_COLUMNS if row.get(column)), None)
