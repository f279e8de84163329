"""Captions by a model that looks at the pictures of an own set: told first, then written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import gradio as gr
from gradio.components import Component

from sdlora.data.caption_editing import Change, undo, write_changes
from sdlora.data.folder import open_captions
from sdlora.errors import DataError, SdloraError
from sdlora.jobs import run_folder
from sdlora.settings.captioning import DescribeSettings
from webui import markup
from webui.app_state import AppState, Run
from webui.caption_editor import own_folder
from webui.form import Form
from webui.job_card import JobCard
from webui.markup import esc
from webui.notice import Updates
from webui.widgets import html

SAID_OF = {
    "blip": "BLIP: a short sentence",
    "florence2": "Florence-2: several sentences",
    "qwen_vl": "Qwen-VL: an answer to a question",
    "wd14": "WD14: tags",
}
MOST_TOLD = 200
USUAL = ("by", "every", "prefix")  # the fields that are seen at once
HINT = (
    '<p class="hint">A model that is not here yet is downloaded once, from the Hugging Face hub. '
    "Read what it writes before you train on it.</p>"
)


class Describing:
    """The components, inside an open column; `pictures` is the choice of the set."""

    def __init__(self, studio: AppState, pictures: Component) -> None:
        self.studio, self.pictures, self.form = studio, pictures, Form(DescribeSettings)
        look: dict[str, Any] = {"open": False, "elem_id": "describe-captions"}
        with gr.Accordion("Have captions written", **look) as self.place:
            kinds = get_args(DescribeSettings.model_fields["by"].annotation)
            self.form.fields["by"] = gr.Dropdown(
                [(SAID_OF.get(kind, kind), kind) for kind in kinds], value=kinds[0],
                label="Written by", elem_id="describe-by",
            )  # fmt: skip
            self.form.add("prefix")
            self.form.add("every", label="Also for pictures that have a caption", info=None)
            with gr.Accordion("More about the model", open=False):
                rest = [n for n in DescribeSettings.model_fields if n not in (*USUAL, *NEVER)]
                self.form.add(*rest)
            html(HINT)
            self.describe = gr.Button("Describe the pictures", size="sm", elem_id="describe")
            self.errand = JobCard(studio, "describe", self._told, self._buttons)
            with gr.Row(elem_classes="row-fields"):
                self.write = gr.Button(
                    "Write these captions", size="sm", visible=False, elem_id="describe-write"
                )
                self.back = gr.Button(
                    "Take back", size="sm", visible=False, elem_id="describe-undo"
                )

    @property
    def views(self) -> list[Component]:
        """What changes when this work does."""
        return [self.place, self.write, self.back, *self.errand.views]

    def wire(self) -> list[Any]:
        """What the buttons do; returns the events after which captions may be others."""
        self.errand.wire(self.write, self.back)
        shown, views = self.errand.shown, [self.write, self.back, *self.errand.views]
        inputs = {self.pictures, *self.form.fields.values()}
        notice = self.errand.notice
        notice.answer(
            self.describe.click, lambda sent: self.errand.start(self._asked(sent)), inputs, views
        )
        return [
            notice.answer(self.write.click, lambda key: self._act(key, written), [shown], views),
            notice.answer(self.back.click, lambda key: self._act(key, taken_back), [shown], views),
        ]

    def opened(self) -> Updates:
        """Updates for a page that opens: what goes on, or waits to be written."""
        newest = next(iter(self.studio.latest("describe", 1)), None)
        try:
            wanted = newest and (newest.live or bool(news(self.studio, newest).waiting))
        except SdloraError:  # its settings are of another version
            wanted = False
        if not wanted:
            return self.errand.show(None)
        return {**self.errand.show(newest), self.place: gr.Accordion(open=True)}

    def _asked(self, sent: Mapping[Component, Any]) -> DescribeSettings:
        data = own_folder(self.studio, sent[self.pictures]).name
        return DescribeSettings.from_values({"data": data, **self.form.read(sent)})

    def _act(self, key: str, act: Any) -> Updates:
        run = self.studio.find(key)
        if run is None:
            raise DataError("those captions are not there any more; describe them again")
        act(self.studio, run)
        return self.errand.show(run)

    def _buttons(self, run: Run | None) -> Updates:
        its = news(self.studio, run) if run and run.state.ended else None
        return {
            self.write: gr.Button(visible=bool(its and its.waiting)),
            self.back: gr.Button(visible=bool(its and its.written)),
        }

    def _told(self, run: Run) -> str:
        return told(self.studio, run)


NEVER = ("data", "write")  # the set is chosen above; what was told is written when it was seen


@dataclass
class News:
    """What a model has told of a folder, and what became of it: not written yet, written, or
    overtaken by a caption from elsewhere, which stays."""

    folder: Path
    waiting: list[Change] = field(default_factory=list)
    written: list[Change] = field(default_factory=list)
    overtaken: list[Change] = field(default_factory=list)
    pictures: dict[Path, Path] = field(default_factory=dict)  # by the caption's file


def news(studio: AppState, run: Run) -> News:
    """What a run has told, beside what the folder holds now."""
    settings = DescribeSettings.load(run.folder / run_folder.SETTINGS_FILE)
    found = News(studio.workspace.picture_folder(settings.data))
    files = open_captions(found.folder)
    now = {picture: files.read(picture) for picture in files.pictures}
    found.pictures = {caption.file: picture for picture, caption in now.items()}
    texts = {caption.file: caption.text for caption in now.values()}
    for one in run.state.captions:
        path = Path(one.path)
        change = Change(path, one.before, one.after, path.is_file())
        text = texts.get(path)
        if text == one.after:
            found.written.append(change)
        elif text == one.before:
            found.waiting.append(change)
        else:
            found.overtaken.append(change)
    return found


def written(studio: AppState, run: Run) -> None:
    """Write what a run has told and nobody has overtaken. DataError: there is nothing."""
    its = news(studio, run)
    if not its.waiting:
        raise DataError("no caption waits to be written")
    write_changes(its.folder, its.waiting)


def taken_back(studio: AppState, run: Run) -> None:
    """Take the last change of the set's captions back. DataError: there is none."""
    undo(news(studio, run).folder)


