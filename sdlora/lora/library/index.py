"""What LoRA files have said, kept between runs in one SQLite file of the workspace; no torch.

A row speaks of a file as it was at one size and time of change. The index is a memory and never the
truth: one that is damaged or of another version is begun anew, and where none can be written, the
program goes on without. Page and worker use it at once: each call is a transaction of its own.
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
    """One file. Listing thousands makes one of these for each: what it says is looked at when it
    is asked for."""

    found: ScannedFile
    row: IndexRow
    hidden: Message = Message("")  # why its name means another file
    also: tuple[Path, ...] = ()  # files of the same name, which this one hides
    note: Message = Message("")  # how the name that was looked for differs from its own

    @cached_property
    def facts(self) -> Facts:
        """What it says of itself, and others beside it."""
        return Facts.of(self.row.facts)

    @property
    def name(self) -> str:
        """The file's stem."""
        return self.found.name

    @property
    def folder(self) -> str:
        """Where it lies below the library's folder, with '/'."""
        return self.found.folder

    @property
    def full_name(self) -> str:
        """The name with its sub-folder, such as `styles/neon`."""
        return f"{self.found.folder}/{self.found.name}" if self.found.folder else self.found.name

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.found.path)

    @property
    def preview(self) -> Path | None:
        """A picture of its name beside it."""
        return Path(self.found.preview) if self.found.preview else None

    @property
    def size_bytes(self) -> int:
        """Of the whole file."""
        return int(self.found.stamp.partition(" ")[0])

    @property
    def problem(self) -> Message:
        """Why it cannot be used, or not by its name."""
        return self.facts.problem or self.hidden

    @property
    def alias(self) -> str:
        """The name it was trained under; the file may have been renamed since."""
        return self.facts.alias

    @property
    def family(self) -> str:
        """The base it is for, a name in BASES; empty when nothing tells it."""
        return self.facts.base

    @property
    def rank(self) -> int:
        """The highest of its layers."""
        return self.facts.rank

    @property
    def trigger_words(self) -> tuple[str, ...]:
        """The words that call it."""
        return tuple(self.facts.trigger_words)

    @property
    def hashes(self) -> Hashes:
        """Those that are known without reading the file."""
        return self.row.hashes


T = TypeVar("T")
PATIENCE_S = 10  # how long a call waits for another process's


class Facts(NamedTuple):
    """What a file says of itself in its header, and others beside it."""

    alias: str = ""  # the name it was trained under
    title: str = ""  # the name it was published under
    base: str = ""  # a name in BASES; empty when nothing tells
    kinds: Sequence[str] = ()  # that of the most layers first
    rank: int = 0  # the highest
    trigger_words: Sequence[str] = ()
    is_activation_text: bool = False  # the words are its user's own, in the language of prompts
    top_tags: Mapping[str, int] = {}  # tag -> captions that had it, the most frequent first
    negative_text: str = ""
    preferred_weight: float | None = None
    said_hash: str = ""  # what it says its tensors come to
    problem: Message = Message("")  # why it cannot be used
    notes: Sequence[Message] = ()  # what beside it is not used

    @property
    def text(self) -> str:
        """As it is kept: JSON, so that thousands are told apart without a look at what they say."""
        messages = self.problem.to_json(), [note.to_json() for note in self.notes]
        return json.dumps((*self[:-2], *messages), separators=(",", ":"))

    @classmethod
    def of(cls, text: str) -> Facts:
        """What was kept as `text`."""
        *values, problem, notes = json.loads(text)
        return cls._make([*values, Message.from_json(problem), [*map(Message.from_json, notes)]])


class IndexRow(NamedTuple):
    """A file's facts, and its hashes once somebody has asked for them."""

    path: bytes  # as the system has it, which need not be text
    stamp: str
    beside: str  # the stamps of what lies beside the file
    facts: str
    sha256: str = ""
    body: str = ""
    legacy: str = ""

    @property
    def hashes(self) -> Hashes:
        """Those that are known."""
        return Hashes(*self[-3:])

    @property
    def checksum(self) -> int:
        """Of what was read from the file: a row that the disk has damaged has another."""
        return zlib.crc32("\n".join(self[1:4]).encode("utf-8", "surrogatepass"))


