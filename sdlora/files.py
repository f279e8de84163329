"""Files and folders that are on disk whole or not at all, and never over one of the user's."""

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


def publish(path: Path, write: Callable[[Path], object]) -> Path:
    """Write a file with `write(temporary)` beside `path`, flush it, then give it its name. A file
    that has the name already is replaced."""
    with _written(path, write) as temporary:
        os.replace(temporary, path)
    return path


def publish_new(path: Path, write: Callable[[Path], object]) -> Path:
    """`publish`, but never over another file, whoever writes at the same time: the file gets the
    name of `path`, or `name-2`, `name-3` ...; returns the one that it got."""
    with _written(path, write) as temporary:
        candidate = free_path(path)
        while not _take_name(temporary, candidate):
            candidate = free_path(path)
    return candidate


def publish_exactly(path: Path, write: Callable[[Path], object]) -> Path:
    """`publish`, but never over another file. FileExistsError: there is one of that name."""
    with _written(path, write) as temporary:
        if not _take_name(temporary, path):
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


def _take_name(temporary: Path, path: Path) -> bool:
    """Give a written file its name. False: another file has it."""
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
    """How the names of temporary files of `path` begin, short enough for every disk."""
    return f".{path.stem.encode('utf-8', 'surrogateescape')[:120].decode('utf-8', 'ignore')}-"


def sweep(path: Path) -> None:
    """Take away what writers of `path` that were killed have left beside it."""
    for left in path.parent.glob(
        f"{glob.escape(_temporary_start(path))}????????.part{path.suffix}"
    ):
        left.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make `folder` and those that it lies in, and have the disk know their names: what is flushed
    in a folder is lost with it where its own name was not."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Have the disk know the names in `folder`; Windows has no such call, and needs none."""
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
