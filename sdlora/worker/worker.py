"""Worker, the process that owns the device: `python -m sdlora.worker.worker --workspace DIR`.

One per workspace. It takes jobs from the queue one after the other and keeps the image model open
between requests. In the role `downloader` it takes the downloads, and never touches the device.
Every other job runs as its child process, with the device's memory to itself. The page may die
meanwhile, and so may the worker: the next worker resumes the jobs that it left.

An error of a job fails that job alone: its reason is written to its folder, if possible, and to the
queue always. A job that has ended two workers or processes is not tried a third time. A child
without a heartbeat is ended and replaced.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, get_args

from sdlora.errors import RunError, SdloraError
from sdlora.events import Event, Failed, Progress, Queued, Resumed, Stopped, Warned
from sdlora.jobs import run_folder
from sdlora.jobs.control_files import is_requested
from sdlora.jobs.heartbeat import TIMES, Heart, Times, Watch
from sdlora.jobs.kinds import WorkerRole
from sdlora.jobs.processes import alive, end, identity, lower_priority, release, start_detached
from sdlora.jobs.queue import Job, Queue
from sdlora.messages import Message
from sdlora.settings.image_request import ImageRequest
from sdlora.workspace import Workspace

IDLE_S = 600.0  # a worker without a page and without work ends after this
MAX_TRIES = 2  # a job that has ended two workers or processes is not tried again


class ImageMaker(Protocol):
    """Interface of `sdlora.inference.engine.Engine` that the worker uses."""

    def generate(
        self, request: ImageRequest, should_stop: Callable[[], bool] = ...
    ) -> Iterator[Event]:
        """The events of a request."""
        ...

    def close(self) -> None:
        """Let go of the model and the device's memory; the next request opens it again."""
        ...


def open_engine(workspace: Workspace) -> ImageMaker:
    """Return the engine on the best device of this machine."""
    from sdlora.device import pick_device, pick_dtype
    from sdlora.inference.engine import Engine

    device, _ = pick_device()
    dtype, _ = pick_dtype(device, "auto")
    return Engine(workspace, device, dtype)


def command(kind: str, folder: Path, workspace: Workspace) -> list[str]:
    """Return the arguments of Python for a job's process."""
    return ["-m", "sdlora.worker.tasks", kind, str(folder), "--workspace", str(workspace.root)]


