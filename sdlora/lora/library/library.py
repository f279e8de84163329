"""The LoRA files that prompts can name, listed by the thousand; no torch.

A LoRA's name is its file's stem. It is found by that, whatever the case, with '.', '_', '-' and
space alike, with its sub-folder, by the name it was trained under, or by any of its hashes, given
with eight digits or more; also with the file's ending or a folder that it is not in, with a note.
Headers are read once and kept in an index; after that files are only listed.
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
from sdlora.lora.library.file_info import Layouts, facts_of, one_line, trigger_words
from sdlora.lora.library.index import Index, IndexRow, LoraEntry
from sdlora.lora.library.scan import ScannedFile, walk
from sdlora.messages import Message
from sdlora.workspace import Workspace

COMPARED = 30  # names that a mistaken one is compared with letter by letter


def _lookup_key(name: str) -> str:
    # a tag cannot hold the last three, so that it is written without them
    same = unicodedata.normalize("NFC", name).casefold().replace("\\", "/")
    same = same.translate({ord(sign): None for sign in ":<>"})
    return same.replace(".", " ").replace("_", " ").replace("-", " ")


# Ways to look a name up, the most exact first: (key of an entry, key of the name), to be equal
_LOOKUPS: tuple[tuple[Callable[[LoraEntry], str], Callable[[str], str]], ...] = (
    (lambda entry: entry.name, str),
    (lambda entry: entry.full_name, str),
    (lambda entry: _lookup_key(entry.name), _lookup_key),
    (lambda entry: _lookup_key(entry.full_name), _lookup_key),
    (lambda entry: _lookup_key(entry.alias), _lookup_key),
)


class LoraIndexSnapshot:
    """The files as they were listed at one moment, in the order in which they are preferred."""

    def __init__(self, entries: Sequence[LoraEntry] = ()) -> None:
        self.entries = sorted(entries, key=lambda entry: is_pickle(entry.scanned.path))
        self._tables: dict[int, dict[str, list[LoraEntry]]] = {}  # by place in _LOOKUPS

    @cached_property
    def by_name(self) -> list[LoraEntry]:
        """All entries, sorted by full name. Of files with the same full name the first has it; the
        others name that file in `hidden`."""
        first: dict[str, LoraEntry] = {}
        hidden: dict[str, list[LoraEntry]] = defaultdict(list)
        for entry in self.entries:
            if first.setdefault(entry.full_name, entry) is not entry:
                hidden[entry.full_name].append(entry)
        for name, others in hidden.items():
            owner = first[name]
            first[name] = replace(owner, also=tuple(entry.path for entry in others))
            template = "{name!r} means {file}; to use this file, rename it"
            message = Message(template, name=one_line(name), file=Path(one_line(owner.path)))
            hidden[name] = [replace(entry, hidden=message) for entry in others]
        rest = (entry for others in hidden.values() for entry in others)
        return sorted([*first.values(), *rest], key=lambda entry: _lookup_key(entry.full_name))

    def find(self, name: str) -> LoraEntry | None:
        """The entry that a name or a known hash means; `also` names others that fit as well."""
        matches = self._entries_called(name) if name else []
        if not matches and is_hash(start := name.lower()):
            matches = [entry for entry in self.entries if entry.hashes.matches(start)]
            # the hash that a file claims in its metadata may be stale, or another file's
            matches = matches or [e for e in self.entries if e.facts.claimed_hash.startswith(start)]
        if name and not matches:
            return self._entry_nearly_called(name)
        return (
            replace(matches[0], also=tuple(entry.path for entry in matches[1:]))
            if matches
            else None
        )

    def _entries_called(self, name: str) -> list[LoraEntry]:
        for way, (of_entry, of_name) in enumerate(_LOOKUPS):
            if way not in self._tables:
                table = defaultdict(list)
                for entry in self.entries:
                    table[of_entry(entry)].append(entry)
                self._tables[way] = table  # whole, for other threads look here too
            key = of_name(name)
            if key and (matches := self._tables[way].get(key)):
                return matches
        return []

    def _entry_nearly_called(self, name: str) -> LoraEntry | None:
        """The entry of a name with its file's ending, or with a folder that it does not lie in."""
        way = name.replace("\\", "/").split("/")
        stem, dot, ending = way[-1].rpartition(".")
        has_ending = (dot + ending).lower() in (*READABLE, *PICKLES)
        if not all(part.strip(".") for part in way):
            return None
        way[-1] = stem if has_ending else way[-1]
        if has_ending and (matches := self._entries_called("/".join(way))):
            also = tuple(entry.path for entry in matches[1:])
            why = Message("a file's ending is no part of its name")
        elif len(way) > 1 and len(matches := self._entries_called(way[-1])) == 1:
            also, why = (), Message("it is the only file of that name, in another folder")
        else:
            return None
        note = Message(
            "{name!r} is taken as {match!r}: {why}",
            name=name[:80], match=matches[0].full_name, why=why,
        )  # fmt: skip
        return replace(matches[0], also=also, note=note)

    def similar_names(self, name: str) -> list[str]:
        """Full names of the entries that share most letter pairs with `name`, at most COMPARED."""
        pieces = _letter_pairs(name)
        alike = nlargest(
            COMPARED, self.entries, key=lambda entry: len(pieces & _letter_pairs(entry.full_name))
        )
        return [entry.full_name for entry in alike]


def _letter_pairs(name: str) -> set[str]:
    same = _lookup_key(name)
    return {same[at : at + 2] for at in range(len(same) - 1)}


__all__ = ["Library", "LoraEntry", "stamp", "trigger_words"]

