"""Beside Resume: more steps for a finished training, other pictures for one whose own are gone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from sdlora.errors import SdloraError, SettingsError
from sdlora.jobs import run_folder
from sdlora.jobs.resume import read_changes
from sdlora.messages import Message, Setting
from sdlora.settings.train import TrainSettings
from webui import dataset_upload, fields
from webui.app_state import AppState, Run
from webui.markup import sentence
from webui.notice import Updates

NO_NUMBER = (
    "{setting} = {given!r}: a whole number is expected, of all steps together; the training has "
    "taken {done}"
)


class ResumeOptions:
    """The components, each on the page only where a training can make use of it."""

    def __init__(self) -> None:
        self.pictures = gr.Dropdown(
            [], label="Pictures to resume with", visible=False, elem_id="resume-pictures"
        )
        with gr.Row(visible=False, elem_classes="row-fields more") as self.place:
            self.steps = fields.component(
                TrainSettings, "steps", compact=True, label="Steps in all", min_width=110,
                elem_id="steps-in-all",
            )  # fmt: skip
            self.more = gr.Button("More steps", elem_id="more-steps")

    @property
    def views(self) -> list[Component]:
        """What changes with the training on screen."""
        return [self.pictures, self.place, self.steps]

    def show(self, studio: AppState, run: Run | None) -> Updates:
        """Updates for the training on screen."""
        can_go_on = run is not None and run.state.status == "done" and run.state.checkpoint
        gone = missing_pictures(run) if run and run.state.ended else None
        asks = gone is not None and (can_go_on or (run and run.state.status != "done"))
        info = "{folder} is not there any more; choose where its pictures are now"
        return {
            self.place: gr.Row(visible=bool(can_go_on)),
            self.steps: str(2 * run.state.step) if run and can_go_on else "",
            self.pictures: gr.Dropdown(
                sorted(studio.workspace.dataset_folders()) if asks else [],
                value=None,
                info=fields.plain(sentence(Message(info, folder=gone))) if gone and asks else None,
                visible=bool(asks),
            ),
        }

    def moved(self, studio: AppState, sent: Mapping[Component, Any]) -> dict[str, Any]:
        """The pictures that were chosen in place of those that are gone, as a change of settings.
        DataError: they are none of the sets."""
        chosen = sent[self.pictures]
        return {"data": dataset_upload.named(studio.workspace, chosen)} if chosen else {}

    def longer(self, run: Run, sent: Mapping[Component, Any]) -> dict[str, Any]:
        """The length that was asked for, as a change of settings. SettingsError: it is none."""
        steps = fields.parsed_field(sent[self.steps])
        if not isinstance(steps, int):
            given = "" if steps is None else str(steps)
            raise SettingsError(
                NO_NUMBER, setting=Setting("steps"), given=given[:80], done=run.state.step
            )
        return {"steps": steps}


def missing_pictures(run: Run) -> Path | None:
    """The folder that a training would resume with, where it is gone; else None."""
    try:
        settings = TrainSettings.load(run.folder / run_folder.SETTINGS_FILE)
        data = str(read_changes(run.folder).get("data", settings.data))
    except SdloraError:
        return None  # Resume says what is wrong
    named = [Path(text).expanduser() for text in (data, data.rpartition("*")[2])]
    return None if any(folder.exists() for folder in named) else named[-1]
