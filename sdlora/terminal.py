"""Terminal output of a run: events become lines; the first Ctrl+C asks the run to stop."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

from sdlora.events import (
    BytesReceived,
    Event,
    Failed,
    Progress,
    RunState,
    Started,
    Step,
    Warned,
    fold,
    to_line,
)
from sdlora.messages import COMMAND, as_message


class Printer:
    """Shows events: a line that moves on a terminal, plain lines elsewhere, JSON on request."""

    def __init__(self, as_json: bool) -> None:
        self.as_json, self.moving, self.last_step_at = as_json, sys.stderr.isatty(), 0.0

    def show(self, event: Event) -> None:
        """Print one event; where the lines go to a full disk, they are lost, and not the run."""
        with contextlib.suppress(OSError):
            self._show(event)

    def _show(self, event: Event) -> None:
        if self.as_json:
            print(to_line(event), flush=True)
        elif isinstance(event, Warned | Failed):
            sign = "warning" if isinstance(event, Warned) else "error"
            message, advice = (as_message(t).on(COMMAND) for t in (event.message, event.advice))
            self._line(f"{sign}: {message}{f' ({advice})' if advice else ''}")
        elif isinstance(event, Progress | Step | BytesReceived):
            self._moving(
                _progress_text(event), whole=isinstance(event, Step) and event.step == event.total
            )
        elif isinstance(event, Started):
            self._line("\n".join([event.what, *(f"  {k}: {v}" for k, v in event.details.items())]))

    def _moving(self, text: str, whole: bool) -> None:
        if self.moving:
            print(f"\r\033[K{text}", end="\n" if whole else "", file=sys.stderr, flush=True)
        elif whole or time.monotonic() - self.last_step_at > 5:
            self.last_step_at = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    def _line(self, text: str) -> None:
        start = "\r\033[K" if self.moving else ""
        print(f"{start}{text}", file=sys.stderr, flush=True)


def _progress_text(event: Progress | Step | BytesReceived) -> str:
    if isinstance(event, Progress):
        return f"{event.what} {event.done}/{event.total}" if event.total else f"{event.what} …"
    left = f", {clock(event.seconds_left)} left" if event.seconds_left is not None else ""
    if isinstance(event, BytesReceived):
        return f"{event.what}{left}"
    loss = f", loss {event.loss:.4f}" if event.loss is not None else ""
    return f"step {event.step} of {event.total}{loss}{left}"


def clock(seconds: float) -> str:
    """'45 s', '3 min 20 s', '2 h 05 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def follow(events: Iterable[Event], printer: Printer) -> RunState:
    """Print all events; the state they fold to."""
    state = RunState()
    for event in events:
        printer.show(event)
        state = fold([event], state)
    return state


class OnInterrupt(AbstractContextManager[None]):
    """Context in which the first Ctrl+C calls `ask`; a second one ends the process as usual."""

    def __init__(self, ask: Callable[[], None]) -> None:
        self.ask = ask

    def _first(self, *_: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("\nstopping after this step; press Ctrl+C again to leave at once", file=sys.stderr)
        self.ask()

    def __enter__(self) -> None:
        self.before = signal.signal(signal.SIGINT, self._first)

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self.before)
