"""Captions of an own set changed by the many: seen first, then written, and taken back."""

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

MOST_SHOWN = 30


def build(studio: AppState, pictures: Component) -> list[Any]:
    """The fields and buttons, inside an open column; `pictures` is the choice of the set. Returns
    the events after which its captions may be others."""
    with gr.Accordion("Change captions", open=False, elem_id="change-captions"):
        form = Form(CaptionSettings)
        with gr.Row(elem_classes="row-fields"):
            form.add("find", label="Find in captions")
            form.add("replace", label="Put in its place")
        with gr.Row(elem_classes="row-fields"):
            form.add("prefix", "suffix")
        form.add("remove_tag")
        with gr.Row():
            show = gr.Button("Show what changes", size="sm", elem_id="captions-show")
            change = gr.Button("Change them", size="sm", elem_id="captions-write")
            back = gr.Button("Take back", size="sm", elem_id="captions-undo")
        notice = Notice("captions-said")
    inputs = {pictures, *form.fields.values()}

    def asked(sent: Mapping[Component, Any], act: Act) -> Reply:
        folder = own_folder(studio, sent[pictures])
        values = {"data": str(folder), **form.read(sent)}
        return Reply(html=act(folder, CaptionSettings.from_values(values)))

    _, *others = [
        notice.answer(button.click, lambda sent, act=act: asked(sent, act), inputs, [])
        for button, act in ((show, shown), (change, changed), (back, taken_back))
    ]
    return others


Act = Callable[[Path, CaptionSettings], str]


def own_folder(studio: AppState, name: str | None) -> Path:
    """The folder of an own set. DataError for one that ships, or none."""
    folder = studio.workspace.dataset_folders().get(name or "")
    if folder is None or studio.workspace.ships(folder):
        raise DataError(
            "choose a set of your own; the captions of those that ship stay as they are"
        )
    return folder


def shown(folder: Path, settings: CaptionSettings) -> str:
    """What would change."""
    return _list(
        plan_changes(folder, caption_editor(settings)), "would change; nothing is written yet"
    )


def changed(folder: Path, settings: CaptionSettings) -> str:
    """Change it."""
    changes = plan_changes(folder, caption_editor(settings))
    if changes:
        write_changes(folder, changes)
    return _list(changes, "changed; Take back undoes it")


def taken_back(folder: Path, settings: CaptionSettings) -> str:
    """Undo the last change."""
    return _list(undo(folder), "taken back")


def _list(changes: Sequence[Change], what: str) -> str:
    rows = "".join(
        f"<li><b>{esc(c.path.stem)}</b> <del>{esc(c.before)}</del> <ins>{esc(c.after)}</ins>"
        f"{f' <em>{esc(c.note)}</em>' if c.note else ''}</li>"
        for c in changes[:MOST_SHOWN]
    )
    left = len(changes) - MOST_SHOWN
    more = f"<li>And {left} more.</li>" if left > 0 else ""
    many = "1 caption" if len(changes) == 1 else f"{len(changes)} captions"
    count = f"{many} {what}." if changes else "No caption changes."
    listed = f'<ul class="changes">{rows}{more}</ul>' if rows else ""
    return f'<div class="notice" role="status"><p>{esc(count)}</p>{listed}</div>'
