"""Events of a run, and their format: one event, one line of JSON.

A long job is an iterator of these. `RunState` is the fold over them: the state of a run as a page,
a command or a test sees it, whatever process runs it and whether or not it is still alive.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from sdlora.append_only import Series
from sdlora.event_types import checks_of
from sdlora.messages import Message, readable

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Event:
    """Something happened. `at` is seconds since the epoch, for showing; order is the line order."""

    at: float = field(default_factory=time.time, kw_only=True)


@dataclass(frozen=True)
class Queued(Event):
    """Waiting for the device; `ahead` jobs come first."""

    ahead: int = 0


@dataclass(frozen=True)
class Started(Event):
    """Job began: `total` steps of `what`. `details` are facts worth showing, in order."""

    what: str
    total: int
    details: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress(Event):
    """A phase before or between steps, such as 'reading pictures' or 'loading the model'."""

    what: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class BytesReceived(Event):
    """Progress of a download in bytes; `total` is 0 and `seconds_left` None where the server does
    not say the size. `what` has the numbers in words."""

    what: str
    done: int
    total: int = 0
    bytes_per_s: float = 0.0
    seconds_left: float | None = None


@dataclass(frozen=True)
class Step(Event):
    """Step `step` of `total` is finished; `loss` is there when training read it."""

    step: int
    total: int
    loss: float | None = None
    learning_rate: float | None = None
    seconds_left: float | None = None


@dataclass(frozen=True)
class Resumed(Event):
    """Run resumes after `step`: its events of later steps are superseded."""

    step: int


@dataclass(frozen=True)
class Validated(Event):
    """Validation loss on the held-out pictures, always under the same noise; None: there are none.
    `best`: no earlier one was lower. `drift`: how far pictures of unrelated prompts are from the
    base model's, 0 to 1. Step 0 is before the first."""

    step: int
    loss: float | None = None
    best: bool = False
    drift: float | None = None


@dataclass(frozen=True)
class Checkpoint(Event):
    """All that is needed to go on from `step` is on disk, complete, in the folder `path`."""

    path: str
    step: int


@dataclass(frozen=True)
class SampleReady(Event):
    """A picture is on disk. `step` is the training step or the image's index in its batch."""

    path: str
    step: int
    prompt: str
    seed: int
    report: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Saved(Event):
    """A LoRA file is on disk, complete."""

    path: str
    step: int


@dataclass(frozen=True)
class Measured(Event):
    """Cost of a training, from some steps of it: seconds of a step of its largest size, and of all
    its `steps` without samples; peak memory in GiB, and the GiB that were free before."""

    device: str
    step_s: float
    training_s: float
    steps: int
    peak_gib: float
    free_gib: float


@dataclass(frozen=True)
class Captioned(Event):
    """A caption that a model has written for the picture of `path`'s name, not in that file yet.
    `was_file`: `before` stands there."""

    path: str
    before: str
    after: str
    was_file: bool = False


@dataclass(frozen=True)
class Warned(Event):
    """Something is not used as the user meant; `advice` says what to do."""

    message: str
    advice: str = ""


@dataclass(frozen=True)
class Done(Event):
    """Finished; `path` is the result."""

    path: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Stopped(Event):
    """Stopped on request; what was reached is kept at `path`."""

    path: str = ""
    step: int = 0


@dataclass(frozen=True)
class Paused(Event):
    """Job released the device on request, to resume from `step` later."""

    step: int = 0


@dataclass(frozen=True)
class Failed(Event):
    """Job ended with an error; `message` is its reason."""

    message: str
    advice: str = ""


EVENTS: dict[str, type[Event]] = {
    kind.__name__: kind
    for kind in (
        Queued, Started, Progress, BytesReceived, Resumed, Step, Validated, SampleReady, Saved,
        Checkpoint, Measured, Captioned, Warned, Done, Stopped, Paused, Failed,
    )
}  # fmt: skip


_CHECKS = {name: checks_of(kind) for name, kind in EVENTS.items()}


