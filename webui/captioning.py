"""Captions written by a captioning model for a user's own set: first shown, then written."""

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

MODEL_TITLES = {
    "blip": "BLIP: a short sentence",
    "florence2": "Florence-2: several sentences",
    "qwen_vl": "Qwen-VL: an answer to a question",
    "wd14": "WD14: tags",
}
MAX_SHOWN = 200
SHOWN_FIRST = ("by", "every", "prefix")  # outside the closed accordion
HINT = (
    '<p class="hint">A model that is not on this machine is downloaded once from the '
    "Hugging Face hub. Check its captions before you train on them.</p>"
)


class CaptioningPanel:
    """Components of automatic captioning, built inside an open column; `pictures` is the choice of
    the set."""

    def __init__(self, app_state: AppState, pictures: Component) -> None:
        self.app_state, self.pictures, self.form = app_state, pictures, Form(DescribeSettings)
        look: dict[str, Any] = {"open": False, "elem_id": "describe-captions"}
        with gr.Accordion("Caption automatically", **look) as self.place:
            kinds = get_args(DescribeSettings.model_fields["by"].annotation)
            self.form.fields["by"] = gr.Dropdown(
                [(MODEL_TITLES.get(kind, kind), kind) for kind in kinds], value=kinds[0],
                label="Captioning model", elem_id="describe-by",
            )  # fmt: skip
            self.form.add("prefix")
            self.form.add("every", label="Also for pictures that have a caption", info=None)
            with gr.Accordion("Model settings", open=False):
                rest = [
                    n for n in DescribeSettings.model_fields if n not in (*SHOWN_FIRST, *NOT_SHOWN)
                ]
                self.form.add(*rest)
            html(HINT)
            self.describe = gr.Button("Caption the pictures", size="sm", elem_id="describe")
            self.job_card = JobCard(app_state, "describe", self._result, self._buttons)
            with gr.Row(elem_classes="row-fields"):
                self.write = gr.Button(
                    "Write these captions", size="sm", visible=False, elem_id="describe-write"
                )
                self.back = gr.Button("Undo", size="sm", visible=False, elem_id="describe-undo")

    @property
    def views(self) -> list[Component]:
        """Components that change when the captioning job does."""
        return [self.place, self.write, self.back, *self.job_card.views]

    def wire(self) -> list[Any]:
        """Connect the buttons; returns the events after which the captions may have changed."""
        self.job_card.wire(self.write, self.back)
        shown, views = self.job_card.shown, [self.write, self.back, *self.job_card.views]
        inputs = {self.pictures, *self.form.fields.values()}
        notice = self.job_card.notice
        notice.answer(
            self.describe.click,
            lambda sent: self.job_card.start(self._settings(sent)),
            inputs,
            views,
        )
        return [
            notice.answer(
                self.write.click, lambda key: self._act(key, write_captions), [shown], views
            ),
            notice.answer(
                self.back.click, lambda key: self._act(key, undo_captions), [shown], views
            ),
        ]

    def opened(self) -> Updates:
        """Updates for a newly opened page: a job that runs, or captions that are not written
        yet."""
        newest = next(iter(self.app_state.latest("describe", 1)), None)
        try:
            is_shown = newest and (
                newest.live or bool(review_captions(self.app_state, newest).unwritten)
            )
        except SdloraError:  # settings of another version
            is_shown = False
        if not is_shown:
            return self.job_card.show(None)
        return {**self.job_card.show(newest), self.place: gr.Accordion(open=True)}

    def _settings(self, sent: Mapping[Component, Any]) -> DescribeSettings:
        data = own_folder(self.app_state, sent[self.pictures]).name
        return DescribeSettings.from_values({"data": data, **self.form.read(sent)})

    def _act(self, key: str, act: Any) -> Updates:
        run = self.app_state.find(key)
        if run is None:
            raise DataError("those captions are not there any more; caption the pictures again")
        act(self.app_state, run)
        return self.job_card.show(run)

    def _buttons(self, run: Run | None) -> Updates:
        review = review_captions(self.app_state, run) if run and run.state.ended else None
        return {
            self.write: gr.Button(visible=bool(review and review.unwritten)),
            self.back: gr.Button(visible=bool(review and review.written)),
        }

    def _result(self, run: Run) -> str:
        return suggestions_html(self.app_state, run)


