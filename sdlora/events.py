"""What a run can say, and how it is written: one event, one line of JSON.

A long job is an iterator of these. `RunState` is the fold over them: all that a page, a command or
a test needs to know about a run, whoever runs it and whether or not it is still alive.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar

from sdlora.messages import Message, printable


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
    """Work began: `total` steps of `what`. `details` are facts worth showing, in order."""

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
class Step(Event):
    """Step `step` of `total` is finished; `loss` is there when training read it."""

    step: int
    total: int
    loss: float | None = None
    learning_rate: float | None = None
    seconds_left: float | None = None


@dataclass(frozen=True)
class Resumed(Event):
    """A run goes on after `step`: what it said of later steps is done anew."""

    step: int


@dataclass(frozen=True)
class Validated(Event):
    """The loss on pictures held out of the training, always under the same noise; None: there are
    none. `best`: no earlier one was lower. `drift`: how far pictures of unrelated prompts are from
    the base model's, 0 to 1. Step 0 is before the first."""

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
    """What a training takes, from some steps of it: seconds of a step of its largest size, and of
    all its `steps` without samples; GiB at most, and those that were free before."""

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
    """Let go of the device on request, to go on from `step` later."""

    step: int = 0


@dataclass(frozen=True)
class Failed(Event):
    """It ended with an error that names its reason."""

    message: str
    advice: str = ""


EVENTS: dict[str, type[Event]] = {
    kind.__name__: kind
    for kind in (
        Queued, Started, Progress, Resumed, Step, Validated, SampleReady, Saved, Checkpoint,
        Measured, Captioned, Warned, Done, Stopped, Paused, Failed,
    )
}  # fmt: skip


def to_line(event: Event) -> str:
    """One line of JSON without its newline. Messages are there as neutral text, and under
    `templates` as what they are filled from."""
    row = {"event": type(event).__name__, **asdict(event)}
    filled = {n: v.to_json() for n, v in vars(event).items() if isinstance(v, Message) and v.values}
    row |= {"templates": filled} if filled else {}
    return printable(json.dumps(row, ensure_ascii=False))


def from_line(line: str) -> Event:
    """The event of a line; fields a newer version added are left out. ValueError: not an event."""
    said = json.loads(line)
    kind = EVENTS.get(said.pop("event", "")) if isinstance(said, dict) else None
    if kind is None:
        raise ValueError(f"not an event: {line[:80]}")
    known = {f.name for f in fields(kind)}
    said |= {name: Message.from_json(row) for name, row in said.pop("templates", {}).items()}
    return kind(**{key: value for key, value in said.items() if key in known})


@dataclass(frozen=True)
class RunState:
    """All that is known of a run: the fold of its events."""

    ENDED: ClassVar[frozenset[str]] = frozenset({"done", "stopped", "paused", "failed"})

    status: str = "queued"  # queued, loading, running, done, stopped, paused, failed
    what: str = ""
    step: int = 0
    total: int = 0
    phase: str = ""
    phase_done: int = 0
    phase_total: int = 0
    seconds_left: float | None = None
    ahead: int = 0
    losses: tuple[tuple[int, float], ...] = ()
    validations: tuple[Validated, ...] = ()
    checkpoint: int | None = None  # the step of the last one; None: there is none
    samples: tuple[SampleReady, ...] = ()
    measured: Measured | None = None
    captions: tuple[Captioned, ...] = ()
    warnings: tuple[Warned, ...] = ()
    details: dict[str, str] = field(default_factory=dict)
    result: str = ""
    result_step: int = 0  # whose the result is: an earlier one, where patience went back to it
    seconds: float = 0.0
    error: str = ""
    advice: str = ""
    started_at: float | None = None

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
        return next((one for one in reversed(self.validations) if one.best), None)


def _step(state: RunState, event: Step) -> RunState:
    losses = state.losses
    if event.loss is not None:
        losses = (*losses, (event.step, event.loss))
    return replace(
        state, status="running", phase="", step=event.step, total=event.total,
        losses=losses, seconds_left=event.seconds_left,
    )  # fmt: skip


def _resumed(state: RunState, event: Resumed) -> RunState:
    return replace(
        state, step=event.step, error="", advice="",
        losses=tuple(row for row in state.losses if row[0] <= event.step),
        validations=tuple(one for one in state.validations if one.step <= event.step),
        samples=tuple(one for one in state.samples if one.step <= event.step),
    )  # fmt: skip


_FOLDS: dict[type[Event], Any] = {
    Queued: lambda s, e: replace(
        s, status="queued", ahead=e.ahead, error="", advice="", warnings=(), started_at=None
    ),
    Resumed: _resumed,
    Validated: lambda s, e: replace(s, validations=(*s.validations, e)),
    Checkpoint: lambda s, e: replace(s, checkpoint=e.step),
    Started: lambda s, e: replace(
        s,
        status="running",
        what=e.what,
        total=e.total,
        details=e.details,
        phase="",
        started_at=e.at,
    ),
    Progress: lambda s, e: replace(
        s,
        status="loading" if s.started_at is None else "running",
        phase=e.what,
        phase_done=e.done,
        phase_total=e.total,
    ),
    Step: _step,
    SampleReady: lambda s, e: replace(s, samples=(*s.samples, e)),
    Saved: lambda s, e: replace(s, result=e.path, result_step=e.step),
    Measured: lambda s, e: replace(s, measured=e),
    Captioned: lambda s, e: replace(s, captions=(*s.captions, e)),
    Warned: lambda s, e: replace(s, warnings=(*s.warnings, e)),
    Done: lambda s, e: replace(
        s, status="done", phase="", result=e.path or s.result, seconds=e.seconds, seconds_left=0.0
    ),
    Stopped: lambda s, e: replace(s, status="stopped", phase="", result=e.path or s.result),
    Paused: lambda s, e: replace(s, status="paused", phase=""),
    Failed: lambda s, e: replace(s, status="failed", phase="", error=e.message, advice=e.advice),
}


def fold(events: Iterable[Event], state: RunState | None = None) -> RunState:
    """The state after `events`, starting from `state`."""
    state = state or RunState()
    for event in events:
        state = _FOLDS[type(event)](state, event)
    return state
