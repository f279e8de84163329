"""The process that owns the device: `python -m sdlora.worker --workspace DIR`.

One per workspace. It takes jobs from the queue one after the other and keeps the image model open
between requests. All other work runs as its child process, and gets the device's memory to itself.
The page may die meanwhile, and so may the worker: the next one goes on with what it finds.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sdlora import runs
from sdlora.events import Event, Failed, Progress, Queued, Stopped, Warned
from sdlora.jobs import Job, Queue
from sdlora.kinds import Kind
from sdlora.processes import alive, end, identity, start_detached, step_back
from sdlora.requests import asked
from sdlora.settings import ImageRequest
from sdlora.workspace import Workspace

IDLE_S = 600.0  # a worker without a page and without work ends after this
MOST_TRIES = 2  # what took two workers or processes down is not given to a third


class ImageMaker(Protocol):
    """What the worker needs of `sdlora.generate.Engine`."""

    def generate(
        self, request: ImageRequest, should_stop: Callable[[], bool] = ...
    ) -> Iterator[Event]:
        """The events of a request."""
        ...

    def close(self) -> None:
        """Let go of the model and the device's memory; the next request opens it again."""
        ...


def open_engine(workspace: Workspace) -> ImageMaker:
    """The engine on the best device of this machine."""
    from sdlora.device import pick_device, pick_dtype
    from sdlora.generate import Engine

    device, _ = pick_device()
    dtype, _ = pick_dtype(device, "auto")
    return Engine(workspace, device, dtype)


def command(kind: Kind, folder: Path, workspace: Workspace) -> list[str]:
    """What Python is called with to do the work in `folder`."""
    return ["-m", "sdlora.work", kind, str(folder), "--workspace", str(workspace.root)]


