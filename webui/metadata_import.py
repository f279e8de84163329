"""A picture's own settings on the page: of one that was dropped, or of one that is shown."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
from gradio.components import Component

from sdlora.errors import DataError
from sdlora.image_metadata.a1111 import ImageMetadata
from sdlora.image_metadata.reader import parse_infotext, read_parameters
from sdlora.image_metadata.to_request import request_of
from webui import markup
from webui.app_state import AppState
from webui.form import Form
from webui.notice import Notice, Reply
from webui.uploads import discard

KINDS = [".png", ".jpg", ".jpeg", ".webp"]


class MetadataImporter:
    """The components, built where it stands. The page's script hands it what is dropped anywhere
    on the page, and the token of a picture whose settings are wanted. `offer` is a button to take
    the settings of the text in the prompt, shown while it has some."""

    def __init__(self, notice: Notice, offer: Component) -> None:
        self.notice, self.offer = notice, offer
        self.file = gr.UploadButton(
            "Settings of a picture", size="sm", file_types=KINDS, elem_id="picture-file"
        )
        self.token = gr.Textbox(label="Picture", elem_classes="unseen", elem_id="picture-token")

    def wire(self, studio: AppState, form: Form) -> None:
        """Bring what a picture says into the form, and what is missing into the notice."""
        parts = [*form.fields.values()]

        def dropped(path: str | None) -> Reply:
            picture = Path(path) if path else None
            try:
                return restore(studio, form, picture)
            finally:
                discard(filter(None, [picture]), studio.workspace.uploads)

        def wanted(said: str) -> Reply:
            return restore(studio, form, studio.media.path(said.partition(" ")[0]))

        def pasted(text: str | None) -> Reply:
            return taken_over(studio, form, parse_infotext(text or ""), "this text")

        click = self.offer.click  # type: ignore[attr-defined]
        self.notice.answer(click, pasted, [form.fields["prompt"]], parts)
        self.notice.answer(self.file.upload, dropped, [self.file], parts)
        self.notice.answer(self.token.change, wanted, [self.token], parts)


def restore(studio: AppState, form: Form, picture: Path | None) -> Reply:
    """Updates that set what the picture says of its making, and what of it is not here. DataError:
    it says nothing."""
    if picture is None:
        raise DataError("the picture is not there any more")
    return taken_over(studio, form, read_parameters(picture), picture.name)


def taken_over(studio: AppState, form: Form, recalled: ImageMetadata, source: str) -> Reply:
    """Updates that set what was recalled from `source`, and what of it is not here."""
    values, problems = request_of(recalled, studio.library, studio.workspace)
    return Reply(dict(form.change(values)), markup.restored(source, problems))


def reads_as_settings(text: str) -> bool:
    """True for a text that says how a picture was made, as programs write it into pictures."""
    recalled = parse_infotext(text)
    return bool(recalled.fields or recalled.details)
