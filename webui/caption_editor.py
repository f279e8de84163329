"""Batch editing of the captions of a user's own set: preview, write, undo."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from sdlora.data.caption_editing import (
    CaptionSettings,
    Change,
    caption_editor,
    plan_changes,
    undo,
    write_changes,
)
from sdlora.errors import DataError
from webui.app_state import AppState
from webui.form import Form
from webui.markup import esc
from webui.notice import Notice, Reply

MAX_SHOWN = 30


def build(app_state: AppState, pictures: Component) -> list[Any]:
    """Build the fields and buttons inside an open column; `pictures` is the choice of the set.
    Returns the events after which the captions may have changed."""
    with gr.Accordion("Edit captions", open=False, elem_id="change-captions"):
        form = Form(CaptionSettings)
        with gr.Row(elem_classes="row-fields"):
            form.add("find", label="Find in captions")
            form.add("replace", label="Replace with")
        with gr.Row(elem_classes="row-fields"):
            form.add("prefix", "suffix")
        form.add("remove_tag")
        with gr.Row():
            show = gr.Button("Preview", size="sm", elem_id="captions-show")
            change = gr.Button("Apply", size="sm", elem_id="captions-write")
            back = gr.Button("Undo", size="sm", elem_id="captions-undo")
        notice = Notice("captions-said")
    inputs = {pictures, *form.fields.values()}

    def run_action(sent: Mapping[Component, Any], action: CaptionAction) -> Reply:
        folder = own_folder(app_state, sent[pictures])
        values = {"data": str(folder), **form.read(sent)}
        return Reply(html=action(folder, CaptionSettings.from_values(values)))

    _, *others = [
        notice.answer(button.click, lambda sent, act=act: run_action(sent, act), inputs, [])
        for button, act in ((show, preview), (change, apply), (back, undo_last))
    ]
    return others


CaptionAction = Callable[[Path, CaptionSettings], str]


def own_folder(app_state: AppState, name: str | None) -> Path:
    """Folder of a set of the user's own. DataError for one that ships with sdlora, or none."""
    folder = app_state.workspace.dataset_folders().get(name or "")
    if folder is None or app_state.workspace.ships(folder):
        raise DataError("choose a set of your own; the sets that come with sdlora cannot be edited")
    return folder


def preview(folder: Path, settings: CaptionSettings) -> str:
    """HTML of the changes that would be made."""
    return _changes_html(
        plan_changes(folder, caption_editor(settings)), "would change; nothing is written yet"
    )


def apply(folder: Path, settings: CaptionSettings) -> str:
    """Make the changes; HTML that lists them."""
    changes = plan_changes(folder, caption_editor(settings))
    if changes:
        write_changes(folder, changes)
    return _changes_html(changes, "changed; Undo restores them")


def undo_last(folder: Path, settings: CaptionSettings) -> str:
    """Undo the last written changes; HTML that lists them."""
    return _changes_html(undo(folder), "restored")


def _changes_html(changes: Sequence[Change], done: str) -> str:
    rows = "".join(
        f"<li><b>{esc(c.path.stem)}</b> <del>{esc(c.before)}</del> <ins>{esc(c.after)}</ins>"
        f"{f' <em>{esc(c.note)}</em>' if c.note else ''}</li>"
        for c in changes[:MAX_SHOWN]
    )
    left = len(changes) - MAX_SHOWN
    more = f"<li>And {left} more.</li>" if left > 0 else ""
    many = "1 caption" if len(changes) == 1 else f"{len(changes)} captions"
    count = f"{many} {done}." if changes else "No caption changes."
    listed = f'<ul class="changes">{rows}{more}</ul>' if rows else ""
    return f'<div class="notice" role="status"><p>{esc(count)}</p>{listed}</div>'
