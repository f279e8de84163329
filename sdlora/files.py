"""Atomic writing of files and folders: on disk whole or not at all, and never over a user's
file."""

from __future__ import annotations

import errno
import glob
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)  # of an OSError: there is no room, or no more allowed


def write_atomically(path: Path, write: Callable[[Path], object]) -> Path:
    """Write a file with `write(temporary)` beside `path`, flush it, then rename it. An existing
    file is replaced."""
    with _written(path, write) as temporary:
        os.replace(temporary, path)
    return path


def write_to_free_path(path: Path, write: Callable[[Path], object]) -> Path:
    """Write a file as `write_atomically` does, but never over another file, whatever else writes at
    the same time: it gets the name of `path`, or `name-2`, `name-3` ...; returns its path."""
    with _written(path, write) as temporary:
        candidate = free_path(path)
        while not claim_name(temporary, candidate):
            candidate = free_path(path)
    return candidate


def write_if_absent(path: Path, write: Callable[[Path], object]) -> Path:
    """Write a file as `write_atomically` does, but never over another file. FileExistsError: there
    is one of that name."""
    with _written(path, write) as temporary:
        if not claim_name(temporary, path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    return path


@contextmanager
def _written(path: Path, write: Callable[[Path], object]) -> Iterator[Path]:
    """A temporary file beside `path`, written and flushed, with the permissions that the user's
    umask gives; the folder is flushed once the body has given it a name."""
    make_folder(path.parent)
    temporary = path.with_name(f"{_temporary_start(path)}{secrets.token_hex(4)}.part{path.suffix}")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        mode = stat.S_IMODE(temporary.stat().st_mode)
        write(temporary)
        temporary.chmod(mode)  # some writers put a file of their own in its place
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        yield temporary
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def claim_name(temporary: Path, path: Path) -> bool:
    """Give a file that is written and flushed its name, on the same disk. False: another file has
    it."""
    try:
        try:
            os.link(temporary, path)
            temporary.unlink()  # before the folder is flushed: a power loss must not bring it back
        except FileExistsError:
            raise
        except OSError:  # a disk without links: an empty file holds the name for the moment
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            os.replace(temporary, path)
    except FileExistsError:
        return False
    return True


def _temporary_start(path: Path) -> str:
    """Return the beginning of the names of temporary files of `path`, short enough for every
    disk."""
    return f".{path.stem.encode('utf-8', 'surrogateescape')[:120].decode('utf-8', 'ignore')}-"


def remove_stale_temp(path: Path) -> None:
    """Delete temporary files that killed writers of `path` have left beside it."""
    for left in path.parent.glob(
        f"{glob.escape(_temporary_start(path))}????????.part{path.suffix}"
    ):
        left.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make `folder` and its parents, and flush their names to the disk: a file flushed in a folder
    is lost with it where the folder's own name was not."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Flush the names in `folder` to the disk; Windows has no such call, and needs none."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def free_path(path: Path) -> Path:
    """`path`, or `name-2`, `name-3` ... beside it: the first that does not exist."""
    number, fresh = 2, path
    while os.path.lexists(fresh):  # a link to nowhere holds its name as well
        fresh = path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1
    return fresh