class Worker:
    """Runs the queue's jobs, one at a time."""

    def __init__(
        self,
        workspace: Workspace,
        *,
        make_engine: Callable[[Workspace], ImageMaker] = open_engine,
        command: Callable[[str, Path, Workspace], list[str]] = command,
        idle_s: float = IDLE_S,
        poll_s: float = 0.2,
        times: Times = TIMES,
        role: WorkerRole = "worker",
    ) -> None:
        """`make_engine` and `command` are what tests replace; it looks every `poll_s`."""
        self.workspace, self.queue, self.role = workspace, Queue(workspace.database), role
        self.make_engine, self.command = make_engine, command
        self.idle_s, self.poll_s, self.times = idle_s, poll_s, times
        self.me = identity(os.getpid()) or ""
        self.engine: ImageMaker | None = None
        self.heart = Heart(workspace.heartbeat_of(role), times.beat)

    def run(self) -> bool:
        """Run until the worker is idle. False when the workspace has a worker already."""
        if self.queue.acquire_lock(self.role):
            return False
        try:
            with self.heart:
                self._work()
        finally:
            self.queue.release_lock(self.role)
        return True

    def _work(self) -> None:
        for left in self.queue.left_running_by_others(self.me, self.role):
            self.do(left, adopted=True)
        needed_at = time.monotonic()
        while time.monotonic() - needed_at < self.idle_s:
            self.heart.advance()
            if self.queue.acquire_lock(self.role):  # the queue's file was deleted, and another came
                return
            job = self.queue.claim(self.me, self.role)
            if job:
                self.do(job)
            if job or (self.role == "worker" and self.queue.holder("page")):
                needed_at = time.monotonic()
            if not job:
                time.sleep(self.poll_s)

    def do(self, job: Job, adopted: bool = False) -> None:
        """Run a job, or resume one that a dead worker left. Any error is the job's failure, not the
        worker's."""
        failed = None
        try:
            if not job.folder.is_dir():
                raise RunError("its folder {folder} is gone", folder=job.folder)
            process_kind = JOB_PROCESSES.get(job.kind)
            if process_kind is None:
                raise RunError("this version knows no work of the kind {kind}", kind=job.kind)
            (process_kind.adopt if adopted else process_kind.run)(self, job)
        except Exception as error:
            failed = self._failure(job, error)
        state = run_folder.read(job.folder)
        if failed:
            self.queue.finish(job, "failed", failed.message)
        elif state.ended:
            self.queue.finish(job, state.status, state.error)

    def _failure(self, job: Job, error: Exception) -> Failed:
        """Return the failure, written wherever possible; nothing in here can fail itself."""
        with contextlib.suppress(Exception):
            traceback.print_exc()  # into the worker's log
        failed = Failed(type(error).__name__)
        with contextlib.suppress(Exception):
            log = None if isinstance(error, SdloraError) else self._log
            failed = run_folder.failure(error, log, job.folder)
            if isinstance(error, SdloraError):
                failed = Failed(error.message)
        with contextlib.suppress(Exception):
            if not job.folder.is_dir():
                message = Message("its folder {folder} is gone", folder=job.folder)
                failed = Failed(message)
        with contextlib.suppress(Exception):
            if not run_folder.RunFollower(job.folder).poll().ended:
                run_folder.append_event(job.folder, failed)
        return failed

    def generate(self, job: Job) -> None:
        """Make images with the engine, which stays open unless it failed."""
        events = self._images(job.folder)
        for event in run_folder.record(events, job.folder, self.times.beat):
            self.heart.advance()
            if isinstance(event, Failed):
                self._close_engine()
        self._conclude(job, Message("the image maker ended without a word"))

    def _images(self, folder: Path) -> Iterator[Event]:
        request = ImageRequest.load(folder / run_folder.SETTINGS_FILE)
        if self.engine is None:
            yield Progress("starting the image maker")
            self.engine = self.make_engine(self.workspace)
        yield from self.engine.generate(request, lambda: run_folder.stop_asked(folder))

    def run_child(self, job: Job) -> None:
        """Run a job as a child process, with the device to itself, until it ends."""
        self._close_engine()
        for file in (run_folder.PID_FILE, run_folder.HEARTBEAT_FILE):
            (job.folder / file).unlink(missing_ok=True)
        run_folder.append_event(job.folder, Progress("starting"))
        arguments = self.command(job.kind, job.folder, self.workspace)
        child = start_detached(arguments, job.folder / run_folder.LOG_FILE, held=True)
        process = identity(child.pid) or f"{child.pid}:gone"
        try:
            if JOB_PROCESSES[job.kind].in_background:
                lower_priority(child.pid)
            # Known as the owner before it begins: no other process is ever started beside it
            self.queue.started(job, process)
            (job.folder / run_folder.PID_FILE).write_text(process, encoding="utf-8")
            release(child)
            silence = self._wait_for(job, process)
        finally:
            end(process)  # also where watching it failed
            code = child.wait()
        self._conclude(job, silence or _death(code), replace=bool(silence))

    def resume_child(self, job: Job) -> None:
        """Wait for a child that outlived its worker, or note that it did not."""
        process = job.process or run_folder.owner(job.folder)
        try:
            silence = self._wait_for(job, process)
        finally:
            end(process)
        death = Message("the worker died, and the process of this work with it")
        self._conclude(job, silence or death, replace=bool(silence))

    def generate_again(self, job: Job) -> None:
        """Generate the images again, unless they are done, a stop is requested, or this request has
        ended workers before."""
        state = run_folder.recorded_state(job.folder)
        if state.ended:
            return
        if run_folder.stop_asked(job.folder):
            run_folder.append_event(job.folder, Stopped(step=state.step))
            return
        template = "the worker died or did not answer over this request"
        if job.tries >= MAX_TRIES:
            message = Message(template + ", {count} times", count=job.tries)
            run_folder.append_event(
                job.folder, Failed(message, run_folder.resume_hint(state, self._log))
            )
            return
        for name in (run_folder.EVENTS_FILE, run_folder.PID_FILE, run_folder.HEARTBEAT_FILE):
            (job.folder / name).unlink(missing_ok=True)
        self.queue.requeue(job)
        run_folder.append_event(job.folder, Queued())
        run_folder.append_event(job.folder, Warned(Message(template + "; it is done again")))

    @property
    def _log(self) -> Path:
        return self.workspace.log_of(self.role)

    def _wait_for(self, job: Job, process: str) -> Message | None:
        """Wait for the end of a child, and end it on request or when it does not answer. Returns
        the reason, where it did not answer."""
        watch = Watch(job.folder / run_folder.HEARTBEAT_FILE, self.times)
        while alive(process):
            self.heart.advance()
            if run_folder.stop_asked_now(job.folder):
                end(process, self.times.terminate)
            elif not watch.look():
                seconds = round(watch.silent_s)
                end(process, self.times.terminate)
                return Message("the process did not answer for {seconds} s", seconds=seconds)
            time.sleep(self.poll_s)
        return None

    def _conclude(self, job: Job, death: Message, replace: bool = False) -> None:
        """Finish a run without a last event. One with a checkpoint is resumed, once, unless a stop
        is requested; `replace`: one without starts again, as one does that goes on from its files.
        """
        folder, state = job.folder, run_folder.recorded_state(job.folder)
        if state.ended:
            return
        if run_folder.stop_asked_now(folder):
            run_folder.append_event(folder, Stopped(path=state.result, step=state.step))
            return
        reason = Message("{death} at step {step}", death=death, step=state.step)
        reason = reason if state.step else death
        log = folder / run_folder.LOG_FILE
        ends = run_folder.stop_asked(folder) or is_requested(folder, "pause")
        again = replace or JOB_PROCESSES[job.kind].goes_on
        if (state.checkpoint is None and not again) or ends or job.tries >= MAX_TRIES:
            run_folder.append_event(
                folder, Failed(reason, run_folder.resume_hint(state, log, self._log))
            )
            return
        (folder / run_folder.PID_FILE).unlink(missing_ok=True)
        self.queue.requeue(job)
        step = state.checkpoint or 0
        then = "; it goes on from step {step} by itself" if step else "; it begins anew"
        for event in (
            Queued(),
            Resumed(step),
            Warned(
                Message("{reason}" + then, reason=reason, step=step),
                Message("if that happens again, it ends; see {log}", log=log),
            ),
        ):
            run_folder.append_event(folder, event)

    def _close_engine(self) -> None:
        if self.engine is not None:
            self.engine.close()


