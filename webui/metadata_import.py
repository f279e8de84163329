"""Import of generation settings from a picture: one that was dropped, or one on the page."""

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
    """Components of the import, built where it stands. The page's script hands over files dropped
    anywhere on the page, and the token of a picture whose settings are to be used. `offer` is a
    button to import the settings of the text in the prompt, visible while it has some."""

    def __init__(self, notice: Notice, offer: Component) -> None:
        self.notice, self.offer = notice, offer
        self.file = gr.UploadButton(
            "Import settings from a picture", size="sm", file_types=KINDS, elem_id="picture-file"
        )
        self.token = gr.Textbox(label="Picture", elem_classes="unseen", elem_id="picture-token")

    def wire(self, app_state: AppState, form: Form) -> None:
        """Put the imported settings into the form, and what is missing into the notice."""
        parts = [*form.fields.values()]

        def from_file(path: str | None) -> Reply:
            picture = Path(path) if path else None
            try:
                return import_picture(app_state, form, picture)
            finally:
                discard(filter(None, [picture]), app_state.workspace.uploads)

        def from_shown_picture(token: str) -> Reply:
            return import_picture(app_state, form, app_state.media.path(token.partition(" ")[0]))

        def from_prompt(text: str | None) -> Reply:
            return apply_metadata(app_state, form, parse_infotext(text or ""), "this text")

        click = self.offer.click
        self.notice.answer(click, from_prompt, [form.fields["prompt"]], parts)
        self.notice.answer(self.file.upload, from_file, [self.file], parts)
        self.notice.answer(self.token.change, from_shown_picture, [self.token], parts)


def import_picture(app_state: AppState, form: Form, picture: Path | None) -> Reply:
    """Updates that set a picture's generation settings, and a notice of what is missing here.
    DataError: it has none."""
    if picture is None:
        raise DataError("the picture is not there any more")
    return apply_metadata(app_state, form, read_parameters(picture), picture.name)


def apply_metadata(app_state: AppState, form: Form, metadata: ImageMetadata, source: str) -> Reply:
    """Updates that set the settings read from `source`, and a notice of what is missing here."""
    values, problems = request_of(metadata, app_state.library, app_state.workspace)
    return Reply(dict(form.change(values)), markup.import_notice(source, problems))


def has_infotext(text: str) -> bool:
    """True for a text with generation settings, as programs write it into pictures (infotext)."""
    metadata = parse_infotext(text)
    return bool(metadata.fields or metadata.details)
