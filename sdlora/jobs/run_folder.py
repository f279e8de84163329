"""The run folder: `settings.json events.jsonl log.txt samples/ lora/ state/ stop pid heartbeat`.

It is the only thing that the trainer, the worker, the command and the page share. A process that
can read the folder can follow a run; one that can create the file `stop` in it can end it. What a
training needs to resume lies in `state/`. Every other job has such a folder too
(`sdlora.jobs.kinds`); the pictures of a request lie in `outputs/`.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from sdlora.errors import BusyError, RunError, SdloraError, SettingsError, did_you_mean
from sdlora.events import Event, Failed, Queued, RunState, Stopped, to_line
from sdlora.files import DISK_FULL, make_folder, sync_folder, write_atomically
from sdlora.jobs.control_files import (
    REQUESTS,
    Request,
    clear_requests,
    is_requested,
    request_text,
    write_request,
)
from sdlora.jobs.heartbeat import TIMES, Heart
from sdlora.jobs.kinds import KINDS, kind_of
from sdlora.jobs.processes import identity, wait_for_release
from sdlora.jobs.queue import Queue
from sdlora.jobs.resume import check_finished, write_changes
from sdlora.jobs.run_paths import relative_to_run, workspace_of
from sdlora.jobs.run_reader import (
    EVENTS_FILE,
    HEARTBEAT_FILE,
    LOG_FILE,
    PID_FILE,
    RunFollower,
    owner,
    pid_alive,
    read,
    recorded_state,
    resume_hint,
    unread_lines,
)
from sdlora.messages import Message, Setting, readable
from sdlora.settings.base import Settings
from sdlora.settings.train import TrainSettings
from sdlora.workspace import Workspace, workspace_gone_error

SETTINGS_FILE = "settings.json"
PROCESS_ENDS_S = 15.0  # that a process may live after its last event
__all__ = [
    "EVENTS_FILE", "HEARTBEAT_FILE", "LOG_FILE", "PID_FILE", "SETTINGS_FILE", "RunFollower",
    "append_event", "cancel", "failure", "find_run", "list_runs", "log_error", "new_folder",
    "owner", "pid_alive", "read", "record", "recorded_state", "reopen", "request", "reserve",
    "resume", "resume_hint", "run_folders", "start", "stop", "stop_asked", "stop_asked_now",
    "unread_lines",
]  # fmt: skip
_OF_A_DEVICE = re.compile(r"(CUDA|HIP|cuDNN|MPS|NCCL)\b.*\b(error|failed)", re.IGNORECASE)
_NOW = "now"  # text of the file `stop` when the run must not finish its step


def start(settings: Settings, workspace: Workspace, queue: Queue) -> Path:
    """Put work of the kind that `settings` are for into the queue; returns its folder."""
    folder = new_folder(settings, workspace)
    queue.cancel(folder)  # a job that waits in a folder of this name that was deleted
    queue.submit(kind_of(settings), folder)
    return folder


def new_folder(settings: Settings, workspace: Workspace) -> Path:
    """Make a folder for a job and write its settings. RunError: nothing can be written."""
    if not workspace.root.is_dir():
        raise workspace_gone_error(workspace.root)
    try:
        folder = reserve(KINDS[kind_of(settings)].default_folder(settings, workspace))
        text = settings.to_json()
        write_atomically(folder / SETTINGS_FILE, lambda to: to.write_text(text, encoding="utf-8"))
    except (OSError, UnicodeEncodeError) as error:
        raise RunError(
            "nothing can be written to {root}: {why}; {advice}",
            root=workspace.root,
            why=getattr(error, "strerror", None) or error,
            advice="make room on that disk and try again"
            if getattr(error, "errno", 0) in DISK_FULL
            else "see to that and try again",
        ) from None
    return folder


def reserve(folder: Path) -> Path:
    """Make `folder`, or `name-2`, `name-3` ... beside it: a new one, also when other processes do
    the same."""
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


def _event_line(event: Event, folder: Path, workspace: Path | None) -> bytes:
    path = getattr(event, "path", "")
    return to_line(event, **relative_to_run(path, folder, workspace)).encode() + b"\n"


def append_event(folder: Path, event: Event) -> None:
    """Append one event to the folder's events, for a run that cannot do so itself."""
    with _open_events(folder) as lines:
        lines.write(_event_line(event, folder, workspace_of(folder)))


def record(events: Iterable[Event], folder: Path, beat_s: float = TIMES.beat) -> Iterator[Event]:
    """Yield `events`, each written to the folder first, with a heartbeat every `beat_s`. An
    exception becomes a `Failed` event: an error that the user can fix by its sentence, any other
    with its traceback in the log."""
    wait_for_release()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PID_FILE).write_text(identity(os.getpid()) or "", encoding="utf-8")
    lines, unwritten, workspace = _open_events(folder), b"", workspace_of(folder)

    def written(event: Event) -> Event:
        nonlocal unwritten
        unwritten += _event_line(event, folder, workspace)
        # On a full disk the rest is kept, and written with the next line
        with contextlib.suppress(OSError):
            unwritten = unwritten[lines.write(unwritten) :]
        return event

    with Heart(folder / HEARTBEAT_FILE, beat_s) as heart:
        try:
            for event in events:
                heart.advance()
                yield written(event)
        except SdloraError as error:
            yield written(Failed(error.message))
        except Exception as error:
            yield written(failure(error, log_error(folder / LOG_FILE), folder))
        finally:
            with contextlib.suppress(OSError):
                lines.close()


