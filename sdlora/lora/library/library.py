"""The LoRA files that prompts can name, listed by the thousand; no torch.

A LoRA's name is its file's stem. It is found by that, whatever the case, with '.', '_', '-' and
space alike, with its sub-folder, by the name it was trained under, or by any of its hashes from
eight letters on; also with the file's ending or a folder that it is not in, which is told. Headers
are read once and kept in an index; after that files are only listed.
"""

from __future__ import annotations

import os
import threading
import time
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from heapq import nlargest
from pathlib import Path

from sdlora.errors import LoraFileError, did_you_mean
from sdlora.lora.format.errors import refusal
from sdlora.lora.format.file_types import PICKLES, READABLE, is_pickle
from sdlora.lora.format.hashes import Hashes, is_hash, read_hashes
from sdlora.lora.library.file_info import Layouts, facts_of, plain, trigger_words
from sdlora.lora.library.index import Index, IndexRow, LoraEntry
from sdlora.lora.library.scan import ScannedFile, walk
from sdlora.messages import Message
from sdlora.workspace import Workspace

COMPARED = 30  # names that a mistaken one is compared with letter by letter


def _folded(name: str) -> str:
    # a tag cannot hold the last three, so that it is written without them
    same = unicodedata.normalize("NFC", name).casefold().replace("\\", "/")
    same = same.translate({ord(sign): None for sign in ":<>"})
    return same.replace(".", " ").replace("_", " ").replace("-", " ")


# How a name is looked up, the most exact way first: what of an entry has to equal what of the name
_LOOKUPS: tuple[tuple[Callable[[LoraEntry], str], Callable[[str], str]], ...] = (
    (lambda entry: entry.name, str),
    (lambda entry: entry.full_name, str),
    (lambda entry: _folded(entry.name), _folded),
    (lambda entry: _folded(entry.full_name), _folded),
    (lambda entry: _folded(entry.alias), _folded),
)


class LoraIndexSnapshot:
    """The files as they were listed at one moment, in the order in which they are preferred."""

    def __init__(self, entries: Sequence[LoraEntry] = ()) -> None:
        self.entries = sorted(entries, key=lambda entry: is_pickle(entry.found.path))
        self._tables: dict[int, dict[str, list[LoraEntry]]] = {}  # by place in _LOOKUPS

    @cached_property
    def by_name(self) -> list[LoraEntry]:
        """All, sorted. Of files with one full name the first has it; the others say who has."""
        first: dict[str, LoraEntry] = {}
        hidden: dict[str, list[LoraEntry]] = defaultdict(list)
        for entry in self.entries:
            if first.setdefault(entry.full_name, entry) is not entry:
                hidden[entry.full_name].append(entry)
        for name, others in hidden.items():
            owner = first[name]
            first[name] = replace(owner, also=tuple(entry.path for entry in others))
            template = "{name!r} means {file}; to use this file, rename it"
            said = Message(template, name=plain(name), file=Path(plain(owner.path)))
            hidden[name] = [replace(entry, hidden=said) for entry in others]
        rest = (entry for others in hidden.values() for entry in others)
        return sorted([*first.values(), *rest], key=lambda entry: _folded(entry.full_name))

    def find(self, name: str) -> LoraEntry | None:
        """The entry that a name or a known hash means; `also` names others that fit as well."""
        fits = self._called(name) if name else []
        if not fits and is_hash(start := name.lower()):
            fits = [entry for entry in self.entries if entry.hashes.fit(start)]
            # what a file claims may be stale, or another's
            fits = fits or [e for e in self.entries if e.facts.said_hash.startswith(start)]
        if name and not fits:
            return self._nearly_called(name)
        return replace(fits[0], also=tuple(one.path for one in fits[1:])) if fits else None

    def _called(self, name: str) -> list[LoraEntry]:
        for way, (of_entry, of_name) in enumerate(_LOOKUPS):
            if way not in self._tables:
                table = defaultdict(list)
                for entry in self.entries:
                    table[of_entry(entry)].append(entry)
                self._tables[way] = table  # whole, for other threads look here too
            key = of_name(name)
            if key and (fits := self._tables[way].get(key)):
                return fits
        return []

    def _nearly_called(self, name: str) -> LoraEntry | None:
        """The entry of a name with its file's ending, or with a folder that it does not lie in."""
        way = name.replace("\\", "/").split("/")
        stem, dot, ending = way[-1].rpartition(".")
        has_ending = (dot + ending).lower() in (*READABLE, *PICKLES)
        if not all(part.strip(".") for part in way):
            return None
        way[-1] = stem if has_ending else way[-1]
        if has_ending and (fits := self._called("/".join(way))):
            also = tuple(entry.path for entry in fits[1:])
            why = Message("a file's ending is no part of its name")
        elif len(way) > 1 and len(fits := self._called(way[-1])) == 1:
            also, why = (), Message("it is the only file of that name, in another folder")
        else:
            return None
        note = Message(
            "{name!r} is taken as {found!r}: {why}",
            name=name[:80], found=fits[0].full_name, why=why,
        )  # fmt: skip
        return replace(fits[0], also=also, note=note)

    def near(self, name: str) -> list[str]:
        """Names that look like one, for what is said when it is not there."""
        pieces = _pieces(name)
        alike = nlargest(
            COMPARED, self.entries, key=lambda entry: len(pieces & _pieces(entry.full_name))
        )
        return [entry.full_name for entry in alike]