def told(studio: AppState, run: Run) -> str:
    """The pictures with what a model has told of them."""
    if not run.state.captions:
        done = run.state.status == "done"
        return '<p class="hint">No picture lacks a caption.</p>' if done else ""
    its = news(studio, run)
    counts = (
        (len(its.waiting), "not written yet"),
        (len(its.written), "written; Take back undoes it"),
        (len(its.overtaken), "left out, for the picture has another caption by now"),
    )
    words = "; ".join(f"{count} {what}" for count, what in counts if count)
    some = [*its.waiting, *its.written][:MOST_TOLD]
    rows = "".join(_row(studio, its.pictures.get(one.path), one) for one in some)
    left = len(its.waiting) + len(its.written) - len(some)
    more = f'<p class="hint">And {left} more.</p>' if left else ""
    warnings = markup.notices(run.state.warnings) if run.state.status == "done" else ""
    return (
        f'<p class="hint">Captions of {esc(its.folder.name)}: {esc(words)}.</p>{warnings}'
        f'<ul class="changes told" tabindex="0">{rows}</ul>{more}'
    )


def _row(studio: AppState, picture: Path | None, one: Change) -> str:
    link = studio.media.link(picture) if picture else ""
    image = f'<img src="{link}/small" alt="" loading="lazy">' if link else "<i></i>"
    before = f"<del>{esc(one.before)}</del> " if one.before and one.before != one.after else ""
    name = esc(picture.name if picture else one.path.stem)
    return f"<li>{image}<span><b>{name}</b> {before}<ins>{esc(one.after)}</ins></span></li>"