def to_line(event: Event, **more: Any) -> str:
    """Return one line of JSON without its newline, which UTF-8 can hold whatever the event holds.
    Messages are in it as neutral text, and under `templates` with their template and values."""
    row = {"event": type(event).__name__, **asdict(event), **more}
    filled = {n: v.to_json() for n, v in vars(event).items() if isinstance(v, Message) and v.values}
    line = json.dumps({**row, **({"templates": filled} if filled else {})}, ensure_ascii=False)
    return _SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", line)


def from_line(line: str | bytes) -> Event:
    """The event of a line; fields a newer version added are left out. ValueError: not an event, or
    one whose fields are of other types."""
    return from_row(parsed(line))


def parsed(line: str | bytes) -> dict[str, Any]:
    """The table that a line holds. ValueError: none."""
    try:
        row = json.loads(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(row, dict):
        raise ValueError("not an event")
    return row


_NUMBER = r"-?\d{1,17}(?:\.\d+)?(?:e[+-]?\d{1,2})?"
_STEP_LINE = re.compile(
    rf'\{{"event": "Step", "at": ({_NUMBER}), "step": (\d{{1,15}}), "total": (\d{{1,15}}), '
    rf'"loss": ({_NUMBER}), "learning_rate": ({_NUMBER}|null), "seconds_left": ({_NUMBER}|null)\}}'
)


def plain_step(line: str) -> Step | None:
    """Return the event of a line that is a step with its loss as `to_line` writes it, the same as
    `from_line` returns; None for every other line. Long runs consist of these: this is several
    times faster."""
    match = _STEP_LINE.fullmatch(line)
    if match is None:
        return None
    at, step, total, loss, rate, left = match.groups()
    return Step(
        int(step), int(total), float(loss),
        None if rate == "null" else float(rate),
        None if left == "null" else float(left),
        at=float(at),
    )  # fmt: skip


def from_row(row: dict[str, Any]) -> Event:
    """The event of a parsed line. ValueError: as `from_line`."""
    name = row.get("event")
    kind = EVENTS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ValueError("not an event")
    checks = _CHECKS[kind.__name__]
    values = {name: check(row[name]) for name, check in checks.items() if name in row}
    for part, value in values.items():
        if not isinstance(value, int | float) and value and part != "path":
            values[part] = _as_text(value)
    if "templates" in row:
        values |= _messages(row["templates"], values)
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"not an event: {error}") from None


def _as_text(value: Any) -> Any:
    """The same without lone surrogates, which no page and no terminal can show. A path keeps them:
    they stand for bytes of its name."""
    if isinstance(value, str):
        return value if value.isascii() else readable(value)
    if isinstance(value, list):
        return [_as_text(entry) for entry in value]
    if isinstance(value, dict):
        return {_as_text(name): _as_text(entry) for name, entry in value.items()}
    return value


def _messages(templates: Any, values: dict[str, Any]) -> dict[str, Message]:
    """Field -> message of the templates that can be filled; elsewhere the neutral text is used."""
    messages: dict[str, Message] = {}
    for name, row in templates.items() if isinstance(templates, dict) else ():
        try:
            if isinstance(values.get(name), str):
                messages[name] = Message.from_json(row)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            continue
    return messages