def _pieces(name: str) -> set[str]:
    same = _folded(name)
    return {same[at : at + 2] for at in range(len(same) - 1)}


__all__ = ["Library", "LoraEntry", "stamp", "trigger_words"]

FRESH_S = 0.5  # so long a listing answers for the next name of the same prompt
HASHED_AT_ONCE = 2 * 2**30  # bytes read to find one hash
Rows = dict[bytes, IndexRow]


class Library:
    """The LoRA files in some folders and the folders below them; the first folder's come first."""

    def __init__(self, folders: Iterable[Path], index: Path | None = None) -> None:
        """`index` is a file to remember headers and hashes in."""
        fixed = tuple(folders)
        self._folders: Callable[[], tuple[Path, ...]] = lambda: fixed
        self._index = Index(index)
        self._layouts: Layouts = {}
        self._rows: Rows | None = None
        self._found: Sequence[ScannedFile] = ()
        self._known: dict[bytes, LoraEntry] = {}
        self._shelf, self._listed_at = LoraIndexSnapshot(), float("-inf")
        self._problems: list[Message] = []
        self._settled = True  # False while a file could not be read
        self._lock = threading.RLock()

    @classmethod
    def of(cls, workspace: Workspace) -> Library:
        """That of a workspace. Folders that its user adds are seen at once."""
        library = cls((), workspace.lora_index)
        library._folders = lambda: workspace.lora_folders
        return library

    @property
    def problems(self) -> tuple[str, ...]:
        """The folders that could not be listed the last time."""
        return tuple(self._problems)

    def list(self) -> list[LoraEntry]:
        """All files by name. One that cannot be used is there with its problem."""
        return list(self._listed().by_name)

    def find(self, name: str) -> LoraEntry:
        """The entry that `name` means. LoraFileError with near names when there is none.

        Where several files fit equally well, the first is taken and its `also` names the others.
        """
        name = name.strip()
        entry = self._shelf.find(name) if time.monotonic() - self._listed_at < FRESH_S else None
        if entry is None or entry.found.stamp != _seen(entry.path):
            entry = self._listed().find(name)
        if entry is None and is_hash(name.lower()):
            entry = self._find_by_reading(name.lower())
        if entry is None:
            near = did_you_mean(name[:80], self._shelf.near(name[:80]))
            missing = Message("there is no LoRA {name!r}.{near}", name=name[:80], near=near)
            raise LoraFileError(Message.of_lines([missing, *self.problems]))
        return entry

    def hashes(self, entry: LoraEntry) -> Hashes:
        """A file's hashes: read once, then kept. LoraFileError when it cannot be read."""
        key, seen = entry.row.path, _seen(entry.path)
        if self._rows is None:
            self._listed()
        row = (self._rows or {}).get(key)
        if row and row.stamp == seen and row.sha256:
            return row.hashes
        try:
            hashes = read_hashes(entry.path)
        except OSError as error:
            raise refusal("unreadable", file=entry.path.name, why=error.strerror) from None
        with self._lock:
            if row and row.stamp == seen == _seen(entry.path):
                self._index.keep_hashes(key, seen, hashes)
                self._rows = {**(self._rows or {}), key: row._replace(**hashes._asdict())}
                self._found = ()  # so that they are seen
        return hashes

    def _find_by_reading(self, start: str) -> LoraEntry | None:
        """The file whose hash begins so, among those that nobody has hashed yet."""
        left = HASHED_AT_ONCE
        unread = [e for e in self._shelf.entries if not e.row.sha256 and not e.facts.problem]
        for number, entry in enumerate(unread):
            left -= entry.size_bytes
            if left < 0 and number:
                raise LoraFileError(
                    "no LoRA is known to have the hash {hash!r} so far; {count} files are not read "
                    "yet: ask again to go on",
                    hash=start,
                    count=len(unread) - number,
                )
            with suppress(LoraFileError):  # it may be gone by now
                if self.hashes(entry).fit(start):
                    return self._listed().find(start)
        return None

    def _listed(self) -> LoraIndexSnapshot:
        """What is there now. Only files that changed are opened."""
        with self._lock:
            found, self._problems = walk(self._folders())
            if self._rows is None or found != self._found or not self._settled:
                self._known = self._entries(found)
                self._shelf = LoraIndexSnapshot(list(self._known.values()))
                self._found = found
            self._listed_at = time.monotonic()
            return self._shelf

    def _entries(self, found: Sequence[ScannedFile]) -> dict[bytes, LoraEntry]:
        """One per file, those of before where nothing changed."""
        rows = self._index.rows() if self._rows is None else self._rows
        keyed = {os.fsencode(one.path): one for one in found}
        news = {key: one for key, one in keyed.items() if not _is_of(rows.get(key), one)}
        read, unsettled = self._read(news, rows)
        # what cannot be listed at the moment is not gone for good
        gone = set() if self._problems else rows.keys() - keyed.keys()
        if read or gone:
            self._index.keep(read.values(), gone)
        self._rows = {key: row for key, row in rows.items() if key not in gone} | read
        self._settled = not unsettled
        now, before = self._rows | unsettled, self._known
        return {
            key: entry
            if (entry := before.get(key)) and (entry.found, entry.row) == (one, now[key])
            else LoraEntry(one, now[key])
            for key, one in keyed.items()
        }

    def _read(self, files: dict[bytes, ScannedFile], rows: Rows) -> tuple[Rows, Rows]:
        """The rows of files that are new or have changed; second those to be read again."""
        settled: Rows = {}
        unsettled: Rows = {}
        for key, one in files.items():
            facts, lasts = facts_of(one, self._layouts)
            old = rows.get(key)
            hashes = old.hashes if old and old.stamp == one.stamp else Hashes()
            row = IndexRow(key, one.stamp, one.beside, facts.text, *hashes)
            (settled if lasts else unsettled)[key] = row
        return settled, unsettled


def _is_of(row: IndexRow | None, found: ScannedFile) -> bool:
    return row is not None and row.stamp == found.stamp and row.beside == found.beside


def _seen(path: Path) -> str:
    return "{} {}".format(*stamp(path))


def stamp(path: Path) -> tuple[int, int]:
    """(size, time of change): tells whether a file is still the one that was read."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns
