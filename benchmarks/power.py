"""What a disk may hold after a power loss, worked out from what a program did to it.

A program's calls are watched, and at each of them it is noted what became of its folder. Of this
record every beginning is a moment at which the power may fail. Then only what was flushed is sure.
Of a file that was not, each block of 4 KiB may be the old one, the new one or zeros, and its length
either; of the names in a folder that was not, the last changes may be missing, in one folder more
of them than in another. That is more than ext4 and xfs let happen, which keep the order of changes
over all folders; it is what POSIX lets happen, but for changes within one folder, whose order every
journal keeps.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

BLOCK = 4096
WATCHED = (
    *("fsync", "fdatasync", "rename", "replace", "unlink", "remove"),
    *("mkdir", "rmdir", "link", "truncate", "ftruncate"),
)
ROOT = 0  # the number of the folder that is watched
Tree = Mapping[str, bytes | None]  # path below the root -> content; None: a folder


@dataclass(frozen=True)
class Named:
    """Names in a folder that change at once: what they mean from now on; None: nothing."""

    folder: int
    entries: Mapping[str, int | None]


@dataclass(frozen=True)
class Filled:
    """What a file holds from now on."""

    file: int
    content: bytes


@dataclass(frozen=True)
class Flushed:
    """A file or a folder that is on the disk as it was at this moment."""

    it: int


Deed = Named | Filled | Flushed


@dataclass
class Record:
    """What a program did to the folder `root`, as far as it can be told between its calls."""

    root: Path
    unseen: str = "\0"  # names that begin so are not looked at
    deeds: list[Deed] = field(default_factory=list)
    begun: int = 0  # so many of them only say what was there before
    folders: set[int] = field(default_factory=lambda: {ROOT})
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(ROOT + 1))
    known: dict[int, int] = field(default_factory=dict)  # inode -> number, of what is there
    names: dict[int, dict[str, int]] = field(default_factory=dict)
    contents: dict[int, bytes] = field(default_factory=dict)

    def look(self) -> None:
        """Note what has changed since the last look."""
        seen = {os.stat(self.root).st_ino: ROOT}
        self._look_into(ROOT, self.root, seen)
        self.known = seen

    def _look_into(self, number: int, folder: Path, seen: dict[int, int]) -> None:
        now, files, folders = {}, [], []
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if entry.name.startswith(self.unseen):
                continue
            inode = entry.inode()
            its = self.known.get(inode)
            now[entry.name] = seen[inode] = next(self.numbers) if its is None else its
            (folders if entry.is_dir() else files).append((seen[inode], Path(entry.path)))
        self._note_names(number, now)
        for its, path in files:
            content = path.read_bytes()
            if content != self.contents.get(its, b""):
                self.deeds.append(Filled(its, content))
            self.contents[its] = content
        for its, path in folders:
            self.folders.add(its)
            self._look_into(its, path, seen)

    def _note_names(self, number: int, now: dict[str, int]) -> None:
        then = self.names.get(number, {})
        fresh = {name: its for name, its in now.items() if its not in then.values()}
        for name, its in fresh.items():  # made by themselves, one after the other
            if name not in then:
                self.deeds.append(Named(number, {name: its}))
                then = {**then, name: its}
        changed: dict[str, int | None] = {n: i for n, i in now.items() if then.get(n) != i}
        changed |= dict.fromkeys(then.keys() - now.keys())
        if changed:
            self.deeds.append(Named(number, changed))
        self.names[number] = now

    def change(self, content: Callable[[bytes], bytes]) -> None:
        """Have every file hold what `content` makes of what it held."""
        self.deeds = [
            Filled(deed.file, content(deed.content)) if isinstance(deed, Filled) else deed
            for deed in self.deeds
        ]

    def flush(self, handle: int) -> None:
        """Note that what `handle` is open on was flushed."""
        its = self.known.get(os.fstat(handle).st_ino)
        if its is not None:
            self.deeds.append(Flushed(its))


@contextmanager
def recorded(root: Path, unseen: str = "\0") -> Iterator[Record]:
    """The record of what this process does to the folder `root`, but for names that begin with
    `unseen`; what is there before is sure."""
    record = Record(root, unseen)
    record.look()
    record.deeds += [Flushed(its) for its in (ROOT, *record.known.values())]
    record.begun = len(record.deeds)

    def watched(real: Callable[..., Any], syncs: bool, *given: Any, **named: Any) -> Any:
        record.look()
        try:
            return real(*given, **named)
        finally:
            record.flush(given[0]) if syncs else record.look()

    before = {name: getattr(os, name) for name in WATCHED}
    for name, real in before.items():
        setattr(os, name, partial(watched, real, name in ("fsync", "fdatasync")))
    try:
        yield record
    finally:
        for name, real in before.items():
            setattr(os, name, real)
        record.look()


@dataclass(frozen=True)
class Loss:
    """What of that which was not flushed is lost: of `pending` changes of names how many are kept,
    and what a file holds that held `old` and was given each of `new` in turn."""

    keep: Callable[[random.Random, int], int]
    hold: Callable[[random.Random, bytes, list[bytes]], bytes]


def _torn(rng: random.Random, old: bytes, new: list[bytes]) -> bytes:
    """Some blocks of the old file, some of a newer one, zeros where there were none."""
    newer = rng.choice(new)
    ends = [len(old), len(newer), rng.randrange(max(len(old), len(newer)) + 1) // BLOCK * BLOCK]
    end = rng.choice(ends)
    blocks = [rng.choice((old, newer))[at : at + BLOCK] for at in range(0, end, BLOCK)]
    whole = b"".join(block.ljust(BLOCK, b"\0") for block in blocks)
    return whole[:end]


LOSSES = {
    "nothing": Loss(lambda _, pending: pending, lambda _, old, new: new[-1]),
    "all": Loss(lambda _, pending: 0, lambda _, old, new: old),
    "what was written": Loss(lambda _, pending: pending, lambda _, old, new: old),
    "blocks": Loss(
        lambda _, pending: pending,
        lambda _, old, new: old[: len(new[-1])].ljust(len(new[-1]), b"\0"),
    ),
    "names": Loss(lambda _, pending: 0, lambda _, old, new: new[-1]),
    "some": Loss(lambda rng, pending: rng.randint(0, pending), _torn),
}


def tree_after(record: Record, moment: int, loss: Loss, rng: random.Random) -> Tree:
    """What the disk holds when the power failed after so many deeds."""
    done = list(enumerate(record.deeds[:moment]))
    sure = {deed.it: at for at, deed in done if isinstance(deed, Flushed)}
    named: dict[int, list[tuple[int, Named]]] = defaultdict(list)
    filled: dict[int, list[tuple[int, Filled]]] = defaultdict(list)
    for at, deed in done:
        if isinstance(deed, Named):
            named[deed.folder].append((at, deed))
        elif isinstance(deed, Filled):
            filled[deed.file].append((at, deed))

    def held(file: int) -> bytes:
        flushed = sure.get(file, -1)
        old = [deed.content for at, deed in filled[file] if at < flushed]
        new = [deed.content for at, deed in filled[file] if at > flushed]
        last = old[-1] if old else b""
        return loss.hold(rng, last, new) if new else last

    tree: dict[str, bytes | None] = {}

    def walk(folder: int, above: str) -> None:
        changes, flushed = named[folder], sure.get(folder, -1)
        pending = sum(at > flushed for at, _ in changes)
        kept = len(changes) - pending + loss.keep(rng, pending)
        entries: dict[str, int | None] = {}
        for _, deed in changes[:kept]:
            entries |= deed.entries
        for name, its in sorted(entries.items()):
            if its in record.folders:
                tree[above + name] = None
                walk(its, f"{above}{name}/")
            elif its is not None:
                tree[above + name] = held(its)

    walk(ROOT, "")
    return tree


def trees(
    record: Record, most: int, every: int = 1, seed: int = 0
) -> Iterator[tuple[int, str, Tree]]:
    """(moment, what is lost, what the disk holds), each tree once at a moment, `most` in all, of
    `every` so many moments one: those that follow a rule, then chance, as often at each moment."""
    rng, seen = random.Random(seed), set()
    rules = [name for name in LOSSES if name != "some"]
    moments = range(record.begun, len(record.deeds) + 1, every)
    ways = [(moment, name) for name in rules for moment in moments]
    ways += [(moment, "some") for _ in range(-(-4 * most // len(moments))) for moment in moments]
    for moment, name in ways:
        tree = tree_after(record, moment, LOSSES[name], rng)
        digest = hashlib.sha256(repr((moment, sorted(tree.items()))).encode()).digest()
        if digest not in seen and len(seen) < most:
            seen.add(digest)
            yield moment, name, tree


def rebuild(tree: Tree, root: Path) -> None:
    """Make what the disk held, in `root`, which must not be there."""
    root.mkdir(parents=True)
    for name, content in sorted(tree.items()):  # a folder comes before what is in it
        if content is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(content)
