"""A picture's own settings on the page: of one that was dropped, or of one that is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from sdlora.errors import DataError
from sdlora.prompt import read_parameters
from sdlora.prompt.restore import request_of
from webui import markup
from webui.form import Form
from webui.parts import QUICK
from webui.studio import Studio
from webui.uploads import discard

KINDS = [".png", ".jpg", ".jpeg", ".webp"]


class Restorer:
    """The components, built where it stands. The page's script hands it what is dropped anywhere
    on the page, and the token of a picture whose settings are wanted."""

    def __init__(self) -> None:
        self.file = gr.UploadButton(
            "Settings of a picture", size="sm", file_types=KINDS, elem_id="picture-file"
        )
        self.token = gr.Textbox(label="Picture", elem_classes="unseen", elem_id="picture-token")

    def wire(self, studio: Studio, form: Form, notice: Component) -> None:
        """Bring what a picture says into the form, and what is missing into the notice."""
        outputs = [notice, *form.fields.values()]

        def dropped(path: str | None) -> dict[Component, Any]:
            picture = Path(path) if path else None
            try:
                return restore(studio, form, notice, picture)
            finally:
                discard(filter(None, [picture]), studio.workspace.uploads)

        def wanted(said: str) -> dict[Component, Any]:
            return restore(studio, form, notice, studio.media.path(said.partition(" ")[0]))

        self.file.upload(dropped, [self.file], outputs, **QUICK)
        self.token.change(wanted, [self.token], outputs, **QUICK)


def restore(
    studio: Studio, form: Form, notice: Component, picture: Path | None
) -> dict[Component, Any]:
    """Updates that set what the picture says of its making, and tell what of it is not here."""
    if picture is None:
        return {notice: markup.problem("the picture is not there any more")}
    try:
        recalled = read_parameters(picture)
    except DataError as error:
        return {notice: markup.problem(error.message)}
    values, problems = request_of(recalled, studio.library, studio.workspace)
    return {**form.change(values), notice: markup.restored(picture.name, problems)}
