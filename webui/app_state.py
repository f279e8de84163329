"""What the tabs stand on: the workspace, its queue, its LoRAs, and the state of every run.

All of it can be read from disk again: a page that dies loses nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from sdlora.errors import ModelError, RunError, SettingsError
from sdlora.events import RunState, SampleReady, Warned
from sdlora.jobs import run_folder
from sdlora.jobs.control_files import REQUESTS, is_requested
from sdlora.jobs.kinds import Kind
from sdlora.jobs.queue import Queue
from sdlora.jobs.supervise import WorkerKeeper, end_now
from sdlora.lora.library.library import Library
from sdlora.messages import Message, readable
from sdlora.models.registry import detect_family
from sdlora.settings.base import Settings
from sdlora.workspace import TRAINING_DATA, Workspace
from webui.lora_details import Loras
from webui.media import Media

RECENT = 12


@dataclass(frozen=True)
class Run:
    """A training, a request for images or other work, as it stands."""

    folder: Path
    state: RunState
    asked: frozenset[str] = frozenset()  # what it has not answered yet, names of REQUESTS

    @property
    def stopping(self) -> bool:
        """True when somebody has asked it to stop."""
        return "stop" in self.asked

    @property
    def name(self) -> str:
        """The folder's name, by which the page knows it."""
        return readable(self.folder.name)

    @property
    def live(self) -> bool:
        """True while there is more to come."""
        return not self.state.ended

    @property
    def version(self) -> str:
        """Another text whenever there is something else to show."""
        s = self.state
        counts = (s.step, s.phase_done, s.ahead, s.checkpoint)
        lengths = tuple(map(len, (s.samples, s.warnings, s.validations, s.captions)))
        signs = (s.silent_s // 5, s.idle_s // 60, s.unreadable, s.error)
        return f"{self.name} {s.status} {s.phase} {counts} {lengths} {signs} {sorted(self.asked)}"


class AppState:
    """One workspace, seen from the page."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.queue = Queue(workspace.database)
        self.library = Library.for_workspace(workspace)
        self.loras = Loras(self.library)
        own = (workspace.outputs, workspace.runs, workspace.datasets)
        self.media = Media((*own, TRAINING_DATA, *workspace.lora_folders))
        self._followers: dict[Path, run_folder.RunFollower] = {}
        self._lock = threading.Lock()
        self.keeper = WorkerKeeper(workspace, self.queue)

    def start(self, settings: Settings) -> Run:
        """Put work into the queue and see that somebody works on it. SettingsError: the workspace
        is not where it was."""
        self.workspace.check_is_there()
        folder = run_folder.start(settings, self.workspace, self.queue)
        self.wake()
        return self.run(folder)

    def resume(self, run: Run, changes: Mapping[str, Any] | None = None) -> None:
        """Let a training go on that ended before its time, or with `changes` of its settings.
        BusyError, RunError, SettingsError: it cannot."""
        run_folder.resume(run.folder, self.queue, changes)
        self.wake()

    def wake(self) -> None:
        """Start the worker, unless it lives or is just starting; replace one that does not answer.
        RunError: the workspace is gone."""
        self.keeper.wake()

    def tend(self, every_s: float, ended: threading.Event) -> None:
        """See until `ended` that somebody works on what waits, also while no browser looks."""
        while not ended.wait(every_s):
            with suppress(RunError):
                if self.queue.busy():
                    self.wake()

    def end_now(self, run: Run) -> None:
        """End a run as it stands, within seconds, whatever its process does."""
        run_folder.stop(run.folder, now=True)
        threading.Thread(target=end_now, args=(run.folder, self.queue), daemon=True).start()

    def run(self, folder: Path) -> Run:
        """A run's state, with its place in the queue; wakes a worker for one that needs it."""
        with self._lock:
            follower = self._followers.get(folder)
            if follower is None:
                follower = self._followers[folder] = run_folder.RunFollower(
                    folder, queue=self.queue
                )
            state = follower.poll()
        if not state.ended:
            with suppress(RunError):
                self.wake()
        return Run(
            folder, state, frozenset(wish for wish in REQUESTS if is_requested(folder, wish))
        )

    def problems(self) -> list[Warned]:
        """What of the workspace cannot be shown, each by its name."""
        left_out = {
            "the picture set": self.workspace.unusable_datasets(),
            "the model": self.workspace.unusable_models(),
        }
        warnings = [
            Warned(
                Message(what + " {name} is left out: its name is not UTF-8", name=name),
                "rename its folder",
            )
            for what, names in left_out.items()
            for name in names
        ]
        if why := self.workspace.unread_lora_folders:
            message = Message("{file} cannot be read: {why}", file="lora_folders.txt", why=why)
            warnings.append(Warned(message, "it names further LoRA folders, a line each"))
        try:
            self.queue.busy()
        except RunError as error:
            warnings.append(Warned(error.message))
        return warnings

    def trainings(self) -> list[Run]:
        """Every training, newest first."""
        folder = self.workspace.runs
        return [self.run(path) for path in run_folder.run_folders(folder)]

    def training(self, name: str | None) -> Run | None:
        """The training of that name; None when there is none."""
        if not name:
            return None
        try:
            return self.run(run_folder.find_run(self.workspace.runs, name))
        except SettingsError:
            return None

    def latest(self, kind: Kind, most: int = RECENT) -> list[Run]:
        """The newest work of a kind, newest first."""
        try:
            jobs = self.queue.latest(kind, most)
        except RunError:  # `problems` tells it
            return []
        return [self.run(job.folder) for job in jobs]

    def going_on(self, kind: Kind) -> Run | None:
        """The newest work of a kind, while there is more to come of it."""
        return next((run for run in self.latest(kind, 1) if run.live), None)

    def key(self, run: Run) -> str:
        """What the page calls a run of any kind: where it lies in the workspace."""
        return self._key(run.folder)

    def _key(self, folder: Path) -> str:
        try:
            return readable(folder.relative_to(self.workspace.root).as_posix())
        except ValueError:  # the queue may say anything
            return readable(str(folder))

    def find(self, key: str) -> Run | None:
        """The run that the page calls so; only one that it has shown is found."""
        folder = next((one for one in [*self._followers] if self._key(one) == key), None)
        return self.run(folder) if folder else None

    def requests(self) -> list[Run]:
        """The newest requests for images, newest first."""
        return self.latest("generate")

    def request(self, name: str) -> Run | None:
        """The request of that name, while it is among the newest."""
        return next((run for run in self.requests() if run.name == name), None)

    def recent_pictures(self, besides: Run | None, most: int = 24) -> list[SampleReady]:
        """The newest images, newest first, without those of one request."""
        shown = [run for run in self.requests() if not besides or run.folder != besides.folder]
        return [picture for run in shown for picture in reversed(run.state.samples)][:most]

    def model_base(self, model: str) -> str:
        """The base that LoRAs have to be for; empty when the model tells only once it is open."""
        try:
            return detect_family(self.workspace.model_source(model or "starter"))
        except ModelError:
            return ""

    def free_name(self, name: str) -> str:
        """`name`, or `name-2`, `name-3` ...: the first that no LoRA has yet."""
        taken = self.loras.names()
        later = (f"{name}-{number}" for number in count(2))
        return name if name not in taken else next(n for n in later if n not in taken)
