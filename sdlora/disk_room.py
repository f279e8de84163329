"""Room on the disk: for what shall be written, checked before; waiting for room on
a full disk, with what shall be written kept in memory."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TypeVar

from sdlora.errors import RunError
from sdlora.events import Event, Progress, Warned
from sdlora.files import DISK_FULL
from sdlora.messages import Message, Setting, size_in_words

DISK_RESERVE = 256 * 2**20  # bytes that are left free
LOOK_EVERY_S = 2.0
ResultT = TypeVar("ResultT")


def free_bytes(folder: Path) -> int:
    """Return the free bytes on the disk of a folder, which need not exist yet."""
    return shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free


def check_output_room(folder: Path, needed: int) -> None:
    """Check that the disk of `folder` has room for an output of so many bytes, before anything is
    written. RunError: it has not."""
    free = free_bytes(folder)
    if needed + DISK_RESERVE > free:
        raise RunError(
            "this needs {needed}, and the disk of {folder} has {free} free; make room, {reserve} "
            "more than that, or give a path on another disk as {setting}",
            needed=size_in_words(needed), folder=folder, free=size_in_words(free),
            reserve=size_in_words(DISK_RESERVE), setting=Setting("output"),
        )  # fmt: skip


def written_when_room(
    write: Callable[[], ResultT],
    problem: Callable[[OSError], Message],
    advice: str,
    gives_up: Callable[[], bool],
) -> Generator[Event, None, ResultT]:
    """Return the result of `write`; while the disk is full, try again every `LOOK_EVERY_S`.

    RunError, with the `problem`: another error than a full disk, or nobody waits any more.
    """
    warned = False
    while True:
        try:
            return write()
        except OSError as error:
            message = problem(error)
            if error.errno not in DISK_FULL or gives_up():
                raise RunError(message) from None
        if not warned:
            warned = True
            yield Warned(message, advice)
            yield Progress("waiting for room on the disk")
        time.sleep(LOOK_EVERY_S)
