"""Sizes on the disk in words; waiting for room on a full one, with what shall be written kept in
memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import TypeVar

from sdlora.errors import RunError
from sdlora.events import Event, Progress, Warned
from sdlora.files import DISK_FULL
from sdlora.messages import Message

LOOK_EVERY_S = 2.0
ResultT = TypeVar("ResultT")


def in_words(size: int) -> str:
    """'0.4 MiB', '12.0 GiB'."""
    return f"{size / 2**20:.1f} MiB" if size < 2**30 else f"{size / 2**30:.1f} GiB"


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
