"""A run on a tab: started, kept on screen while it goes on, stopped."""

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

MOST_COMPARED = 50  # jobs that a new one may be the same as


@dataclass(frozen=True)
class JobPoller:
    """What is done with every run on a tab; `find` knows it by name, `view` brings it on screen,
    `marks` makes what marks the fields that an error names."""

    studio: AppState
    find: Callable[[str], Run | None]
    view: Callable[[Run | None], Updates]
    _starting: Any = field(default_factory=threading.Lock)

    def start(
        self,
        settings: Settings,
        wish: str = "",
        card: str = "",
        first: Callable[[], None] = lambda: None,
    ) -> Reply:
        """Put work into the queue and say so; `wish` is the name that it was to have, `card` the
        element that shows it, `first` what is done before, once nothing is wrong. SdloraError: it
        could not begin; BusyError: the very same waits or runs, as after a second click."""
        with self._starting:
            check_startable(settings, self.studio.workspace)
            if twin := self._twin(settings):
                template = _TWINS.get(kind_of(settings), "the same {state} already")
                state = _STATES[twin.state.status]
                raise BusyError(Message(template, state=state, name=twin.name))
            first()
            run = self.studio.start(settings)
        return Reply(self.view(run), markup.queued(run, wish, card))

    def _twin(self, settings: Settings) -> Run | None:
        """The live run with these very settings; one that draws a seed is like no other."""
        if getattr(settings, "seed", 0) < 0:
            return None
        kind, given = kind_of(settings), settings.given()
        live = (run for run in self.studio.latest(kind, MOST_COMPARED) if run.live)
        return next((run for run in live if _given(run, KINDS[kind].settings) == given), None)

    def tick(self, name: str, seen: str = "") -> Any:
        """The run as it is now, unless the screen has `seen` just that."""
        run = self.find(name)
        return gr.skip() if run and run.version == seen else self.view(run)

    def stop(self, name: str) -> Updates:
        """Ask a run to end after its step; when that was asked already, end it at once."""
        run = self.find(name)
        if run and run.stopping:
            self.studio.end_now(run)
        elif run and run.live:
            run_folder.cancel(run.folder, self.studio.queue)
        return self.view(self.find(name))


_TWINS: dict[Kind, str] = {
    "train": "this training is there as {name!r} and {state} already, with the same settings "
    "throughout; change one of them to queue another",
    "generate": "this request {state} already, with the same settings and seed; change one of them "
    "to queue another",
}
_STATES = {"queued": "waits in the queue", "loading": "is getting ready", "running": "is running"}


def _given(run: Run, kind: type[Settings]) -> dict[str, Any] | None:
    try:
        return kind.load(run.folder / run_folder.SETTINGS_FILE).given()
    except SettingsError:
        return None