@dataclass(frozen=True)
class RunState:
    """State of a run: the fold of its events."""

    ENDED: ClassVar[frozenset[str]] = frozenset({"done", "stopped", "paused", "failed"})

    status: str = "queued"  # queued, loading, running, done, stopped, paused, failed
    task: str = ""
    step: int = 0
    total: int = 0
    phase: str = ""
    phase_done: int = 0
    phase_total: int = 0
    phase_in_bytes: bool = False  # done and total are bytes, and `phase` has them in words
    seconds_left: float | None = None
    ahead: int = 0
    losses: Sequence[tuple[int, float]] = Series()
    validations: Sequence[Validated] = Series()
    checkpoint: int | None = None  # the step of the last one; None: there is none
    samples: Sequence[SampleReady] = Series()
    measured: Measured | None = None
    captions: Sequence[Captioned] = Series()
    warnings: Sequence[Warned] = Series()
    details: dict[str, str] = field(default_factory=dict)
    result: str = ""
    result_step: int = 0  # whose the result is: an earlier one, where patience went back to it
    seconds: float = 0.0
    error: str = ""
    advice: str = ""
    started_at: float | None = None
    unreadable: int = 0  # lines that are no events, and were left out
    silent_s: float = 0.0  # since its process last gave a sign of life
    idle_s: float = 0.0  # since it last got anything done

    @property
    def ended(self) -> bool:
        """True when no more events will come, unless it is resumed."""
        return self.status in self.ENDED

    @property
    def resumable(self) -> bool:
        """True when it ended before its time, at a step that it can go on from."""
        return self.status in ("stopped", "paused", "failed") and self.checkpoint is not None

    @property
    def best(self) -> Validated | None:
        """The validation with the lowest loss; None: there is none."""
        return next((row for row in reversed(self.validations) if row.best), None)


Draft = dict[str, Any]  # the fields of a RunState while events are folded into it


def _append(draft: Draft, name: str, row: Any) -> None:
    rows = draft[name]
    draft[name] = (rows if isinstance(rows, Series) else Series(rows)).appended(row)


def _step(draft: Draft, event: Step) -> None:
    if event.loss is not None:
        _append(draft, "losses", (event.step, event.loss))
    draft.update(
        status="running", phase="", step=event.step, total=event.total,
        seconds_left=event.seconds_left,
    )  # fmt: skip


def _resumed(draft: Draft, event: Resumed) -> None:
    draft.update(
        step=event.step, error="", advice="",
        losses=Series(row for row in draft["losses"] if row[0] <= event.step),
        validations=Series(past for past in draft["validations"] if past.step <= event.step),
        samples=Series(sample for sample in draft["samples"] if sample.step <= event.step),
    )  # fmt: skip


def _progress(draft: Draft, event: Progress) -> None:
    status = "loading" if draft["started_at"] is None else "running"
    draft.update(
        status=status, phase=event.what, phase_done=event.done, phase_total=event.total,
        phase_in_bytes=False,
    )  # fmt: skip


def _bytes_received(draft: Draft, event: BytesReceived) -> None:
    draft.update(
        status="running", phase=event.what, phase_done=event.done, phase_total=event.total,
        phase_in_bytes=True, seconds_left=event.seconds_left,
    )  # fmt: skip


_FOLDS: dict[type[Event], Callable[[Draft, Any], None]] = {
    Queued: lambda d, e: d.update(
        status="queued", ahead=e.ahead, error="", advice="", warnings=Series(), started_at=None
    ),
    Resumed: _resumed,
    Validated: lambda d, e: _append(d, "validations", e),
    Checkpoint: lambda d, e: d.update(checkpoint=e.step),
    Started: lambda d, e: d.update(
        status="running", task=e.what, total=e.total, details=e.details, phase="", started_at=e.at
    ),
    Progress: _progress,
    BytesReceived: _bytes_received,
    Step: _step,
    SampleReady: lambda d, e: _append(d, "samples", e),
    Saved: lambda d, e: d.update(result=e.path, result_step=e.step),
    Measured: lambda d, e: d.update(measured=e),
    Captioned: lambda d, e: _append(d, "captions", e),
    Warned: lambda d, e: _append(d, "warnings", e),
    Done: lambda d, e: d.update(
        status="done", phase="", result=e.path or d["result"], seconds=e.seconds, seconds_left=0.0
    ),
    Stopped: lambda d, e: d.update(status="stopped", phase="", result=e.path or d["result"]),
    Paused: lambda d, e: d.update(status="paused", phase=""),
    Failed: lambda d, e: d.update(status="failed", phase="", error=e.message, advice=e.advice),
}


def fold(events: Iterable[Event], state: RunState | None = None) -> RunState:
    """The state after `events`, starting from `state`; in time linear in the events."""
    draft = dict(vars(state or RunState()))
    for event in events:
        _FOLDS[type(event)](draft, event)
    return RunState(**draft)