Act = Callable[[Worker, Job], None]


@dataclass(frozen=True)
class JobProcess:
    """Functions of the worker that run a claimed job, and one that a dead worker left running.
    `in_background`: with a lower priority. `goes_on`: begun anew it goes on from its own files."""

    run: Act
    adopt: Act
    in_background: bool = False
    goes_on: bool = False


# In the worker, whose model stays open between requests: it died with the worker, and begins anew.
IN_WORKER = JobProcess(Worker.generate, Worker.generate_again)
# In a process of its own, which has the device to itself and gives all of it back: it outlives the
# worker, and the next one has only to wait for its end.
CHILD = JobProcess(Worker.run_child, Worker.resume_child)
BACKGROUND = JobProcess(Worker.run_child, Worker.resume_child, in_background=True)
JOB_PROCESSES: dict[str, JobProcess] = {
    "generate": IN_WORKER,
    "train": BACKGROUND,
    "measure": BACKGROUND,  # for it tells how long such a training takes
    "grid": CHILD,
    "describe": CHILD,
    "download": JobProcess(Worker.run_child, Worker.resume_child, goes_on=True),
}


def _death(code: int) -> Message:
    if code >= 0:
        return Message("the process died (exit code {code})", code=code)
    return Message("the process died (signal {signal})", signal=-code)


def main(workspace: Workspace, role: WorkerRole = "worker") -> int:
    """Be the workspace's worker or downloader; 0 also when there is one already."""
    if not Worker(workspace, role=role).run():
        print(f"{workspace.root} has a {role} already")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="sdlora worker")
    parser.add_argument("--workspace", required=True)
    parser.add_argument("--role", choices=get_args(WorkerRole), default="worker")
    options = parser.parse_args()
    sys.exit(main(Workspace.open(options.workspace), options.role))