_CREATE = f"CREATE TABLE files (path BLOB PRIMARY KEY, {', '.join(IndexRow._fields[1:])}, checksum)"
# hashes outlive what changes beside a file only
_KEEP = (
    f"INSERT INTO files VALUES ({', '.join('?' * len(IndexRow._fields))}, ?) "
    "ON CONFLICT (path) DO UPDATE SET "
    + ", ".join(f"{name} = iif(stamp = excluded.stamp, {name}, '')" for name in Hashes._fields)
    + ", stamp = excluded.stamp, beside = excluded.beside, facts = excluded.facts"
    ", checksum = excluded.checksum"
)
_HASH = "UPDATE files SET sha256 = ?, body = ?, legacy = ? WHERE path = ? AND stamp = ?"
# Another state of the program may judge files otherwise: what it has kept is not asked
_PROGRAM = b"".join(
    path.read_bytes() for path in sorted(Path(__file__).parent.parent.rglob("*.py"))
)
_VERSION = zlib.crc32(_PROGRAM) & 0x7FFF_FFFF
# what says that the file itself is no good, and not the moment
_BROKEN = {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


class Index:
    """One file of rows. Safe from any process and thread; never an error."""

    def __init__(self, database: Path | None) -> None:
        """Without a file nothing is kept."""
        self.database = database

    def rows(self) -> dict[bytes, IndexRow]:
        """All that is known, by path. Rows that are damaged are forgotten."""

        def read(connection: sqlite3.Connection) -> dict[bytes, IndexRow]:
            fields = ", ".join(IndexRow._fields)
            rows = connection.execute(f"SELECT rowid, {fields}, checksum FROM files").fetchall()
            damaged = [(number,) for number, *row in rows if not _is_whole(row)]
            connection.executemany("DELETE FROM files WHERE rowid = ?", damaged)
            return {row[0]: IndexRow._make(row[:-1]) for _, *row in rows if _is_whole(row)}

        return self._do(read, {})

    def keep(self, rows: Collection[IndexRow], gone: Iterable[bytes] = ()) -> None:
        """Add rows or replace them, and forget the files that are gone."""

        def write(connection: sqlite3.Connection) -> None:
            connection.executemany(_KEEP, [(*row, row.checksum) for row in rows])
            connection.executemany("DELETE FROM files WHERE path = ?", [(path,) for path in gone])

        self._do(write, None)

    def keep_hashes(self, path: bytes, stamp: str, hashes: Hashes) -> None:
        """Add a file's hashes to its row, if that still speaks of the file that was hashed."""
        self._do(lambda connection: connection.execute(_HASH, (*hashes, path, stamp)), None)

    def _do(self, work: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        """`work` as one transaction; `otherwise` where there can be no index."""
        for _ in range(2 if self.database else 0):
            try:
                opened = sqlite3.connect(str(self.database), PATIENCE_S)
                with closing(opened) as connection, connection:
                    _begin(connection)
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


def _is_whole(row: Sequence[Any]) -> bool:
    """Whether a row of the table is as it was written."""
    is_typed = type(row[0]) is bytes and all(type(text) is str for text in row[1:-1])
    return is_typed and IndexRow._make(row[:-1]).checksum == row[-1]


def _begin(connection: sqlite3.Connection) -> None:
    """Be the only one who writes, and have the table of this version."""
    connection.isolation_level = None  # nothing begins or ends but where it is said
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("BEGIN IMMEDIATE")
    if connection.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
        connection.execute("DROP TABLE IF EXISTS files")
        connection.execute(_CREATE)
        connection.execute(f"PRAGMA user_version = {_VERSION}")