FRESH_S = 0.5  # a listing of this age or younger serves the next name of the same prompt
HASHED_AT_ONCE = 2 * 2**30  # bytes read per look-up of a hash
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
        self._scanned: Sequence[ScannedFile] = ()
        self._known: dict[bytes, LoraEntry] = {}
        self._snapshot, self._listed_at = LoraIndexSnapshot(), float("-inf")
        self._problems: list[Message] = []
        self._all_read = True  # False while a file could not be read
        self._lock = threading.RLock()

    @classmethod
    def for_workspace(cls, workspace: Workspace) -> Library:
        """Return the library of a workspace. Folders that its user adds are seen at once."""
        library = cls((), workspace.lora_index)
        library._folders = lambda: workspace.lora_folders
        return library

    @property
    def problems(self) -> tuple[str, ...]:
        """Messages about the folders that could not be listed the last time."""
        return tuple(self._problems)

    def list(self) -> list[LoraEntry]:
        """All files by name. One that cannot be used is there with its problem."""
        return list(self._refresh().by_name)

    def find(self, name: str) -> LoraEntry:
        """The entry that `name` means. LoraFileError with near names when there is none.

        Where several files fit equally well, the first is taken and its `also` names the others.
        """
        name = name.strip()
        entry = self._snapshot.find(name) if time.monotonic() - self._listed_at < FRESH_S else None
        if entry is None or entry.scanned.stamp != _stamp_text(entry.path):
            entry = self._refresh().find(name)
        if entry is None and is_hash(name.lower()):
            entry = self._find_by_hashing_more(name.lower())
        if entry is None:
            similar_names = did_you_mean(name[:80], self._snapshot.similar_names(name[:80]))
            missing = Message(
                "there is no LoRA {name!r}.{similar_names}",
                name=name[:80],
                similar_names=similar_names,
            )
            raise LoraFileError(Message.of_lines([missing, *self.problems]))
        return entry

    def hashes(self, entry: LoraEntry) -> Hashes:
        """A file's hashes: read once, then kept. LoraFileError when it cannot be read."""
        key, seen = entry.row.path, _stamp_text(entry.path)
        if self._rows is None:
            self._refresh()
        row = (self._rows or {}).get(key)
        if row and row.stamp == seen and row.sha256:
            return row.hashes
        try:
            hashes = read_hashes(entry.path)
        except OSError as error:
            raise refusal("unreadable", file=entry.path.name, why=error.strerror) from None
        with self._lock:
            if row and row.stamp == seen == _stamp_text(entry.path):
                self._index.keep_hashes(key, seen, hashes)
                self._rows = {**(self._rows or {}), key: row._replace(**hashes._asdict())}
                self._scanned = ()  # so that the next listing takes the hashes in
        return hashes

    def _find_by_hashing_more(self, start: str) -> LoraEntry | None:
        """Return the entry whose hash begins with `start`, hashing the files not hashed so far."""
        left = HASHED_AT_ONCE
        unread = [e for e in self._snapshot.entries if not e.row.sha256 and not e.facts.problem]
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
                if self.hashes(entry).matches(start):
                    return self._refresh().find(start)
        return None

    def _refresh(self) -> LoraIndexSnapshot:
        """List the folders again and return the snapshot. Only files that changed are opened."""
        with self._lock:
            scanned, self._problems = walk(self._folders())
            if self._rows is None or scanned != self._scanned or not self._all_read:
                self._known = self._entries(scanned)
                self._snapshot = LoraIndexSnapshot(list(self._known.values()))
                self._scanned = scanned
            self._listed_at = time.monotonic()
            return self._snapshot

    def _entries(self, scanned: Sequence[ScannedFile]) -> dict[bytes, LoraEntry]:
        """Entries by path, the same objects as before for files that have not changed."""
        rows = self._index.rows() if self._rows is None else self._rows
        keyed = {os.fsencode(file.path): file for file in scanned}
        new_files = {
            key: file for key, file in keyed.items() if not _is_up_to_date(rows.get(key), file)
        }
        read, unsettled = self._read_changed(new_files, rows)
        # a folder that cannot be listed at the moment is not gone for good
        gone = set() if self._problems else rows.keys() - keyed.keys()
        if read or gone:
            self._index.keep(read.values(), gone)
        self._rows = {key: row for key, row in rows.items() if key not in gone} | read
        self._all_read = not unsettled
        now, before = self._rows | unsettled, self._known
        return {
            key: entry
            if (entry := before.get(key)) and (entry.scanned, entry.row) == (file, now[key])
            else LoraEntry(file, now[key])
            for key, file in keyed.items()
        }

    def _read_changed(self, files: dict[bytes, ScannedFile], rows: Rows) -> tuple[Rows, Rows]:
        """Read new and changed files. Returns (rows to keep, rows of files to be read again)."""
        settled: Rows = {}
        unsettled: Rows = {}
        for key, file in files.items():
            facts, lasts = facts_of(file, self._layouts)
            old = rows.get(key)
            hashes = old.hashes if old and old.stamp == file.stamp else Hashes()
            row = IndexRow(key, file.stamp, file.beside, facts.text, *hashes)
            (settled if lasts else unsettled)[key] = row
        return settled, unsettled


def _is_up_to_date(row: IndexRow | None, scanned: ScannedFile) -> bool:
    return row is not None and row.stamp == scanned.stamp and row.beside == scanned.beside


def _stamp_text(path: Path) -> str:
    return "{} {}".format(*stamp(path))


def stamp(path: Path) -> tuple[int, int]:
    """(size in bytes, time of change in ns) of a file, to see whether it has changed; (0, 0) when
    it is missing."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns
