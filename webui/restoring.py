"""A picture's own settings on the page: of one that was dropped, or of one that is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from sdlora.errors import DataError
from sdlora.prompt import parse_infotext, read_parameters
from sdlora.prompt.recalled import Recalled
from sdlora.prompt.restore import request_of
from webui import markup
from webui.form import Form
from webui.parts import QUICK
from webui.studio import Studio

KINDS = [".png", ".jpg", ".jpeg", ".webp"]


class Restorer:
    """The components, built where it stands. The page's script hands it what is dropped anywhere
    on the page, and the token of a picture whose settings are wanted. `offer` is a button to take
    the settings of the text in the prompt, shown while it has some."""

    def __init__(self, offer: Component) -> None:
        self.offer = offer
        self.file = gr.UploadButton(
            "Settings of a picture", size="sm", file_types=KINDS, elem_id="picture-file"
        )
        self.token = gr.Textbox(label="Picture", elem_classes="unseen", elem_id="picture-token")

    def wire(self, studio: Studio, form: Form, notice: Component) -> None:
        """Bring what a picture says into the form, and what is missing into the notice."""
        outputs = [notice, *form.fields.values()]

        def dropped(path: str | None) -> dict[Component, Any]:
            return restore(studio, form, notice, Path(path) if path else None)

        def wanted(said: str) -> dict[Component, Any]:
            return restore(studio, form, notice, studio.media.path(said.partition(" ")[0]))

        def pasted(text: str | None) -> dict[Component, Any]:
            return taken_over(studio, form, notice, parse_infotext(text or ""), "this text")

        prompt = form.fields["prompt"]
        self.offer.click(pasted, [prompt], outputs, **QUICK)  # type: ignore[attr-defined]
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
    return taken_over(studio, form, notice, recalled, picture.name)


def taken_over(
    studio: Studio, form: Form, notice: Component, recalled: Recalled, source: str
) -> dict[Component, Any]:
    """Updates that set what was recalled from `source`, and tell what of it is not here."""
    values, problems = request_of(recalled, studio.library, studio.workspace)
    return {**form.change(values), notice: markup.restored(source, problems)}


def reads_as_settings(text: str) -> bool:
    """True for a text that says how a picture was made, as programs write it into pictures."""
    recalled = parse_infotext(text)
    return bool(recalled.fields or recalled.details)