class Worker:
    """Runs the queue's jobs, one at a time."""

    def __init__(
        self,
        workspace: Workspace,
        make_engine: Callable[[Workspace], ImageMaker] = open_engine,
        command: Callable[[Kind, Path, Workspace], list[str]] = command,
        idle_s: float = IDLE_S,
        poll_s: float = 0.2,
    ) -> None:
        """`make_engine` and `command` are what tests replace; it looks every `poll_s`."""
        self.workspace, self.queue = workspace, Queue(workspace.database)
        self.make_engine, self.command = make_engine, command
        self.idle_s, self.poll_s = idle_s, poll_s
        self.me = identity(os.getpid()) or ""
        self.engine: ImageMaker | None = None

    def run(self) -> bool:
        """Work until nobody needs it. False when the workspace has a worker already."""
        if self.queue.take_seat("worker"):
            return False
        try:
            for left in self.queue.left_running_by_others(self.me):
                self.do(left, WAYS[left.kind].adopt)
            needed_at = time.monotonic()
            while time.monotonic() - needed_at < self.idle_s:
                job = self.queue.claim(self.me)
                if job:
                    self.do(job, WAYS[job.kind].run)
                if job or self.queue.holder("page"):
                    needed_at = time.monotonic()
                if not job:
                    time.sleep(self.poll_s)
        finally:
            self.queue.leave_seat("worker")
        return True

    def do(self, job: Job, act: Act) -> None:
        """Act on one job. Whatever goes wrong is the job's failure, not the worker's."""
        try:
            act(self, job)
        except Exception as error:
            with (job.folder / runs.LOG_FILE).open("a", encoding="utf-8") as log:
                traceback.print_exc(file=log)
            runs.say(job.folder, runs.failure(error, job.folder))
        state = runs.read(job.folder)
        if state.ended:
            self.queue.finish(job, state.status)

    def generate(self, job: Job) -> None:
        """Make images with the engine, which stays open unless it failed."""
        for event in runs.record(self._images(job.folder), job.folder):
            if isinstance(event, Failed):
                self._close_engine()
        self._last_words(job, "the image maker ended without a word")

    def _images(self, folder: Path) -> Iterator[Event]:
        request = ImageRequest.load(folder / runs.SETTINGS_FILE)
        if self.engine is None:
            yield Progress("starting the image maker")
            self.engine = self.make_engine(self.workspace)
        yield from self.engine.generate(request, lambda: runs.stop_asked(folder))

    def attend(self, job: Job) -> None:
        """Have a child process do it, with the device to itself, and see it end."""
        self._close_engine()
        runs.say(job.folder, Progress("starting"))
        arguments = self.command(job.kind, job.folder, self.workspace)
        child = start_detached(arguments, job.folder / runs.LOG_FILE)
        step_back(child.pid)
        who = identity(child.pid) or f"{child.pid}:gone"
        (job.folder / runs.PID_FILE).write_text(who, encoding="utf-8")
        self._attend(job.folder, who)
        self._last_words(job, _death(child.wait()))

    def attend_again(self, job: Job) -> None:
        """Go on attending a child that outlived its worker, or say that it did not."""
        who = _text(job.folder / runs.PID_FILE)
        self._attend(job.folder, who)
        self._last_words(job, "the worker died, and the process of this work with it")

    def generate_again(self, job: Job) -> None:
        """Make the images anew, unless this request seems to be what kills workers."""
        if job.tries < MOST_TRIES:
            for name in (runs.EVENTS_FILE, runs.PID_FILE):
                (job.folder / name).unlink(missing_ok=True)
            self.queue.requeue(job)
            return
        said = f"the worker died {job.tries} times over this request"
        runs.say(job.folder, Failed(said, f"see {self.workspace.worker_log}"))

    def _attend(self, folder: Path, who: str) -> None:
        while alive(who):
            if runs.stop_asked_now(folder):
                end(who)
            time.sleep(self.poll_s)

    def _last_words(self, job: Job, death: str) -> None:
        """What a run that ended without a word should have said. One that has a checkpoint goes on
        from it by itself, once, unless somebody asked it to end."""
        folder = job.folder
        follower = runs.Follower(folder)
        follower.poll()
        state = follower.state  # what the run itself wrote, without what poll makes of a dead one
        if state.ended:
            return
        if runs.stop_asked_now(folder):
            runs.say(folder, Stopped(path=state.result, step=state.step))
            return
        last = f"{death} at step {state.step}" if state.step else death
        ends = runs.stop_asked(folder) or asked(folder, "pause")
        if state.checkpoint is None or ends or job.tries >= MOST_TRIES:
            runs.say(folder, Failed(last, runs.how_to_go_on(state, folder)))
            return
        (folder / runs.PID_FILE).unlink(missing_ok=True)
        self.queue.requeue(job)
        runs.say(folder, Queued())
        said = f"{last}; it goes on from step {state.checkpoint} by itself"
        runs.say(folder, Warned(said, f"if it dies again, it ends; see {folder / runs.LOG_FILE}"))

    def _close_engine(self) -> None:
        if self.engine is not None:
            self.engine.close()


Act = Callable[[Worker, Job], None]


@dataclass(frozen=True)
class Way:
    """How the worker does a job that it has claimed, and one that a dead worker left running."""

    run: Act
    adopt: Act


# In the worker, whose model stays open between requests: it died with the worker, and begins anew.
HERE = Way(Worker.generate, Worker.generate_again)
# In a process of its own, which has the device to itself and gives all of it back: it outlives the
# worker, and the next one has only to wait for its end.
APART = Way(Worker.attend, Worker.attend_again)
WAYS: dict[Kind, Way] = {
    "generate": HERE,
    "train": APART,
    "measure": APART,
    "grid": APART,
    "describe": APART,
}


def _death(code: int) -> str:
    how = f"exit code {code}" if code >= 0 else f"signal {-code}"
    return f"the process died ({how})"


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def main(workspace: Workspace) -> int:
    """Be the workspace's worker; 0 also when there is one already."""
    step_back()
    if not Worker(workspace).run():
        print(f"{workspace.root} has a worker already")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="sdlora worker")
    parser.add_argument("--workspace", required=True)
    sys.exit(main(Workspace.open(parser.parse_args().workspace)))
