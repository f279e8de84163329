"""Bulk editing of captions: find and replace, prefix, suffix, removal of a tag. Changes are shown
before they are written, each file is written whole or not at all, and `undo` restores it.

Copies of the old files lie in `.captions/` of the picture folder, one folder per change, until the
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

from sdlora.data.caption_files import EMPTY
from sdlora.data.captions import clean_lines, read_text, tags_of
from sdlora.data.folder import open_captions
from sdlora.errors import DataError
from sdlora.files import write_atomically
from sdlora.messages import Message
from sdlora.settings.base import Settings
from sdlora.text_files import UnreadTextError

BACKUPS = ".captions"
_LIST = "changed.json"


class CaptionSettings(Settings):
    """Change the captions of a folder. Without --write it only shows what would change."""

    data: str = Field(min_length=1, description="Folder of pictures, or the name of a set")
    find: str = Field("", description="Text to find in captions")
    replace: str = Field("", description="Replacement for the text found")
    regex: bool = Field(False, description="Treat the text to find as a regular expression")
    prefix: str = Field("", description="Text to put before captions that do not begin with it")
    suffix: str = Field("", description="Text to put after captions that do not end with it")
    remove_tag: tuple[str, ...] = Field(
        (), title="Tags to remove", description="Tags to remove from captions"
    )
    write: bool = Field(False, description="Write the changes; --undo restores the old captions")
    undo: bool = Field(False, description="Undo the last written change")


@dataclass(frozen=True)
class Change:
    """Caption before and after an edit. `path` is where the new one is written; `was_file` is False
    when the old one stands elsewhere, or nowhere, so that undoing deletes the file. The file is
    then read instead of `source`, which stays as it is."""

    path: Path
    before: str
    after: str
    was_file: bool = True
    source: Path | None = None

    @property
    def note(self) -> str:
        """Message about the file that the caption is written to; '' when it is the file it came
        from."""
        if self.source in (None, self.path):
            return ""
        return Message(
            "{file} is read instead of {source} from then on",
            file=self.path.name,
            source=getattr(self.source, "name", ""),
        )


def plan_changes(folder: Path, edit: Callable[[str], str]) -> list[Change]:
    """Return a change for every caption of the folder that `edit` alters, read as a training reads
    it. A caption that stands in a table is written into a file of its own. DataError: a caption
    cannot be read."""
    captions = open_captions(folder)
    changes: dict[Path, Change] = {}
    for picture in captions.pictures:
        caption = captions.read(picture)
        if caption.fault and caption.fault.message != EMPTY:
            raise DataError(
                "{file} {why}; save it as UTF-8 text first",
                file=caption.file.name,
                why=caption.fault.message,
            )
        after = "\n".join(edit(line) for line in caption.lines or [""])
        if after != "\n".join(caption.lines):
            before, is_file = "\n".join(caption.lines), caption.file.is_file()
            changes[caption.file] = Change(caption.file, before, after, is_file, caption.source)
    return [*changes.values()]


def caption_editor(settings: CaptionSettings) -> Callable[[str], str]:
    """Return the function that applies the settings to one line of a caption. DataError: an invalid
    regular expression."""
    try:
        pattern = re.compile(settings.find if settings.regex else re.escape(settings.find))
    except re.error as error:
        template = "{pattern!r} is no regular expression: {why}"
        raise DataError(template, pattern=settings.find, why=error) from None
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


def write_changes(folder: Path, changes: Iterable[Change]) -> Path:
    """Write the new captions, after copies of the old files; returns the folder of the copies.
    Killed at any moment, every caption is either the old or the new one, and `undo` can restore
    both."""
    changes = list(changes)
    backup = folder / BACKUPS / f"{time.time_ns():020}"
    rows = []
    for change in changes:
        relative = change.path.relative_to(folder).as_posix()
        rows.append({"path": relative, "after": change.after, "file": change.was_file})
        if change.was_file:
            write_atomically(backup / relative, partial(shutil.copyfile, change.path))
    text = json.dumps(rows, ensure_ascii=False, indent=1)
    write_atomically(backup / _LIST, partial(_write_text, text=text))
    for change in changes:
        write_atomically(change.path, partial(_write_text, text=change.after + "\n"))
    return backup


def undo(folder: Path) -> list[Change]:
    """Restore the captions before the last change, byte for byte; returns what was done, `after` as
    it stands now. A caption that was edited since then stays. DataError: there is nothing to undo.
    """
    lists = sorted((folder / BACKUPS).glob(f"*/{_LIST}"))
    if not lists:
        raise DataError("there is no change of captions to undo in {folder}", folder=folder)
    rows: list[dict[str, Any]] = json.loads(lists[-1].read_text(encoding="utf-8"))
    backup, done = lists[-1].parent, []
    for row in rows:
        path, old = folder / row["path"], backup / row["path"]
        if not path.is_file() or "\n".join(clean_lines(_read_or_empty(path))) != row["after"]:
            continue
        if row["file"]:
            write_atomically(path, partial(shutil.copyfile, old))
        else:
            path.unlink()
        done.append(
            Change(path, row["after"], _read_or_empty(old) if row["file"] else "", row["file"])
        )
    lists[-1].unlink()  # from here on it is undone, whatever happens to the copies
    shutil.rmtree(backup, ignore_errors=True)
    return done


def _read_or_empty(path: Path) -> str:
    """Return a caption file's text; '' if it cannot be read and so is not what was written."""
    try:
        return read_text(path)
    except UnreadTextError:
        return ""


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
