"""Index of LoRA files' headers and hashes, one SQLite file per workspace; no torch.

A row holds for a file of one size and time of change. The index is a cache: one that is damaged or
of another version is begun anew, and where none can be written, the program goes on without. Page
and worker use it at the same time: each call is a transaction of its own.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sdlora.lora.format.hashes import Hashes
from sdlora.lora.library.scan import ScannedFile
from sdlora.messages import Message


@dataclass(frozen=True)
class LoraEntry:
    """One LoRA file of the library. There are thousands: the facts are decoded on first access."""

    scanned: ScannedFile
    row: IndexRow
    hidden: Message = Message("")  # empty, or the reason why its name means another file
    also: tuple[Path, ...] = ()  # files of the same name, which this one hides
    note: Message = Message("")  # how the name that was looked up differs from the file's

    @cached_property
    def facts(self) -> Facts:
        """Facts from the file's header and from the sidecars beside it."""
        return Facts.from_json(self.row.facts)

    @property
    def name(self) -> str:
        """The file's stem."""
        return self.scanned.name

    @property
    def folder(self) -> str:
        """Sub-folder below the library's folder, with '/'; empty in that folder itself."""
        return self.scanned.folder

    @property
    def full_name(self) -> str:
        """The name with its sub-folder, such as `styles/neon`."""
        return (
            f"{self.scanned.folder}/{self.scanned.name}"
            if self.scanned.folder
            else self.scanned.name
        )

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.scanned.path)

    @property
    def preview(self) -> Path | None:
        """Picture beside the file that has the file's name."""
        return Path(self.scanned.preview) if self.scanned.preview else None

    @property
    def size_bytes(self) -> int:
        """Size of the whole file in bytes."""
        return int(self.scanned.stamp.partition(" ")[0])

    @property
    def problem(self) -> Message:
        """Reason why the file cannot be used, or not by its name; empty when it can."""
        return self.facts.problem or self.hidden

    @property
    def alias(self) -> str:
        """The name it was trained under; the file may have been renamed since."""
        return self.facts.alias

    @property
    def family(self) -> str:
        """The base model it is for, a name in BASES; empty when unknown."""
        return self.facts.base

    @property
    def rank(self) -> int:
        """Highest rank of the layers; 0 when no layer has one."""
        return self.facts.rank

    @property
    def trigger_words(self) -> tuple[str, ...]:
        """Trigger words: of the user's sidecar, the metadata, Civitai, or all captions."""
        return tuple(self.facts.trigger_words)

    @property
    def hashes(self) -> Hashes:
        """Hashes known without reading the file."""
        return self.row.hashes


T = TypeVar("T")
PATIENCE_S = 10  # seconds that a call waits for another process's transaction


