"""Polling of one run for a tab: start it, refresh the screen while it runs, stop it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from sdlora.errors import BusyError, SettingsError
from sdlora.jobs import run_folder
from sdlora.jobs.kinds import KINDS, Kind, kind_of
from sdlora.messages import Message
from sdlora.settings.base import Settings
from sdlora.training.startable import check_startable
from webui import markup
from webui.app_state import AppState, Run
from webui.notice import Reply, Updates

MAX_COMPARED = 50  # newest jobs that a new one is compared with


@dataclass(frozen=True)
class JobPoller:
    """Start, refresh and stop of the runs on a tab. `find` returns the run of a name, `view` the
    updates that show it."""

    app_state: AppState
    find: Callable[[str], Run | None]
    view: Callable[[Run | None], Updates]
    _starting: Any = field(default_factory=threading.Lock)

    def start(
        self,
        settings: Settings,
        requested_name: str = "",
        card: str = "",
        before_start: Callable[[], None] = lambda: None,
    ) -> Reply:
        """Add a job to the queue and report it. `requested_name`: the name asked for; `card`: id of
        the element that shows the run; `before_start` is called once the settings are accepted.
        SettingsError: it cannot start; BusyError: the same job is queued or running, as after a
        second click."""
        with self._starting:
            check_startable(settings, self.app_state.workspace)
            if same := self._same_job(settings):
                template = _ALREADY_QUEUED.get(kind_of(settings), "the same {state} already")
                state = _STATES[same.state.status]
                raise BusyError(Message(template, state=state, name=same.name))
            before_start()
            run = self.app_state.start(settings)
        return Reply(self.view(run), markup.queued(run, requested_name, card))

    def _same_job(self, settings: Settings) -> Run | None:
        """Live run with the same settings; None for a job that draws a random seed."""
        if getattr(settings, "seed", 0) < 0:
            return None
        kind, given = kind_of(settings), settings.given()
        live = (run for run in self.app_state.latest(kind, MAX_COMPARED) if run.live)
        return next((run for run in live if _given(run, KINDS[kind].settings) == given), None)

    def tick(self, name: str, seen: str = "") -> Any:
        """Updates that show the run as it is now; nothing when the screen shows version `seen`."""
        run = self.find(name)
        return gr.skip() if run and run.version == seen else self.view(run)

    def stop(self, name: str) -> Updates:
        """Ask a run to stop after its step; when that was asked before, end it at once."""
        run = self.find(name)
        if run and run.stopping:
            self.app_state.end_now(run)
        elif run and run.live:
            run_folder.cancel(run.folder, self.app_state.queue)
        return self.view(self.find(name))


_ALREADY_QUEUED: dict[Kind, str] = {
    "train": "this training exists as {name!r} and {state} already, with the same settings; "
    "change one of them to queue another",
    "generate": "this request {state} already, with the same settings and seed; change one of them "
    "to queue another",
}
_STATES = {"queued": "waits in the queue", "loading": "is getting ready", "running": "is running"}


def _given(run: Run, kind: type[Settings]) -> dict[str, Any] | None:
    try:
        return kind.load(run.folder / run_folder.SETTINGS_FILE).given()
    except SettingsError:
        return None
