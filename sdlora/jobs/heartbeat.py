"""The heartbeat of a process: a small file that a thread of its own rewrites every few seconds.

A process that beats and gets nothing done may be at a long step: that is shown, and ends nothing.
One that does not beat cannot run at all: it is stopped, or stuck in the system. Silence is counted
by whoever watches, look by look, and no gap between two looks counts as more than one beat: time in
which the machine sleeps, or in which a slow disk holds up the watcher too, is not held against it.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from sdlora.jobs.processes import identity


@dataclass(frozen=True)
class Times:
    """Seconds: between beats; of silence after which a process does not answer, and before its
    first beat, while it is loaded; from the wish to end it to SIGTERM, and from there to SIGKILL.
    """

    beat: float = 5.0
    silence: float = 60.0
    start: float = 120.0
    ask_first: float = 3.0
    terminate: float = 10.0


TIMES = Times()
IDLE_SHOWN_S = 120.0  # without progress, from where on it is shown
SILENCE_SHOWN_S = 20.0


@dataclass(frozen=True)
class Beat:
    """One reading of the file. Times are of the monotonic clock, which all processes share."""

    process: str
    count: int
    progress: int
    at: float
    progress_at: float


class Heart(AbstractContextManager["Heart"]):
    """Beats from a thread while it is open. `advance` counts what was got done."""

    def __init__(self, path: Path, beat_s: float = TIMES.beat) -> None:
        self.path, self.beat_s = path, beat_s
        self.process = identity(os.getpid()) or ""
        self.progress, self.progress_at = 0, time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def advance(self) -> None:
        """Something was done."""
        self.progress += 1
        self.progress_at = time.monotonic()

    def __enter__(self) -> Heart:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def _beat(self) -> None:
        count = 0
        while True:
            count += 1
            self._write(count)
            if self._ended.wait(self.beat_s):
                return

    def _write(self, count: int) -> None:
        beat = Beat(self.process, count, self.progress, time.monotonic(), self.progress_at)
        line = json.dumps(vars(beat)).ljust(200).encode()
        # In place and not flushed: it must not wait for a busy disk, nor need room on a full one.
        with contextlib.suppress(OSError):
            handle = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o666)
            try:
                os.write(handle, line)
            except OSError:  # on some file systems writing in place needs room too
                os.utime(self.path)
            finally:
                os.close(handle)


def read_beat(path: Path) -> Beat | None:
    """The last beat; None: there is none that can be read."""
    try:
        row = json.loads(path.read_bytes())
        return Beat(
            str(row["process"]), int(row["count"]), int(row["progress"]),
            float(row["at"]), float(row["progress_at"]),
        )  # fmt: skip
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


class Watch:
    """Someone else's heartbeat, looked at again and again."""

    def __init__(
        self, path: Path, times: Times = TIMES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.path, self.times, self.clock = path, times, clock
        self.silent_s = self.idle_s = 0.0
        self._seen = read_beat(path)
        self._looked_at = clock()
        self._touched_at = _touched_at(path)
        self._has_begun = self._touched_at > 0

    def look(self) -> bool:
        """Look once; true while it answers."""
        now, beat, touched_at = self.clock(), read_beat(self.path), _touched_at(self.path)
        gap = min(max(now - self._looked_at, 0.0), self.times.beat)
        before, self._seen, self._looked_at = self._seen, beat, now
        is_silent = _key(beat) == _key(before) and touched_at == self._touched_at
        self._touched_at = touched_at
        self.silent_s = self.silent_s + gap if is_silent else 0.0
        stands_still = beat and before and beat.progress == before.progress
        self.idle_s = self.idle_s + gap if stands_still else 0.0
        self._has_begun = self._has_begun or touched_at > 0
        return self.silent_s < (self.times.silence if self._has_begun else self.times.start)


def _touched_at(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except (OSError, ValueError):
        return 0


def _key(beat: Beat | None) -> tuple[str, int] | None:
    return (beat.process, beat.count) if beat else None


def silence_and_idleness(path: Path, process: str) -> tuple[float, float]:
    """Seconds since the last beat of `process` and, when it was written, since its last progress;
    zeros where nothing is known. From one look, so fit to be shown, not to end a process."""
    beat = read_beat(path)
    if beat is None or beat.process != process:
        return 0.0, 0.0
    return max(0.0, time.monotonic() - beat.at), max(0.0, beat.at - beat.progress_at)
