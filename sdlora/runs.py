"""The run folder: `settings.json  events.jsonl  log.txt  samples/  lora/  state/  stop  pid`.

It is the only thing the trainer, the worker, the command and the page share. Who can read the
folder can follow a run; who can create the file `stop` in it can end it. What a training needs to
go on lies in `state/`. Every other piece of work has such a folder too (`sdlora.kinds`); the
pictures of a request lie in `outputs/`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from sdlora.checked import Settings
from sdlora.errors import BusyError, RunError, SdloraError, SettingsError, did_you_mean
from sdlora.events import Event, Failed, Queued, RunState, Stopped, fold, from_line, to_line
from sdlora.jobs import Queue
from sdlora.kinds import KINDS, kind_of
from sdlora.messages import Message, PerSurface, Setting
from sdlora.processes import alive, identity
from sdlora.requests import REQUESTS, Request, answered, ask, asked
from sdlora.workspace import Workspace, make_folder, publish, sync_folder

SETTINGS_FILE, EVENTS_FILE, LOG_FILE = "settings.json", "events.jsonl", "log.txt"
PID_FILE = "pid"
_OF_A_DEVICE = re.compile(r"(CUDA|HIP|cuDNN|MPS|NCCL)\b.*\b(error|failed)", re.IGNORECASE)
_NOW = "now"  # what the file `stop` says when the run shall not even finish its step


def start(settings: Settings, workspace: Workspace, queue: Queue) -> Path:
    """Put work of the kind that `settings` are for into the queue; returns its folder."""
    folder = new_folder(settings, workspace)
    queue.submit(kind_of(settings), folder)
    return folder


def new_folder(settings: Settings, workspace: Workspace) -> Path:
    """A folder of its own for a piece of work, its settings written."""
    folder = reserve(KINDS[kind_of(settings)].wish(settings, workspace))
    publish(folder / SETTINGS_FILE, lambda to: to.write_text(settings.to_json(), encoding="utf-8"))
    return folder


def reserve(folder: Path) -> Path:
    """Make `folder`, or `name-2`, `name-3` ... beside it: a new one, whoever else is asking."""
    make_folder(folder.parent)
    fresh, number = folder, 1
    while True:
        try:
            fresh.mkdir()
            sync_folder(folder.parent)
            return fresh
        except FileExistsError:
            number += 1
            fresh = folder.with_name(f"{folder.name}-{number}")


def _open_events(folder: Path) -> FileIO:
    lines = (folder / EVENTS_FILE).open("ab", buffering=0)
    if lines.tell():
        lines.write(b"\n")  # the process before us may have died in the middle of a line
    return lines


def say(folder: Path, event: Event) -> None:
    """Add one event to the folder, for a run that cannot speak for itself."""
    with _open_events(folder) as lines:
        lines.write(to_line(event).encode() + b"\n")


def record(events: Iterable[Event], folder: Path) -> Iterator[Event]:
    """Pass `events` on, each written to the folder first. An exception becomes a `Failed` event:
    the user's own mistakes by their sentence, anything else with its traceback in the log."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PID_FILE).write_text(identity(os.getpid()) or "", encoding="utf-8")
    lines, unsaid = _open_events(folder), b""

    def written(event: Event) -> Event:
        nonlocal unsaid
        unsaid += to_line(event).encode() + b"\n"
        # Of a full disk: what it did not take is kept, and tried again with the next line
        with contextlib.suppress(OSError):
            unsaid = unsaid[lines.write(unsaid) :]
        return event

    try:
        for event in events:
            yield written(event)
    except SdloraError as error:
        yield written(Failed(error.message))
    except Exception as error:
        with contextlib.suppress(OSError), (folder / LOG_FILE).open("a", encoding="utf-8") as log:
            traceback.print_exc(file=log)
        yield written(failure(error, folder))
    finally:
        with contextlib.suppress(OSError):
            lines.close()


def failure(error: Exception, folder: Path) -> Failed:
    """What to tell of an error nobody expected, and of what memory, disk and device may do."""
    name = type(error).__name__
    if name == "OutOfMemoryError":
        return Failed(
            "the device ran out of memory",
            Message(
                "use a smaller {batch} or {resolution}, or turn {checkpointing} on",
                batch=Setting("batch_size"), resolution=Setting("resolution"),
                checkpointing=Setting("gradient_checkpointing"),
            ),
        )  # fmt: skip
    if name == "AcceleratorError" or _OF_A_DEVICE.match(str(error)):
        said = Message("the device failed: {why}", why=error)
        return Failed(said, "a training goes on from its last checkpoint")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        file = Path(str(error.filename or folder))
        said = Message("the disk is full: {file} could not be written", file=file)
        return Failed(said, "make room; a training goes on from its last checkpoint")
    said = Message("{kind}: {why}", kind=name, why=error)
    return Failed(said, Message("the full report is in {log}", log=_log_of(folder)))


def _log_of(folder: Path) -> PerSurface:
    """A run's log as each surface can tell of it: by its path, or by the name of its folder."""
    return PerSurface(str(folder / LOG_FILE), f"{LOG_FILE} of the folder {folder.name}")


