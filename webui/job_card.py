"""Card of a job besides training and images: progress while it runs, its result, a button to
cancel."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gradio as gr
from gradio.components import Component

from sdlora.jobs import run_folder
from sdlora.jobs.kinds import KINDS, Kind
from sdlora.settings.base import Settings
from webui import markup
from webui.app_state import AppState, Run
from webui.job_poller import JobPoller
from webui.notice import Notice, Updates
from webui.widgets import QUICK, html

TITLES: dict[Kind, str] = {
    "measure": "Measuring time and memory",
    "grid": "Generating the comparison",
    "describe": "Captioning pictures",
}


class JobCard:
    """Components for one kind of job, built where they stand. `result` gives the HTML of a run's
    result so far; `beside` gives updates of other components that depend on it."""

    def __init__(
        self,
        app_state: AppState,
        kind: Kind,
        result: Callable[[Run], str],
        beside: Callable[[Run | None], Updates] = lambda run: {},
    ) -> None:
        self.app_state, self.kind, self.result, self.beside = app_state, kind, result, beside
        self.notice = Notice(f"{kind}-notice")
        self.card = html(elem_id=f"{kind}-card")
        self.cancel = gr.Button("Cancel", size="sm", visible=False, elem_id=f"{kind}-cancel")
        self.shown, self.seen = gr.State(""), gr.State("")
        self.timer = gr.Timer(1.0, active=False)
        self._poller = JobPoller(app_state, app_state.find, self.show)

    @property
    def views(self) -> list[Component]:
        """Components that change when the job does."""
        return [self.card, self.cancel, self.shown, self.seen, self.timer]

    def wire(self, *beside: Component) -> None:
        """Poll the run on screen; `beside` are the components that `beside` updates."""
        tick, views = self._poller.tick, [*self.views, *beside]
        self.timer.tick(tick, [self.shown, self.seen], views, **QUICK)
        self.notice.answer(self.cancel.click, self._poller.stop, [self.shown], views)

    def start(self, settings: Settings) -> Updates:
        """Add the job to the queue. SettingsError: it cannot start."""
        cancel_others = partial(self._cancel_others, settings)
        return self._poller.start(
            settings, before_start=cancel_others
        ).updates  # the card shows what a notice would

    def _cancel_others(self, settings: Settings) -> None:
        """Cancel live runs of the same kind in the same folder, for the screen shows one."""
        place = KINDS[self.kind].default_folder(settings, self.app_state.workspace).parent
        for run in self.app_state.latest(self.kind):
            if run.live and run.folder.parent == place:
                run_folder.cancel(run.folder, self.app_state.queue)

    def show(self, run: Run | None) -> Updates:
        """Updates that show a run of this kind; None: nothing."""
        if run is None:
            off = {self.card: "", self.cancel: gr.Button(visible=False)}
            return {**off, **self._polling_updates(None), **self.beside(None)}
        card = "" if run.state.status == "done" else markup.run_card(run, TITLES[self.kind])
        button_label = "Cancel at once" if run.stopping else "Cancel"
        return {
            self.card: card + self.result(run),
            self.cancel: gr.Button(button_label, visible=run.live),
            **self._polling_updates(run),
            **self.beside(run),
        }

    def _polling_updates(self, run: Run | None) -> dict[Any, Any]:
        return {
            self.shown: self.app_state.key(run) if run else "",
            self.seen: run.version if run else "",
            self.timer: gr.Timer(active=bool(run and run.live)),
        }
