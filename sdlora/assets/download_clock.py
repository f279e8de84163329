"""Time in a download: waiting that a request to stop ends, retries, and the rate of a transfer."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from sdlora.assets.http_errors import MAX_WAIT_S
from sdlora.errors import DownloadError
from sdlora.events import Event, Progress
from sdlora.messages import Message

ResultT = TypeVar("ResultT")
DELAYS_S = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # between tries that bring nothing
_SLICE_S = 0.5  # in which a request to stop is noticed


class DownloadInterrupted(Exception):
    """The user asked to stop; what is on the disk stays."""


@dataclass
class DownloadClock:
    """The clock, and the request to stop; tests replace both."""

    should_stop: Callable[[], bool] = lambda: False
    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def check_stop(self) -> None:
        """Raise DownloadInterrupted if a stop is requested."""
        if self.should_stop():
            raise DownloadInterrupted

    def wait(self, seconds: float) -> None:
        """Wait. DownloadInterrupted: a stop is requested meanwhile."""
        left = seconds
        while left > 0:
            self.check_stop()
            self.sleep(min(left, _SLICE_S))
            left -= _SLICE_S
        self.check_stop()


@dataclass
class Retries:
    """Waits between tries: longer after each that brings nothing, as long as the server asks."""

    clock: DownloadClock
    failures: int = 0

    def wait_after(
        self, error: DownloadError, progressed: bool = False, begun: bool = False
    ) -> Iterator[Event]:
        """Wait before the next try; raise the error where there is none. `begun`: something has
        come already."""
        self.failures = 0 if progressed else self.failures
        if error.refused and not begun:
            raise error
        if not error.transient or self.failures >= len(DELAYS_S) or error.wait_s > MAX_WAIT_S:
            raise error
        seconds = max(DELAYS_S[self.failures], error.wait_s)
        self.failures += 1
        template = "{why}; trying again in {seconds:.0f} s"
        yield Progress(Message(template, why=error, seconds=seconds))
        self.clock.wait(seconds)


def with_retries(
    act: Callable[[], ResultT], clock: DownloadClock
) -> Generator[Event, None, ResultT]:
    """Return the result of `act`, tried again where that may help. DownloadError: it did not."""
    retries = Retries(clock)
    while True:
        clock.check_stop()
        try:
            return act()
        except DownloadError as error:
            yield from retries.wait_after(error)


@dataclass
class TransferRate:
    """Smoothed bytes per second."""

    clock: DownloadClock
    bytes_per_s: float = 0.0
    _bytes: int = 0
    _at: float = field(init=False)

    def __post_init__(self) -> None:
        self._at = self.clock.now()

    def measured(self, count: int, every_s: float) -> bool:
        """Count bytes; True where `every_s` has passed since the last measurement."""
        self._bytes += count
        passed = self.clock.now() - self._at
        if passed < every_s:
            return False
        fresh = self._bytes / passed
        self.bytes_per_s = 0.7 * self.bytes_per_s + 0.3 * fresh if self.bytes_per_s else fresh
        self._bytes, self._at = 0, self.clock.now()
        return True

    def seconds_left(self, left: int) -> float | None:
        """Return the time for `left` bytes; None: not measured yet."""
        return left / self.bytes_per_s if self.bytes_per_s else None
