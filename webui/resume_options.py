"""Options beside Resume: more steps for a finished training, another folder for one whose pictures
are gone."""

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

NOT_A_NUMBER = (
    "{setting} = {given!r}: a whole number is expected, the total of the steps; the training has "
    "taken {done}"
)


class ResumeOptions:
    """Components of the options, each visible only where the training can use it."""

    def __init__(self) -> None:
        self.pictures = gr.Dropdown(
            [], label="Pictures to resume with", visible=False, elem_id="resume-pictures"
        )
        with gr.Row(visible=False, elem_classes="row-fields more") as self.place:
            self.steps = fields.component(
                TrainSettings, "steps", compact=True, label="Total steps", min_width=110,
                elem_id="steps-in-all",
            )  # fmt: skip
            self.more = gr.Button("More steps", elem_id="more-steps")

    @property
    def views(self) -> list[Component]:
        """Components that change with the training on screen."""
        return [self.pictures, self.place, self.steps]

    def show(self, app_state: AppState, run: Run | None) -> Updates:
        """Updates for the training on screen."""
        can_go_on = run is not None and run.state.status == "done" and run.state.checkpoint
        gone = missing_pictures(run) if run and run.state.ended else None
        asks = gone is not None and (can_go_on or (run and run.state.status != "done"))
        info = "{folder} is not there any more; choose where its pictures are now"
        return {
            self.place: gr.Row(visible=bool(can_go_on)),
            self.steps: str(2 * run.state.step) if run and can_go_on else "",
            self.pictures: gr.Dropdown(
                sorted(app_state.workspace.dataset_folders()) if asks else [],
                value=None,
                info=sentence(Message(info, folder=gone)) if gone and asks else None,
                visible=bool(asks),
            ),
        }

    def changed_data(self, app_state: AppState, sent: Mapping[Component, Any]) -> dict[str, Any]:
        """The set chosen in place of the missing pictures, as changed settings; {} where none is.
        DataError: it is not one of the sets."""
        chosen = sent[self.pictures]
        return {"data": dataset_upload.set_path(app_state.workspace, chosen)} if chosen else {}

    def changed_steps(self, run: Run, sent: Mapping[Component, Any]) -> dict[str, Any]:
        """The number of steps asked for, as changed settings. SettingsError: it is not a whole
        number."""
        steps = fields.parse_field(sent[self.steps])
        if not isinstance(steps, int):
            given = "" if steps is None else str(steps)
            raise SettingsError(
                NOT_A_NUMBER, setting=Setting("steps"), given=given[:80], done=run.state.step
            )
        return {"steps": steps}


def missing_pictures(run: Run) -> Path | None:
    """Folder of the pictures of a training, where it is gone; else None."""
    try:
        settings = TrainSettings.load(run.folder / run_folder.SETTINGS_FILE)
        data = str(read_changes(run.folder).get("data", settings.data))
    except SdloraError:
        return None  # resuming reports the error
    named = [Path(text).expanduser() for text in (data, data.rpartition("*")[2])]
    return None if any(folder.exists() for folder in named) else named[-1]
