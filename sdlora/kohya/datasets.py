"""sd-scripts' `[[datasets]]` and `[[datasets.subsets]]` as our folders (docs/config_README-en.md).

There every subset has settings of its own, and inherits those of its dataset and of `[general]`.
Here they are one for all pictures: where subsets disagree the first one's counts, and it is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sdlora.kohya.values import flag, text, whole
from sdlora.messages import Message

# Their name in these tables -> their name on the command line
RENAMED = {"batch_size": "train_batch_size"}
OWN = ("image_dir", "num_repeats", "is_reg", "class_tokens", "metadata_file", "subsets")


@dataclass
class Datasets:
    """Content of the tables: `flat` are keys of sd-scripts' command line, `values` our settings."""

    flat: dict[str, Any] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    notes: list[Message] = field(default_factory=list)


def read_datasets(tables: Mapping[str, Any]) -> Datasets:
    """Read the folders and settings of all subsets; empty where there are no such tables."""
    result = Datasets()
    general = _require_table(tables.get("general"), "general", result)
    rows = []
    for dataset in _tables(tables.get("datasets"), "datasets", result):
        subsets = _tables(dataset.get("subsets"), "datasets.subsets", result)
        rows += [{**general, **dataset, **subset} for subset in subsets]
    if not rows:
        result.flat |= general
        return result
    _read_folders(rows, result)
    for name in dict.fromkeys(name for row in rows for name in row if name not in OWN):
        given = [row.get(name) for row in rows]
        result.flat[RENAMED.get(name, name)] = next(v for v in given if v is not None)
        if any(value != given[0] for value in given):
            message = "{key} differs between subsets; {value} is used for all pictures"
            value = result.flat[RENAMED.get(name, name)]
            result.notes.append(Message(message, key=name, value=value))
    return result


def _read_folders(rows: list[dict[str, Any]], result: Datasets) -> None:
    """Folders with their repeats: of training pictures, and of regularisation pictures."""
    subject: list[str] = []
    regularisation: list[str] = []
    for row in rows:
        folder = row.get("image_dir")
        if not isinstance(folder, str) or not folder:
            result.notes.append(Message("a subset without image_dir is not used"))
            continue
        if row.get("metadata_file"):
            message = "metadata_file of {folder} is not read: captions are files beside pictures"
            result.notes.append(Message(message, folder=folder))
        repeats = _read_value(row, "num_repeats", whole, 1, result)
        if repeats < 1:
            message = "{folder} with num_repeats = {repeats} is left out"
            result.notes.append(Message(message, folder=folder, repeats=repeats))
            continue
        counted = f"{min(repeats, 999)}*{folder}" if repeats > 1 else folder
        is_subject = not _read_value(row, "is_reg", flag, False, result)
        (subject if is_subject else regularisation).append(counted)
        if tokens := row.get("class_tokens"):
            message = "class_tokens = {tokens!r} of {folder}: pictures without a caption get none"
            result.notes.append(Message(message, tokens=_shown_value(tokens), folder=folder))
    if subject:
        result.values["data"], result.values["more_data"] = subject[0], subject[1:]
    if regularisation:
        result.values["regularisation"] = regularisation


def _read_value(
    row: Mapping[str, Any], name: str, read: Any, missing: Any, result: Datasets
) -> Any:
    if row.get(name) is None:
        return missing
    try:
        return read(row[name])
    except (ValueError, TypeError) as error:
        message = "{key} = {value} cannot be read: {why}"
        result.notes.append(Message(message, key=name, value=_shown_value(row[name]), why=error))
        return missing


def _tables(given: Any, name: str, result: Datasets) -> list[dict[str, Any]]:
    if given is None:
        return []
    rows = given if isinstance(given, list) else [given]
    return [row for row in (_require_table(row, name, result) for row in rows) if row]


def _require_table(given: Any, name: str, result: Datasets) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        result.notes.append(Message("{name} is not a table and not used", name=name))
        return {}
    return {text(key): value for key, value in given.items()}


def _shown_value(value: Any) -> str:
    return str(value)[:80]