class Facts(NamedTuple):
    """Facts of a LoRA file: from its header and from the sidecars beside it."""

    alias: str = ""  # the name it was trained under
    title: str = ""  # the name it was published under
    base: str = ""  # a name in BASES; empty when unknown
    kinds: Sequence[str] = ()  # adapter types, that of the most layers first
    rank: int = 0  # the highest
    trigger_words: Sequence[str] = ()
    is_activation_text: bool = False  # the words are from the user's sidecar, in prompt syntax
    top_tags: Mapping[str, int] = {}  # tag -> captions that had it, the most frequent first
    negative_text: str = ""
    preferred_weight: float | None = None
    claimed_hash: str = ""  # hash of the tensors according to the metadata
    problem: Message = Message("")  # reason why it cannot be used
    notes: Sequence[Message] = ()  # sidecars or parts of them that are not used

    @property
    def text(self) -> str:
        """The facts as JSON: rows are compared by this text, without decoding it."""
        messages = self.problem.to_json(), [note.to_json() for note in self.notes]
        return json.dumps((*self[:-2], *messages), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Facts:
        """Read the facts back from `text`."""
        *values, problem, notes = json.loads(text)
        return cls._make([*values, Message.from_json(problem), [*map(Message.from_json, notes)]])


class IndexRow(NamedTuple):
    """One row of the table: a file's facts, and its hashes once they have been computed."""

    path: bytes  # as the system has it, which need not be text
    stamp: str
    beside: str  # the stamps of the sidecars
    facts: str
    sha256: str = ""
    body: str = ""
    legacy: str = ""

    @property
    def hashes(self) -> Hashes:
        """Hashes computed so far."""
        return Hashes(*self[-3:])

    @property
    def checksum(self) -> int:
        """CRC-32 of stamp, sidecars' stamps and facts, to recognise a row damaged on the disk."""
        return zlib.crc32("\n".join(self[1:4]).encode("utf-8", "surrogatepass"))


_CREATE = f"CREATE TABLE files (path BLOB PRIMARY KEY, {', '.join(IndexRow._fields[1:])}, checksum)"
# hashes stay valid when only a sidecar changes
_KEEP = (
    f"INSERT INTO files VALUES ({', '.join('?' * len(IndexRow._fields))}, ?) "
    "ON CONFLICT (path) DO UPDATE SET "
    + ", ".join(f"{name} = iif(stamp = excluded.stamp, {name}, '')" for name in Hashes._fields)
    + ", stamp = excluded.stamp, beside = excluded.beside, facts = excluded.facts"
    ", checksum = excluded.checksum"
)
_HASH = "UPDATE files SET sha256 = ?, body = ?, legacy = ? WHERE path = ? AND stamp = ?"
# Other code may read files differently: an index written by it is not used
_PROGRAM = b"".join(
    path.read_bytes() for path in sorted(Path(__file__).parent.parent.rglob("*.py"))
)
_VERSION = zlib.crc32(_PROGRAM) & 0x7FFF_FFFF
# SQLite's codes for a file that is damaged for good, not just locked
_BROKEN = {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


class Index:
    """The SQLite file. Safe to use from any process and thread; never raises."""

    def __init__(self, database: Path | None, version: int = _VERSION) -> None:
        """Use `database` as the file; None keeps nothing. `version`: of the rows' meaning."""
        self.database, self.version = database, version

    def rows(self) -> dict[bytes, IndexRow]:
        """All rows by path. Damaged rows are deleted."""

        def read(connection: sqlite3.Connection) -> dict[bytes, IndexRow]:
            fields = ", ".join(IndexRow._fields)
            rows = connection.execute(f"SELECT rowid, {fields}, checksum FROM files").fetchall()
            damaged = [(number,) for number, *row in rows if not _is_undamaged(row)]
            connection.executemany("DELETE FROM files WHERE rowid = ?", damaged)
            return {row[0]: IndexRow._make(row[:-1]) for _, *row in rows if _is_undamaged(row)}

        return self._transaction(read, {})

    def row(self, path: bytes) -> IndexRow | None:
        """The row of one path; None where there is none, or it is damaged."""

        def read(connection: sqlite3.Connection) -> IndexRow | None:
            fields = ", ".join(IndexRow._fields)
            statement = f"SELECT {fields}, checksum FROM files WHERE path = ?"
            row = connection.execute(statement, (path,)).fetchone()
            return IndexRow._make(row[:-1]) if row and _is_undamaged(row) else None

        return self._transaction(read, None)

    def keep(self, rows: Collection[IndexRow], gone: Iterable[bytes] = ()) -> None:
        """Add rows or replace them, and forget the files that are gone."""

        def write(connection: sqlite3.Connection) -> None:
            connection.executemany(_KEEP, [(*row, row.checksum) for row in rows])
            connection.executemany("DELETE FROM files WHERE path = ?", [(path,) for path in gone])

        self._transaction(write, None)

    def keep_hashes(self, path: bytes, stamp: str, hashes: Hashes) -> None:
        """Add a file's hashes to its row, if the row still has the stamp of the hashed file."""
        self._transaction(
            lambda connection: connection.execute(_HASH, (*hashes, path, stamp)), None
        )

    def _transaction(self, work: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        """Run `work` as one transaction; return `otherwise` where no index can be opened."""
        for _ in range(2 if self.database else 0):
            try:
                opened = sqlite3.connect(str(self.database), PATIENCE_S)
                with closing(opened) as connection, connection:
                    _begin_exclusive(connection, self.version)
                    return work(connection)
            except sqlite3.Error as error:
                # Python's own complaint, of text that is none, comes without a code
                code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
                if code & 0xFF not in _BROKEN:
                    break
                self._remove()
        return otherwise

    def _remove(self) -> None:
        for ending in ("", "-journal", "-wal", "-shm"):
            with suppress(OSError):
                Path(f"{self.database}{ending}").unlink(missing_ok=True)


def _is_undamaged(row: Sequence[Any]) -> bool:
    """True if a row of the table has the right types and checksum."""
    is_typed = type(row[0]) is bytes and all(type(text) is str for text in row[1:-1])
    return is_typed and IndexRow._make(row[:-1]).checksum == row[-1]


def _begin_exclusive(connection: sqlite3.Connection, version: int) -> None:
    """Begin a transaction that locks out other writers; create the table of a version."""
    connection.isolation_level = None  # no implicit transactions
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("BEGIN IMMEDIATE")
    if connection.execute("PRAGMA user_version").fetchone()[0] != version:
        connection.execute("DROP TABLE IF EXISTS files")
        connection.execute(_CREATE)
        connection.execute(f"PRAGMA user_version = {version}")