def log_error(log: Path) -> Path | None:
    """Append the traceback of the exception that is being handled to a log; None: it cannot be
    written."""
    try:
        with log.open("a", encoding="utf-8", errors="backslashreplace") as file:
            traceback.print_exc(file=file)
    except (OSError, ValueError):
        return None
    return log


def failure(error: Exception, log: Path | None, folder: Path) -> Failed:
    """Return the event of an unexpected error, or of one of memory, disk and device. `log` is the
    file with its traceback."""
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
        message = Message("the device failed: {why}", why=error)
        return Failed(message, "a training goes on from its last checkpoint")
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        file = Path(os.fsdecode(error.filename)) if error.filename else folder
        message = Message("the disk is full: {file} could not be written", file=file)
        return Failed(message, "make room; a training goes on from its last checkpoint")
    advice = Message("the full report is in {log}", log=log) if log else ""
    return Failed(Message("{error}: {why}", error=name, why=error), advice)


def stop(folder: Path, now: bool = False) -> None:
    """Ask the run to stop after its present step and save the LoRA. `now`: end it as it stands; the
    last checkpoint stays."""
    write_request(folder, "stop", _NOW if now else "")


def stop_asked(folder: Path) -> bool:
    """True when somebody asked the run to stop."""
    return is_requested(folder, "stop")


def stop_asked_now(folder: Path) -> bool:
    """True when somebody asked the run to end without finishing its step."""
    return request_text(folder, "stop") == _NOW


def request(folder: Path, kind: Request) -> None:
    """Write a request to a training that goes on. RunError: it does not go on."""
    state = read(folder)
    if state.ended or state.status == "queued":
        raise RunError(
            "the run {name} is {status}: it cannot {wish}; only a run that goes on can",
            name=repr(readable(folder.name)),
            status=state.status,
            wish=REQUESTS[kind],
        )
    write_request(folder, kind)


def reopen(folder: Path, queue: Queue, changes: Mapping[str, Any] | None = None) -> RunState:
    """Make a training that has ended ready to resume, with `changes` of its settings; returns its
    state. BusyError: it goes on already; RunError: it is finished, and no steps are added;
    SettingsError: one of the changes cannot be made."""
    _wait_for_process(folder, queue)
    state, job, name = read(folder), queue.job_of(folder), repr(folder.name)
    waits = job is not None and job.waits
    # one that was killed before its first event has not ended, but no process works on it
    if waits or (not state.ended and pid_alive(folder)):
        raise BusyError(
            "the run {name} is {status}; there is nothing to resume",
            name=name,
            status=read(folder, queue).status,
        )
    check_finished(folder.name, state, changes or {})
    if changes:
        write_changes(folder, TrainSettings.load(folder / SETTINGS_FILE), changes)
    clear_requests(folder, *REQUESTS)
    for file in (PID_FILE, HEARTBEAT_FILE):
        (folder / file).unlink(missing_ok=True)
    append_event(folder, Queued())
    return state


def _wait_for_process(folder: Path, queue: Queue) -> None:
    """Wait while the worker notes that a run has ended: its process lives a few seconds longer than
    its last event, and a click on Resume comes sooner."""
    deadline = time.monotonic() + PROCESS_ENDS_S
    while recorded_state(folder).ended and time.monotonic() < deadline:
        job = queue.job_of(folder)
        if not job or job.status != "running":
            return
        time.sleep(0.05)


def resume(folder: Path, queue: Queue, changes: Mapping[str, Any] | None = None) -> None:
    """Put a training that ended before its time into the queue again. BusyError, RunError,
    SettingsError: as `reopen`."""
    reopen(folder, queue, changes)
    queue.submit("train", folder)


def cancel(folder: Path, queue: Queue) -> None:
    """Take the job out of the queue; if it runs already, ask it to stop."""
    if queue.cancel(folder):
        with contextlib.suppress(OSError):  # the queue knows it, if the folder cannot be written
            append_event(folder, Stopped())
    else:
        stop(folder)


def run_folders(runs: Path) -> list[Path]:
    """The folders of all runs, newest first; also those whose settings or events are damaged."""
    dated = [(_start_time_ns(folder), folder) for folder in _list_folder(runs)]
    written = [(when, folder) for when, folder in dated if when is not None]
    return [folder for _, folder in sorted(written, reverse=True)]


def _list_folder(folder: Path) -> list[Path]:
    try:
        return [*folder.iterdir()]
    except (OSError, ValueError):
        return []


def _start_time_ns(folder: Path) -> int | None:
    """Return the modification time of a run's settings, in ns; None: the folder is no run."""
    for file in (SETTINGS_FILE, EVENTS_FILE):
        with contextlib.suppress(OSError, ValueError):
            return (folder / file).lstat().st_mtime_ns
    return None


def list_runs(runs: Path, queue: Queue | None = None) -> dict[str, RunState]:
    """Name -> state of every run in the folder, newest first. One that cannot be read is there as
    a failure that says why."""
    return {readable(folder.name): read(folder, queue) for folder in run_folders(runs)}


def find_run(runs: Path, name: str) -> Path:
    """The folder of the run `name`. SettingsError with near names when there is none."""
    folders = {readable(folder.name): folder for folder in run_folders(runs)}
    if name not in folders:
        near = did_you_mean(name, folders)
        raise SettingsError("there is no run {name}.{near}", name=repr(name), near=near)
    return folders[name]
