"""Captions changed by the many: replaced, begun, ended, freed of a tag. Seen before they are
written, each written whole or not at all, and taken back by `undo`.

The files as they were lie in `.captions/` of the picture folder, one folder per change, until the
change is undone.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from sdlora.checked import Settings
from sdlora.data.captions import CAPTION_SUFFIXES, read_text, said_lines, tags_of
from sdlora.data.folder import list_pictures
from sdlora.data.metadata import TABLES, read_table
from sdlora.errors import DataError
from sdlora.workspace import publish

BACKUPS = ".captions"
_LIST = "changed.json"


class CaptionSettings(Settings):
    """Change the captions of a folder. Without --write it only shows what would change."""

    data: str = Field(min_length=1, description="Folder of pictures, or the name of a set")
    find: str = Field("", description="Text to find in captions")
    replace: str = Field("", description="What stands in its place")
    regex: bool = Field(False, description="The text to find is a regular expression")
    prefix: str = Field("", description="Text to put before captions that do not begin with it")
    suffix: str = Field("", description="Text to put after captions that do not end with it")
    remove_tag: tuple[str, ...] = Field((), description="Tags to take out of captions")
    write: bool = Field(False, description="Write the changes; undo takes them back")
    undo: bool = Field(False, description="Take the last written change back")


@dataclass(frozen=True)
class Change:
    """A caption before and after. `path` is where the new one is written; `was_file` is False when
    the old one stands elsewhere, or nowhere, so that taking it back is to delete the file."""

    path: Path
    before: str
    after: str
    was_file: bool = True


def planned(folder: Path, edit: Callable[[str], str]) -> list[Change]:
    """Every caption of the folder that `edit` changes. One that stands in a table is written into
    a file of its own, which is read before the table. DataError: a caption cannot be read."""
    tables = [file for name in TABLES for file in sorted(folder.rglob(name))]
    told = {file: text for table in tables for file, text in read_table(table).captions.items()}
    changes = []
    for picture in list_pictures(folder):
        beside = [p for s in CAPTION_SUFFIXES if (p := picture.with_suffix(s)).is_file()]
        path = beside[0] if beside else picture.with_suffix(CAPTION_SUFFIXES[0])
        try:
            before = read_text(path) if beside else told.get(picture, "")
        except ValueError as error:
            raise DataError(f"{path.name} {error}; mend it first") from None
        after = "\n".join(edit(line) for line in said_lines(before) or [""])
        if after != "\n".join(said_lines(before)):
            changes.append(Change(path, before, after, bool(beside)))
    return list({change.path: change for change in changes}.values())


def editing(settings: CaptionSettings) -> Callable[[str], str]:
    """What the settings do to one line of a caption. DataError: a pattern that is none."""
    try:
        pattern = re.compile(settings.find if settings.regex else re.escape(settings.find))
    except re.error as error:
        raise DataError(f"{settings.find!r} is no regular expression: {error}") from None
    unwanted = {tag.strip().lower() for tag in settings.remove_tag}

    def edit(line: str) -> str:
        if settings.find:
            new = settings.replace
            line = pattern.sub(new if settings.regex else lambda _: new, line)
        if unwanted:
            line = ", ".join(tag for tag in tags_of(line) if tag.lower() not in unwanted)
        if not line.startswith(settings.prefix):
            line = settings.prefix + line
        if not line.endswith(settings.suffix):
            line += settings.suffix
        return " ".join(line.split())

    return edit


def write(folder: Path, changes: Iterable[Change]) -> Path:
    """Write the new captions, copies of the old files first put aside; returns where those are.
    Killed at any moment, every caption is either the old or the new one, and `undo` knows both."""
    changes = list(changes)
    aside = folder / BACKUPS / f"{time.time_ns():020}"
    rows = []
    for change in changes:
        place = change.path.relative_to(folder).as_posix()
        rows.append({"path": place, "after": change.after, "file": change.was_file})
        if change.was_file:
            publish(aside / place, partial(shutil.copyfile, change.path))
    text = json.dumps(rows, ensure_ascii=False, indent=1)
    publish(aside / _LIST, partial(_write_text, text=text))
    for change in changes:
        publish(change.path, partial(_write_text, text=change.after + "\n"))
    return aside


def undo(folder: Path) -> list[Change]:
    """Take the last change back, byte for byte; returns what was done, `after` as it stands now. A
    caption that was changed since by other hands stays. DataError: there is nothing to take back.
    """
    lists = sorted((folder / BACKUPS).glob(f"*/{_LIST}"))
    if not lists:
        raise DataError(f"no change of captions in {folder} is there to take back")
    rows: list[dict[str, Any]] = json.loads(lists[-1].read_text(encoding="utf-8"))
    aside, done = lists[-1].parent, []
    for row in rows:
        path, old = folder / row["path"], aside / row["path"]
        if not path.is_file() or "\n".join(said_lines(read_text(path))) != row["after"]:
            continue
        if row["file"]:
            publish(path, partial(shutil.copyfile, old))
        else:
            path.unlink()
        done.append(Change(path, row["after"], read_text(old) if row["file"] else "", row["file"]))
    lists[-1].unlink()  # from here on it is undone, whatever happens to the copies
    shutil.rmtree(aside, ignore_errors=True)
    return done


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
