"""Caption files: the one reader that decides which file of a folder holds the caption of a picture.

Training, checking, editing, captioning and the page all use it. Of NAME.png it is, in this order:
NAME.txt, NAME.caption, NAME.png.txt, NAME.png.caption, NAME.json, a row of metadata.jsonl or
metadata.csv, of the folder nearest to it, and a row of a metadata file of sd-scripts.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sdlora.data.caption_tables import TABLES, Table, read_table
from sdlora.data.captions import CAPTION_SUFFIXES, clean_lines, decode_file, unescaped
from sdlora.data.json_captions import JSON_TABLES, read_json_table, read_sidecar
from sdlora.data.problems import Problem
from sdlora.messages import Message
from sdlora.text_files import UnreadTextError

SIDECAR_SUFFIXES = (*CAPTION_SUFFIXES, ".json")
EMPTY = Message("is empty")
Key = tuple[Path, str]  # folder, and the name without its caption's suffix


@dataclass(frozen=True)
class Caption:
    """Caption of a picture. `lines` are those of its `source`, tidied; no lines: there is none.
    `file` is where an edited caption is written; it exists already or is read first from then on.
    `fault` is the problem of a caption file that gives no caption."""

    lines: tuple[str, ...]
    source: Path | None
    file: Path
    fault: Problem | None = None
    problems: tuple[Problem, ...] = ()

    @property
    def learnt(self) -> list[str]:
        """The lines as they are learnt: without the escapes of taggers."""
        return [unescaped(line) for line in self.lines]

    @property
    def text(self) -> str:
        """All lines as one."""
        return " ".join(self.lines)


@dataclass(frozen=True)
class _Entry:
    """Caption text of one picture in a table or a JSON file."""

    text: str
    source: Path


@dataclass
class CaptionFiles:
    """Caption files among the `files` of a folder. `pictures` are those that they may belong to;
    `texts` are text files by the key that they share with a picture, `used` all that are read,
    `problems` those of files as a whole."""

    files: Sequence[Path]
    pictures: Sequence[Path]
    problems: list[Problem] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.texts: dict[Key, Path] = {}
        self._entries: dict[Path, _Entry] = {}
        self._stems = Counter(keys_of(picture)[0] for picture in self.pictures)
        self._keys = {key for picture in self.pictures for key in keys_of(picture)}
        texts = [file for file in self.files if _is_text(file)]
        for file in sorted(texts, key=lambda file: CAPTION_SUFFIXES.index(file.suffix.lower())):
            first = self.texts.setdefault(_key(file, file.stem), file)
            if first != file:
                self._ignored(file, first)
        tables = [file for file in self.files if file.name.lower() in JSON_TABLES]
        for file in tables:
            self._take(read_json_table(file, self.pictures))
        for file in (file for file in self.files if file.name.lower() in TABLES):
            self._take(read_table(file))
        self._sidecars = {
            _key(file, file.stem): file
            for file in self.files
            if file.suffix.lower() == ".json" and file not in tables
        }
        self.used = {*texts, *tables, *(f for f in self.files if f.name.lower() in TABLES)}
        self.used |= {file for key, file in self._sidecars.items() if key in self._keys}

    def read(self, picture: Path) -> Caption:
        """The caption of a picture, and what is wrong with its files."""
        own = [self.texts[key] for key in keys_of(picture) if key in self.texts]
        problems = [_not_read(file, own[0]) for file in own[1:]]
        lines: list[str] = []
        fault = None
        if own:
            try:
                lines, notes = _read_text(own[0])
                fault = None if lines else Problem(own[0], EMPTY)
                problems += notes
            except UnreadTextError as error:
                fault = Problem(own[0], error.message)
        source = own[0] if lines else None
        entry, notes = self._entry(picture)
        problems += notes
        if entry and (others := clean_lines(entry.text)):
            if own and others != lines:
                read = own[0] if lines else entry.source
                message = Message("has two captions; that of {file} is read", file=read.name)
                problems.append(Problem(picture, message))
            if not lines:
                lines, source = others, entry.source
        file = own[0] if own else self._new_file(picture)
        return Caption(tuple(lines), source, file, fault, tuple(problems))

    def _entry(self, picture: Path) -> tuple[_Entry | None, list[Problem]]:
        for key in keys_of(picture):
            if sidecar := self._sidecars.get(key):
                try:
                    return _Entry(read_sidecar(sidecar), sidecar), []
                except UnreadTextError as error:
                    return self._entries.get(picture), [Problem(sidecar, error.message)]
        return self._entries.get(picture), []

    def _new_file(self, picture: Path) -> Path:
        """A text file for this picture alone: with its suffix, where another has its stem."""
        suffix = CAPTION_SUFFIXES[0]
        if self._stems[keys_of(picture)[0]] > 1:
            return picture.with_name(f"{picture.name}{suffix}")
        return picture.with_suffix(suffix)

    def _take(self, table: Table) -> None:
        self._entries |= {file: _Entry(text, table.path) for file, text in table.captions.items()}
        self.problems += [Problem(table.path, message) for message in table.problems]

    def _ignored(self, file: Path, first: Path) -> None:
        self.problems.append(_not_read(file, first))


def is_caption_file(name: str) -> bool:
    """Return True if a file of this name may hold captions."""
    return name.lower().endswith(SIDECAR_SUFFIXES) or name.lower() in TABLES


def keys_of(picture: Path) -> tuple[Key, Key]:
    """Return the keys that a picture shares with its caption files: of cat.txt, and of
    cat.png.txt."""
    return _key(picture, picture.stem), _key(picture, picture.name)


def _key(file: Path, stem: str) -> Key:
    """Return the folder and the NFC name, equal however a Mac or an archive wrote the letters."""
    return file.parent, unicodedata.normalize("NFC", stem)


def _is_text(file: Path) -> bool:
    return file.suffix.lower() in CAPTION_SUFFIXES


def _not_read(file: Path, first: Path) -> Problem:
    return Problem(file, Message("is not read: {first} is", first=first.name))


def _read_text(file: Path) -> tuple[list[str], list[Problem]]:
    decoded = decode_file(file)
    advice = Message("save it as UTF-8 if the caption is not right")
    return clean_lines(decoded.text), [Problem(file, remark, advice) for remark in decoded.remarks]