NOT_SHOWN = ("data", "write")  # the set is chosen above; captions are written after they were shown


@dataclass
class CaptionReview:
    """Captions that a model has suggested for a folder: not written yet, written, or outdated
    because the picture has another caption by now, which stays."""

    folder: Path
    unwritten: list[Change] = field(default_factory=list)
    written: list[Change] = field(default_factory=list)
    outdated: list[Change] = field(default_factory=list)
    pictures: dict[Path, Path] = field(default_factory=dict)  # by the caption's file


def review_captions(app_state: AppState, run: Run) -> CaptionReview:
    """Captions that a run has suggested, compared with those that the folder has now."""
    settings = DescribeSettings.load(run.folder / run_folder.SETTINGS_FILE)
    review = CaptionReview(app_state.workspace.picture_folder(settings.data))
    files = open_captions(review.folder)
    now = {picture: files.read(picture) for picture in files.pictures}
    review.pictures = {caption.file: picture for picture, caption in now.items()}
    texts = {caption.file: caption.text for caption in now.values()}
    for suggestion in run.state.captions:
        path = Path(suggestion.path)
        change = Change(path, suggestion.before, suggestion.after, path.is_file())
        text = texts.get(path)
        if text == suggestion.after:
            review.written.append(change)
        elif text == suggestion.before:
            review.unwritten.append(change)
        else:
            review.outdated.append(change)
    return review


def write_captions(app_state: AppState, run: Run) -> None:
    """Write the suggested captions that are not outdated. DataError: there are none."""
    review = review_captions(app_state, run)
    if not review.unwritten:
        raise DataError("no caption waits to be written")
    write_changes(review.folder, review.unwritten)


def undo_captions(app_state: AppState, run: Run) -> None:
    """Undo the last change of the set's captions. DataError: there is none."""
    undo(review_captions(app_state, run).folder)


def suggestions_html(app_state: AppState, run: Run) -> str:
    """HTML list of the pictures with the captions that a model has suggested."""
    if not run.state.captions:
        done = run.state.status == "done"
        return '<p class="hint">Every picture has a caption.</p>' if done else ""
    review = review_captions(app_state, run)
    counts = (
        (len(review.unwritten), "not written yet"),
        (len(review.written), "written; Undo restores the old ones"),
        (len(review.outdated), "left out, because the picture has another caption by now"),
    )
    summary = "; ".join(f"{count} {fate}" for count, fate in counts if count)
    listed = [*review.unwritten, *review.written][:MAX_SHOWN]
    rows = "".join(
        _suggestion_row(app_state, review.pictures.get(change.path), change) for change in listed
    )
    left = len(review.unwritten) + len(review.written) - len(listed)
    more = f'<p class="hint">And {left} more.</p>' if left else ""
    warnings = markup.notices(run.state.warnings) if run.state.status == "done" else ""
    return (
        f'<p class="hint">Captions of {esc(review.folder.name)}: {esc(summary)}.</p>{warnings}'
        f'<ul class="changes told" tabindex="0">{rows}</ul>{more}'
    )


def _suggestion_row(app_state: AppState, picture: Path | None, change: Change) -> str:
    link = app_state.media.link(picture) if picture else ""
    image = f'<img src="{link}/small" alt="" loading="lazy">' if link else "<i></i>"
    before = (
        f"<del>{esc(change.before)}</del> "
        if change.before and change.before != change.after
        else ""
    )
    name = esc(picture.name if picture else change.path.stem)
    return f"<li>{image}<span><b>{name}</b> {before}<ins>{esc(change.after)}</ins></span></li>"
