"""Work beside trainings and pictures: its card while it goes on, what came of it, a way to stop."""

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
    "grid": "Drawing the comparison",
    "describe": "Describing pictures",
}


class JobCard:
    """The components of one kind of work, built where they stand. `result` is the HTML of what a
    run has brought so far; `beside` are updates of what else depends on it."""

    def __init__(
        self,
        studio: AppState,
        kind: Kind,
        result: Callable[[Run], str],
        beside: Callable[[Run | None], Updates] = lambda run: {},
    ) -> None:
        self.studio, self.kind, self.result, self.beside = studio, kind, result, beside
        self.notice = Notice(f"{kind}-notice")
        self.card = html(elem_id=f"{kind}-card")
        self.cancel = gr.Button("Cancel", size="sm", visible=False, elem_id=f"{kind}-cancel")
        self.shown, self.seen = gr.State(""), gr.State("")
        self.timer = gr.Timer(1.0, active=False)
        self._follower = JobPoller(studio, studio.find, self.show)

    @property
    def views(self) -> list[Component]:
        """What changes when this work does."""
        return [self.card, self.cancel, self.shown, self.seen, self.timer]

    def wire(self, *beside: Component) -> None:
        """Follow what is on screen, and all that depends on it."""
        tick, views = self._follower.tick, [*self.views, *beside]
        self.timer.tick(tick, [self.shown, self.seen], views, **QUICK)
        self.notice.answer(self.cancel.click, self._follower.stop, [self.shown], views)

    def start(self, settings: Settings) -> Updates:
        """Put it into the queue. SdloraError: it could not begin."""
        first = partial(self._end_others, settings)
        return self._follower.start(settings, first=first).updates  # its card says the rest

    def _end_others(self, settings: Settings) -> None:
        """End what goes on of the same, for the screen shows one."""
        place = KINDS[self.kind].default_folder(settings, self.studio.workspace).parent
        for run in self.studio.latest(self.kind):
            if run.live and run.folder.parent == place:
                run_folder.cancel(run.folder, self.studio.queue)

    def show(self, run: Run | None) -> Updates:
        """Updates that bring a run of this kind onto the screen; None: nothing."""
        if run is None:
            off = {self.card: "", self.cancel: gr.Button(visible=False)}
            return {**off, **self._following(None), **self.beside(None)}
        card = "" if run.state.status == "done" else markup.run_card(run, TITLES[self.kind])
        words = "Cancel at once" if run.stopping else "Cancel"
        return {
            self.card: card + self.result(run),
            self.cancel: gr.Button(words, visible=run.live),
            **self._following(run),
            **self.beside(run),
        }

    def _following(self, run: Run | None) -> dict[Any, Any]:
        return {
            self.shown: self.studio.key(run) if run else "",
            self.seen: run.version if run else "",
            self.timer: gr.Timer(active=bool(run and run.live)),
        }
