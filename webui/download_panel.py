"""Downloads of models on the page: a field for what to download, and a card for each download.

The queue holds them, so that every tab and every newly opened page shows the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from sdlora.errors import DownloadError, ModelError, SdloraError
from sdlora.jobs import run_folder
from sdlora.settings.download import DownloadSettings
from webui import markup
from webui.app_state import AppState, Run
from webui.job_poller import JobPoller
from webui.markup import esc
from webui.model_cards import model_problem
from webui.notice import Notice, Updates
from webui.widgets import QUICK, html

SHOWN_FOR_S = 86_400  # so long a download that has ended stays on the page
MAX_ENDED = 3
HINT = (
    "A name of Hugging Face (owner/name), a page of Civitai, or the address of a .safetensors file"
)
STAYS = "What has come stays; the same download goes on from there."


class DownloadPanel:
    """Components of the downloads in one place, built where they stand. `chosen_id` is the id of
    the hidden field that chooses a model."""

    def __init__(self, app_state: AppState, place: str, chosen_id: str) -> None:
        self.app_state, self.chosen_id = app_state, chosen_id
        self.asked_id = f"{place}-download-asked"
        with gr.Accordion("Download a model", open=False, elem_id=f"{place}-download") as self.fold:
            self.source = gr.Textbox(
                label="What to download", info=HINT, max_lines=1,
                elem_id=f"{place}-download-source",
            )  # fmt: skip
            self.button = gr.Button("Download", size="sm", elem_id=f"{place}-download-start")
            self.notice = Notice(f"{place}-download-notice")
            self.cards = html(elem_id=f"{place}-downloads")
        # the page's script puts `number verb key` of a pressed button here
        self.asked = gr.Textbox(label="Download", elem_classes="unseen", elem_id=self.asked_id)

    def show(self, runs: Sequence[Run]) -> Updates:
        """Updates that show these downloads."""
        return {self.cards: "".join(map(self._card, runs))}

    def _card(self, run: Run) -> str:
        try:
            settings = DownloadSettings.load(run.folder / run_folder.SETTINGS_FILE)
            title = settings.source
        except SdloraError:  # of another version
            title = run.name
        title = title if len(title) <= 100 else f"{title[:97]}…"
        status, key = run.state.status, self.app_state.key(run)
        if run.live:
            label = "Stop at once" if run.stopping else "Stop"
            below = self._button(label, self.asked_id, f"stop {key}")
        elif status == "done":
            below = self._result(run)
        else:
            hint = f'<p class="line">{STAYS}</p>' if status == "stopped" else ""
            label = "Go on" if status == "stopped" else "Try again"
            below = hint + self._button(label, self.asked_id, f"again {key}")
        return markup.run_card(run, title, below)

    def _result(self, run: Run) -> str:
        """Place of what was downloaded, and a button that chooses it where it is a model."""
        path, space = Path(run.state.result), self.app_state.workspace
        if not os.path.lexists(path):
            return '<p class="line">It is not there any more.</p>'
        folder = path.parent.name
        saved = f'<p class="line">Saved as {esc(path.name)} in {esc(folder)}/.</p>'
        if path.parent != space.models:
            return saved
        try:
            entry = self.app_state.models.find(str(path))
        except ModelError as error:
            return saved + model_problem(error.message)
        if entry.problem:
            return saved + model_problem(entry.problem)
        return saved + self._button("Use it", self.chosen_id, entry.name)

    def _button(self, label: str, to: str, value: str) -> str:
        return (
            f'<p class="buttons"><button type="button" data-send="{esc(to)}" '
            f'data-value="{esc(value)}">{esc(label)}</button></p>'
        )


class PageDownloads:
    """Downloads of a page: what is started in one of its panels is shown in all. `done` is a
    hidden field that changes when a download is done."""

    def __init__(self, app_state: AppState, *panels: DownloadPanel) -> None:
        self.app_state, self.panels = app_state, panels
        self.seen = gr.State("")
        # a field, for the change of a State is heard of Gradio's own queue alone
        self.done = gr.Textbox(label="Done", elem_classes="unseen", elem_id="downloads-done")
        self.timer = gr.Timer(1.0, active=False)
        self._poller = JobPoller(app_state, app_state.find, lambda run: {})
        self._wire()

    @property
    def views(self) -> list[Component]:
        """Components that change when a download does."""
        return [*(panel.cards for panel in self.panels), self.seen, self.done, self.timer]

    @property
    def folds(self) -> list[Component]:
        """Components that are open while something comes, when the page is opened."""
        return [panel.fold for panel in self.panels]

    def show(self) -> Updates:
        """Updates that show all downloads as they are now."""
        runs = self.app_state.downloads(MAX_ENDED, time.time() - SHOWN_FOR_S)
        cards = {part: shown for panel in self.panels for part, shown in panel.show(runs).items()}
        return {
            **cards,
            self.seen: " ".join(run.version for run in runs),
            self.done: " ".join(run.name for run in runs if run.state.status == "done"),
            self.timer: gr.Timer(active=any(run.live for run in runs)),
        }

    def opened(self) -> Updates:
        """Updates for a newly opened page."""
        is_live = self.app_state.live_run("download") is not None
        folds = {fold: gr.Accordion(open=True) for fold in self.folds if is_live}
        return {**self.show(), **folds}

    def start(self, source: str | None) -> None:
        """Add a download to the queue. SdloraError: it cannot start."""
        if not (source or "").strip():
            raise DownloadError("name what to download: owner/name, or the address of a page")
        self._poller.start(DownloadSettings.from_values({"source": source}))

    def act(self, asked: str) -> None:
        """Stop a download, or go on with one: what the `number verb key` of a button asks for.
        SdloraError: it is not there any more."""
        _, verb, key = f"{asked}  ".split(" ", 2)
        run = self.app_state.find(key.strip())
        if run is None:
            raise DownloadError("this download is not there any more; open the page again")
        if verb == "stop":
            self._poller.stop(key.strip())
        elif run.state.ended:
            self._poller.start(DownloadSettings.load(run.folder / run_folder.SETTINGS_FILE))

    def _wire(self) -> None:
        for panel in self.panels:
            outputs = [panel.source, *self.views]
            for event in (panel.button.click, panel.source.submit):
                panel.notice.answer(event, partial(self._started, panel), [panel.source], outputs)
            panel.notice.answer(panel.asked.change, self._acted, [panel.asked], self.views)
        self.timer.tick(self._tick, [self.seen], self.views, **QUICK)

    def _started(self, panel: DownloadPanel, source: str) -> Updates:
        self.start(source)
        return {panel.source: "", **self.show()}

    def _acted(self, asked: str) -> Updates:
        self.act(asked)
        return self.show()

    def _tick(self, seen: str) -> Any:
        updates = self.show()
        return gr.skip() if updates[self.seen] == seen else updates
