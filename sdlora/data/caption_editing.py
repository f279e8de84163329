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

from sdlora.data.caption_files import EMPTY
from sdlora.data.captions import read_text, said_lines, tags_of
from sdlora.data.folder import open_captions
from sdlora.errors import DataError
from sdlora.files import publish
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
    """A caption before and after. `path` is where the new one is written; `was_file` is False when
    the old one stands elsewhere, or nowhere, so that taking it back is to delete the file. The
    file is then read instead of `source`, which stays as it is."""

    path: Path
    before: str
    after: str
    was_file: bool = True
    source: Path | None = None

    @property
    def note(self) -> str:
        """What is to be said of where it is written; '' when it is where it was."""
        if self.source in (None, self.path):
            return ""
        return Message(
            "{file} is read instead of {source} from then on",
            file=self.path.name,
            source=getattr(self.source, "name", ""),
        )


def planned(folder: Path, edit: Callable[[str], str]) -> list[Change]:
    """Every caption of the folder that `edit` changes, as a training reads it. One that stands in a
    table is written into a file of its own. DataError: a caption cannot be read."""
    captions = open_captions(folder)
    changes: dict[Path, Change] = {}
    for picture in captions.pictures:
        caption = captions.read(picture)
        if caption.fault and caption.fault.what != EMPTY:
            raise DataError(
                "{file} {why}; save it as UTF-8 text first",
                file=caption.file.name,
                why=caption.fault.what,
            )
        after = "\n".join(edit(line) for line in caption.lines or [""])
        if after != "\n".join(caption.lines):
            before, is_file = "\n".join(caption.lines), caption.file.is_file()
            changes[caption.file] = Change(caption.file, before, after, is_file, caption.source)
    return [*changes.values()]


def editing(settings: CaptionSettings) -> Callable[[str], str]:
    """What the settings do to one line of a caption. DataError: a pattern that is none."""
    try:
        pattern = re.compile(settings.find if settings.regex else re.escape(settings.find))
    except re.error as error:
        what = "{pattern!r} is no regular expression: {why}"
        raise DataError(what, pattern=settings.find, why=error) from None
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
        raise DataError("no change of captions in {folder} is there to take back", folder=folder)
    rows: list[dict[str, Any]] = json.loads(lists[-1].read_text(encoding="utf-8"))
    aside, done = lists[-1].parent, []
    for row in rows:
        path, old = folder / row["path"], aside / row["path"]
        if not path.is_file() or "\n".join(said_lines(_text(path))) != row["after"]:
            continue
        if row["file"]:
            publish(path, partial(shutil.copyfile, old))
        else:
            path.unlink()
        done.append(Change(path, row["after"], _text(old) if row["file"] else "", row["file"]))
    lists[-1].unlink()  # from here on it is undone, whatever happens to the copies
    shutil.rmtree(aside, ignore_errors=True)
    return done


def _text(path: Path) -> str:
    """A caption file's text; '' of one that cannot be read, which is another than was written."""
    try:
        return read_text(path)
    except UnreadTextError:
        return ""


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