def how_to_go_on(state: RunState, folder: Path) -> Message:
    """What to do about a run that died."""
    log = Message("see {log}", log=_log_of(folder))
    if state.checkpoint is None:
        return log
    template = "resume it, and it goes on from step {step}; {log}"
    return Message(template, step=state.checkpoint, log=log)


@dataclass
class Follower:
    """Reads a folder's events as they come, each line once."""

    folder: Path
    state: RunState = RunState()
    _offset: int = 0

    def poll(self) -> RunState:
        """The state now. A process that died without a word is a failed run."""
        died = self._died()  # asked first: what it wrote before it died is read after
        self.news()
        if self.state.ended or not died:
            return self.state
        lost = Message("the process ended without a word at step {step}", step=self.state.step)
        return fold([Failed(lost, how_to_go_on(self.state, self.folder))], self.state)

    def news(self) -> list[Event]:
        """What was said since the last look; the state knows it from here on."""
        said = list(self._lines())
        self.state = fold(said, self.state)
        return said

    def _lines(self) -> Iterator[Event]:
        path = self.folder / EVENTS_FILE
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self._offset)
            block = file.read()
        whole = block[: block.rfind(b"\n") + 1]
        self._offset += len(whole)
        # not splitlines(): a prompt may hold one of the other characters that it splits at
        for line in filter(None, whole.decode("utf-8", errors="replace").split("\n")):
            with contextlib.suppress(ValueError, TypeError):  # a line torn by a kill
                yield from_line(line)

    def _died(self) -> bool:
        return (self.folder / PID_FILE).exists() and not _pid_alive(self.folder)


def read(folder: Path) -> RunState:
    """The state of the run in `folder`, read from its beginning."""
    return Follower(folder).poll()


def stop(folder: Path, now: bool = False) -> None:
    """Ask the run to stop after its present step; what it has learnt is kept. `now`: end it as it
    stands; what it last saved is kept."""
    ask(folder, "stop", _NOW if now else "")


def stop_asked(folder: Path) -> bool:
    """True when somebody asked the run to stop."""
    return asked(folder, "stop")


def stop_asked_now(folder: Path) -> bool:
    """True when somebody asked the run to end without finishing its step."""
    return stop_asked(folder) and (folder / "stop").read_text(encoding="utf-8") == _NOW


def request(folder: Path, wish: Request) -> None:
    """Ask a training that goes on for something. RunError: it does not go on."""
    state = read(folder)
    if state.ended or state.status == "queued":
        raise RunError(
            "the run {name!r} is {state}: it cannot {wish}; only a run that goes on can",
            name=folder.name, state=state.status, wish=REQUESTS[wish],
        )  # fmt: skip
    ask(folder, wish)


def reopen(folder: Path, queue: Queue) -> RunState:
    """Make a training that ended before its time ready to go on; what it was.
    BusyError: it goes on already; RunError: it is finished."""
    state, job = read(folder), queue.job_of(folder)
    waits = job is not None and job.status in ("queued", "running")
    # one that was killed before it said anything is nobody's, though it has not ended
    if not state.ended and (waits or _pid_alive(folder)):
        raise BusyError(
            "the run {name!r} is {state}; there is nothing to resume",
            name=folder.name, state=state.status,
        )  # fmt: skip
    if state.status == "done":
        lora = Path(state.result)
        raise RunError(
            "the run {name!r} is finished: its LoRA is {lora}", name=folder.name, lora=lora
        )
    answered(folder, *REQUESTS)
    (folder / PID_FILE).unlink(missing_ok=True)
    say(folder, Queued())
    return state


def resume(folder: Path, queue: Queue) -> None:
    """Put a training that ended before its time into the queue again. BusyError, RunError: as
    `reopen`."""
    reopen(folder, queue)
    queue.submit("train", folder)


def _pid_alive(folder: Path) -> bool:
    pid = folder / PID_FILE
    return pid.exists() and alive(pid.read_text(encoding="utf-8"))


def cancel(folder: Path, queue: Queue) -> None:
    """Take the work out of the queue; if it runs already, ask it to stop."""
    if queue.cancel(folder):
        say(folder, Stopped())
    else:
        stop(folder)


def run_folders(runs: Path) -> list[Path]:
    """The folders of all runs, newest first."""
    settings = [p / SETTINGS_FILE for p in runs.iterdir()] if runs.is_dir() else []
    written = [(p.stat().st_mtime_ns, p.parent) for p in settings if p.is_file()]
    return [folder for _, folder in sorted(written, reverse=True)]


def list_runs(runs: Path) -> dict[str, RunState]:
    """Name -> state of every run in the folder, newest first."""
    return {folder.name: read(folder) for folder in run_folders(runs)}


def find_run(runs: Path, name: str) -> Path:
    """The folder of the run `name`. SettingsError with near names when there is none."""
    names = [folder.name for folder in run_folders(runs)]
    if name not in names:
        near = did_you_mean(name, names)
        raise SettingsError("there is no run {name!r}.{near}", name=name, near=near)
    return runs / name
