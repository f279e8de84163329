"""State that the tabs share: the workspace, its queue, its LoRA files, and the state of every run.

Everything in it is read from disk, so that a restarted page shows the same.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, get_args

from sdlora.assets.checkpoints import CheckpointEntry, CheckpointLibrary
from sdlora.errors import ModelError, RunError, SettingsError
from sdlora.events import RunState, SampleReady, Warned
from sdlora.jobs import run_folder
from sdlora.jobs.control_files import REQUESTS, is_requested
from sdlora.jobs.kinds import Kind, WorkerRole, kind_of, role_of
from sdlora.jobs.queue import Queue
from sdlora.jobs.supervise import WorkerKeeper, end_now
from sdlora.lora.library.library import Library
from sdlora.messages import Message, readable
from sdlora.models.registry import detect_family
from sdlora.settings.base import Settings
from sdlora.workspace import TRAINING_DATA, Workspace
from webui.lora_details import LoraSearch
from webui.media import Media

RECENT = 12
READ_FOR_S = 1.0  # so long an opened page waits for the models' headers
MAX_DOWNLOADS = 50  # newest ones, among which those that have not ended are looked for


@dataclass(frozen=True)
class Run:
    """A run of any kind (training, images, other jobs): its folder and its current state."""

    folder: Path
    state: RunState
    asked: frozenset[str] = frozenset()  # names of REQUESTS that the run has not answered yet

    @property
    def stopping(self) -> bool:
        """True when somebody has asked it to stop."""
        return "stop" in self.asked

    @property
    def name(self) -> str:
        """Name of the run's folder, which identifies the run on the page."""
        return readable(self.folder.name)

    @property
    def live(self) -> bool:
        """True until the run has ended."""
        return not self.state.ended

    @property
    def version(self) -> str:
        """Text that changes whenever the run's card would look different."""
        s = self.state
        counts = (s.step, s.phase_done, s.ahead, s.checkpoint)
        lengths = tuple(map(len, (s.samples, s.warnings, s.validations, s.captions)))
        signs = (s.silent_s // 5, s.idle_s // 60, s.unreadable, s.error)
        return f"{self.name} {s.status} {s.phase} {counts} {lengths} {signs} {sorted(self.asked)}"


class AppState:
    """One workspace as the page shows it."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.queue = Queue(workspace.database)
        self.library = Library.for_workspace(workspace)
        self.loras = LoraSearch(self.library)
        self.models = CheckpointLibrary(workspace)
        self.models_listed = False  # True once somebody has looked at the models' cards
        own = (workspace.outputs, workspace.runs, workspace.datasets)
        self.media = Media((*own, TRAINING_DATA, *workspace.lora_folders, *workspace.model_folders))
        self._followers: dict[Path, run_folder.RunFollower] = {}
        self._lock = threading.Lock()
        self.keeper = WorkerKeeper(workspace, self.queue)
        self.downloads_keeper = WorkerKeeper(workspace, self.queue, role="downloader")

    def start(self, settings: Settings) -> Run:
        """Add a job to the queue and start the worker. SettingsError: the workspace folder is
        gone."""
        self.workspace.check_is_there()
        folder = run_folder.start(settings, self.workspace, self.queue)
        self._wake_role(role_of(kind_of(settings)))
        return self.run(folder)

    def resume(self, run: Run, changes: Mapping[str, Any] | None = None) -> None:
        """Resume a training that ended early, or one with `changes` of its settings. BusyError,
        RunError, SettingsError: it cannot be resumed."""
        run_folder.resume(run.folder, self.queue, changes)
        self.wake()

    def wake(self) -> None:
        """Start the worker unless it is running or starting; replace one that does not answer.
        RunError: the workspace folder is gone."""
        self.keeper.wake()

    def _wake_role(self, role: WorkerRole) -> None:
        """Do the same for the process that takes jobs of a role."""
        if role == "downloader":
            self.downloads_keeper.wake()
        else:
            self.wake()

    def keep_worker_running(self, every_s: float, ended: threading.Event) -> None:
        """Restart the worker as needed, every `every_s` seconds until `ended` is set, also while no
        browser is connected."""
        while not ended.wait(every_s):
            for role in get_args(WorkerRole):
                with suppress(RunError):
                    if self.queue.busy(role):
                        self._wake_role(role)

    def end_now(self, run: Run) -> None:
        """End a run within seconds without waiting for its current step."""
        run_folder.stop(run.folder, now=True)
        threading.Thread(target=end_now, args=(run.folder, self.queue), daemon=True).start()

    def run(self, folder: Path) -> Run:
        """State of a run with its position in the queue; starts the worker if the run has not
        ended."""
        with self._lock:
            poller = self._followers.get(folder)
            if poller is None:
                poller = self._followers[folder] = run_folder.RunFollower(folder, queue=self.queue)
            state = poller.poll()
        if not state.ended:
            with suppress(RunError):
                job = self.queue.job_of(folder)
                self._wake_role(role_of(job.kind) if job else "worker")
        return Run(
            folder, state, frozenset(wish for wish in REQUESTS if is_requested(folder, wish))
        )

    def problems(self) -> list[Warned]:
        """Warnings about parts of the workspace that cannot be shown, one for each."""
        left_out = {
            "the picture set": self.workspace.unusable_datasets(),
            "the model": self.workspace.unusable_models(),
        }
        warnings = [
            Warned(
                Message(thing + " {name} is left out: its name is not UTF-8", name=name),
                "rename its folder",
            )
            for thing, names in left_out.items()
            for name in names
        ]
        for file, reason in self.workspace.unread_lists().items():
            message = Message("{file} cannot be read: {why}", file=file, why=reason)
            warnings.append(Warned(message, "it names further folders, a line each"))
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

    def latest(self, kind: Kind, limit: int = RECENT) -> list[Run]:
        """The newest runs of a kind, newest first."""
        try:
            jobs = self.queue.latest(kind, limit)
        except RunError:  # reported by `problems`
            return []
        return [self.run(job.folder) for job in jobs]

    def downloads(self, max_ended: int, since: float) -> list[Run]:
        """Downloads that have not ended, and the newest others that were asked for after `since`,
        newest first; of those with the same settings the newest."""
        newest: dict[bytes, Run] = {}
        ended = 0
        for run in self.latest("download", MAX_DOWNLOADS):
            file = run.folder / run_folder.SETTINGS_FILE
            with suppress(OSError):
                key, asked_at = file.read_bytes(), file.stat().st_mtime
                if key in newest or not (run.live or (asked_at >= since and ended < max_ended)):
                    continue
                newest[key] = run
                ended += not run.live
        return [*newest.values()]

    def live_run(self, kind: Kind) -> Run | None:
        """The newest run of a kind unless it has ended."""
        return next((run for run in self.latest(kind, 1) if run.live), None)

    def key(self, run: Run) -> str:
        """Key of a run of any kind on the page: its path within the workspace."""
        return self._key(run.folder)

    def _key(self, folder: Path) -> str:
        try:
            return readable(folder.relative_to(self.workspace.root).as_posix())
        except ValueError:  # the queue may say anything
            return readable(str(folder))

    def find(self, key: str) -> Run | None:
        """The run with that key, among those that the page has shown; else None."""
        folder = next((path for path in [*self._followers] if self._key(path) == key), None)
        return self.run(folder) if folder else None

    def requests(self) -> list[Run]:
        """The newest requests for images, newest first."""
        return self.latest("generate")

    def request(self, name: str) -> Run | None:
        """The request of that name, while it is among the newest."""
        return next((run for run in self.requests() if run.name == name), None)

    def recent_pictures(self, besides: Run | None, limit: int = 24) -> list[SampleReady]:
        """The newest images, newest first, without those of the request `besides`."""
        shown = [run for run in self.requests() if not besides or run.folder != besides.folder]
        return [picture for run in shown for picture in reversed(run.state.samples)][:limit]

    def model_base(self, model: str) -> str:
        """Architecture that LoRAs must be for; empty when it is known only once the model is
        loaded."""
        try:
            return detect_family(self.workspace.model_source(model or "starter"))
        except ModelError:
            return ""

    def usable_models(self) -> list[CheckpointEntry]:
        """Models that can be used, the starter first; empty while their headers are being read for
        the first time, which takes seconds where there are thousands."""
        listed: list[CheckpointEntry] = []
        reader = threading.Thread(target=lambda: listed.extend(self.models.list()), daemon=True)
        reader.start()
        reader.join(READ_FOR_S)
        entries = [] if reader.is_alive() else listed
        return [e for e in entries if not e.problem and readable(e.name) == e.name]

    def free_name(self, name: str) -> str:
        """`name`, or the first of `name-2`, `name-3` ... that no LoRA has yet."""
        taken = self.loras.names()
        later = (f"{name}-{number}" for number in count(2))
        return name if name not in taken else next(n for n in later if n not in taken)
