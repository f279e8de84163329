"""Reader of a run's folder: the state that its events fold to, and the queue's knowledge of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from sdlora.errors import RunError
from sdlora.events import Event, Failed, RunState, fold, from_row, parsed, plain_step
from sdlora.jobs.heartbeat import silence_and_idleness
from sdlora.jobs.processes import alive
from sdlora.jobs.queue import Job, Queue
from sdlora.jobs.run_paths import with_present_path, workspace_of
from sdlora.messages import Message, PerSurface, readable

EVENTS_FILE, LOG_FILE, PID_FILE, HEARTBEAT_FILE = "events.jsonl", "log.txt", "pid", "heartbeat"
_STEP, _NO_LOSS = '{"event": "Step"', '"loss": null'
_STATUS_OF_ROW = {"cancelled": "stopped"}


def owner(folder: Path) -> str:
    """The identity of the process that works in the folder; '' where none is named."""
    try:
        return (folder / PID_FILE).read_bytes().decode("utf-8", "replace").strip()
    except (OSError, ValueError):
        return ""


def pid_alive(folder: Path) -> bool:
    """True while the process lives that works in the folder."""
    return alive(owner(folder))


def resume_hint(state: RunState, *logs: Path) -> Message:
    """Return the advice about a run that died; it names the first of its `logs` that is not
    empty."""
    log = next((path for path in logs if _size(path)), None)
    see = Message("see {log}", log=log) if log else ""
    if state.checkpoint is None:
        return Message("{see}", see=see)
    template = "resume it, and it goes on from step {step}" + ("; {see}" if log else "")
    return Message(template, step=state.checkpoint, see=see)


def unread_lines(state: RunState) -> Message:
    """Return a message about damaged lines of a run's events; '' where there are none."""
    if not state.unreadable:
        return Message("")
    template = "{count} lines of {file} cannot be read and are left out"
    return Message(template, count=state.unreadable, file=EVENTS_FILE)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return 0


@dataclass
class RunFollower:
    """Reader of a folder's events as they come, each line once. With the `queue`, its knowledge of
    the run counts too: a job that waits or runs there has not ended, even if its process died."""

    folder: Path
    state: RunState = RunState()
    queue: Queue | None = None
    _offset: int = 0
    _file: int = 0  # the number of the file that was read so far

    def poll(self) -> RunState:
        """Return the present state; of a folder that cannot be read, a failure with the reason. A
        process that died without a last event is a failed run, unless the queue will resume it."""
        try:
            if readable(self.folder.name) != self.folder.name:
                raise RunError(
                    "the name of the folder {folder} is not UTF-8; rename it to use what is in it",
                    folder=self.folder.name,
                )
            died = self._died()  # asked first: what it wrote before it died is read after
            self.new_events()
            return self._with_heartbeat() if self.state.ended else self._without_end(died)
        except RunError as error:
            return replace(self.state, status="failed", phase="", error=error.message)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            file = self.folder / EVENTS_FILE
            message = Message("{file} cannot be read: {why}", file=file, why=why)
            return replace(self.state, status="failed", phase="", error=message)

    def new_events(self) -> list[Event]:
        """Return the events since the last call; the state includes them from here on. OSError: the
        file cannot be read."""
        events = list(self._events())
        self.state = fold(events, self.state)
        return events

    def _events(self) -> Iterator[Event]:
        try:
            file = (self.folder / EVENTS_FILE).open("rb")
        except FileNotFoundError:
            return
        with file:
            status = os.fstat(file.fileno())
            if (self._file and status.st_ino != self._file) or status.st_size < self._offset:
                self.state, self._offset = RunState(), 0  # it was begun anew
            self._file = status.st_ino
            file.seek(self._offset)
            block = file.read()
        whole = block[: block.rfind(b"\n") + 1]
        self._offset += len(whole)
        # not splitlines(): a prompt may hold one of the other characters that it splits at
        lines = [*filter(None, whole.decode("utf-8", errors="replace").split("\n")), ""]
        workspace = workspace_of(self.folder)
        for line, after in zip(lines, lines[1:], strict=False):
            # A step without a loss says nothing that the next one does not say: most lines of a run
            if _NO_LOSS in line and line[:16] == after[:16] == _STEP and after[-1] == "}":
                continue
            if step := plain_step(line):
                yield step
                continue
            try:
                yield from_row(with_present_path(parsed(line), self.folder, workspace))
            except ValueError:  # torn by a kill, or no event at all
                self.state = replace(self.state, unreadable=self.state.unreadable + 1)

    def _died(self) -> bool:
        return os.path.lexists(self.folder / PID_FILE) and not pid_alive(self.folder)

    def _with_heartbeat(self) -> RunState:
        """Return the state with the times of the heartbeat."""
        if self.state.ended:
            return self.state
        process = owner(self.folder)
        silent, idle = silence_and_idleness(self.folder / HEARTBEAT_FILE, process)
        return replace(self.state, silent_s=silent, idle_s=idle) if silent or idle else self.state

    def _without_end(self, died: bool) -> RunState:
        """Return the state of a run without a last event."""
        state, job = self.state, self.queue.job_of(self.folder) if self.queue else None
        if job and job.waits and self.queue:
            return self._in_queue(job, died, self.queue)
        if not died and (state.status != "queued" or not self.queue or pid_alive(self.folder)):
            return self._with_heartbeat()
        if job:
            status = _STATUS_OF_ROW.get(job.status, job.status)
            return replace(state, status=status, phase="", error=job.reason)
        if not died:
            error = "it is not in the queue any more"
            return replace(state, status="failed", error=error, advice=_START_AGAIN)
        message = Message("the process ended without a word at step {step}", step=state.step)
        return fold([Failed(message, resume_hint(state, self.folder / LOG_FILE))], state)

    def _in_queue(self, job: Job, died: bool, queue: Queue) -> RunState:
        if job.status == "queued":
            return replace(self.state, status="queued", phase="", ahead=queue.ahead(job))
        if died:
            return replace(self.state, phase="its process has ended; waiting for the worker")
        return self._with_heartbeat()


_START_AGAIN = Message(
    "{how}", how=PerSurface("python launch.py runs resume NAME starts it", "start it again")
)


def read(folder: Path, queue: Queue | None = None) -> RunState:
    """The state of the run in `folder`, read from its beginning."""
    return RunFollower(folder, queue=queue).poll()


def recorded_state(folder: Path) -> RunState:
    """Return the state from the run's own events, without the failure of one that died. OSError:
    unreadable."""
    follower = RunFollower(folder)
    follower.new_events()
    return follower.state
