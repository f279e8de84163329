"""Supervision of the worker by the page and the command: started when needed, replaced when it does
not answer; jobs ended at once on request."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from sdlora.errors import RunError
from sdlora.events import Stopped
from sdlora.jobs import run_folder
from sdlora.jobs.heartbeat import TIMES, Times, Watch, silence_and_idleness
from sdlora.jobs.kinds import WorkerRole, role_of
from sdlora.jobs.processes import alive, end, identity, start_detached
from sdlora.jobs.queue import Queue
from sdlora.workspace import Workspace, workspace_gone_error


class WorkerKeeper:
    """Keeps the workspace's worker running, or its downloader. Safe from any thread."""

    def __init__(
        self,
        workspace: Workspace,
        queue: Queue,
        times: Times = TIMES,
        role: WorkerRole = "worker",
    ) -> None:
        self.workspace, self.queue, self.times, self.role = workspace, queue, times, role
        self._started = ""  # the process that was started last, which may not hold the lock yet
        self._heartbeat = workspace.heartbeat_of(role)
        self._watched, self._watch = "", Watch(self._heartbeat, times)
        self._ending: threading.Thread | None = None
        self._lock = threading.Lock()

    def wake(self) -> None:
        """Start the worker, unless it lives or is just starting; end it if it does not answer.
        RunError: the workspace or its queue is gone."""
        with self._lock:
            if self._ending and self._ending.is_alive():
                return
            lock = self.queue.holder(self.role)
            process = lock.holder if lock else self._started
            if not alive(process):
                self._start()
            elif not self._answers(process):
                # Alone: a training that it has started goes on, and the next worker takes it up
                self._ending = threading.Thread(
                    target=end, args=(process, self.times.terminate, False), daemon=True
                )
                self._ending.start()

    def replace_silent(self) -> bool:
        """End a worker that has long been silent, and start another: for a command, which runs
        once, and so waits for the next heartbeat. Returns True where it did."""
        lock = self.queue.holder(self.role)
        path = self._heartbeat
        if lock is None or silence_and_idleness(path, lock.holder)[0] < self.times.silence:
            return False
        watch = Watch(path, self.times)
        for _ in range(2):
            time.sleep(self.times.beat)
            watch.look()
        if watch.silent_s == 0:
            return False
        end(lock.holder, self.times.terminate, children=False)
        self.wake()
        return True

    @property
    def is_replacing(self) -> bool:
        """True while a worker is being ended or has just been started."""
        return bool(self._ending and self._ending.is_alive()) or alive(self._started)

    def _answers(self, process: str) -> bool:
        if process != self._watched:
            self._watched, self._watch = process, Watch(self._heartbeat, self.times)
        return self._watch.look()

    def _start(self) -> None:
        if not self.workspace.root.is_dir():
            raise workspace_gone_error(self.workspace.root)
        arguments = ["-m", "sdlora.worker.worker", "--workspace", str(self.workspace.root)]
        arguments += [] if self.role == "worker" else ["--role", self.role]
        try:
            process = start_detached(arguments, self.workspace.log_of(self.role))
        except OSError as error:
            raise RunError(
                "the worker cannot be started: {why}", why=error.strerror or error
            ) from None
        self._started = identity(process.pid) or ""


def end_now(folder: Path, queue: Queue, times: Times = TIMES) -> None:
    """End the job in `folder` as it stands: by request, then terminated, then killed. The last
    checkpoint stays."""
    run_folder.stop(folder, now=True)
    deadline = time.monotonic() + times.ask_first
    process = run_folder.owner(folder)
    while alive(process) and time.monotonic() < deadline:
        if run_folder.read(folder).ended:
            return
        time.sleep(min(0.1, times.ask_first / 5))
    job = queue.job_of(folder)
    role = role_of(job.kind) if job else "worker"
    worker = queue.holder(role)
    is_worker = worker is not None and worker.holder == process
    end(process, times.terminate, children=not is_worker)
    job = queue.job_of(folder)
    if job and job.status == "running" and queue.holder(role):
        return  # it sees the end and says so
    state = run_folder.recorded_state(folder)
    if not state.ended:
        run_folder.append_event(folder, Stopped(path=state.result, step=state.step))
    if job and job.waits:
        queue.finish(job, "stopped")
