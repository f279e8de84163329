"""After a training: which of its LoRAs to take, seen side by side, and taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from sdlora.errors import RunError, SdloraError
from sdlora.events import SampleReady
from sdlora.jobs import run_folder
from sdlora.jobs.review import copy_lora, grid_strengths, loras_by_step, suggest_lora
from sdlora.messages import Message
from sdlora.prompt.tags import format_tag
from sdlora.settings.grid import GridSettings
from webui import markup
from webui.app_state import AppState, Run
from webui.form import Form
from webui.job_card import JobCard
from webui.markup import esc
from webui.media import Media
from webui.notice import Notice, Reply, Updates


class CheckpointPicker:
    """The components, built where they stand; they are there once a training has ended that left
    a LoRA."""

    def __init__(self, studio: AppState) -> None:
        self.studio, self.form = studio, Form(GridSettings)
        with gr.Column(visible=False, elem_id="finish", elem_classes="finish") as self.place:
            with gr.Row(elem_classes="row-fields"):
                self.pairs = gr.Button("Before and after", size="sm", elem_id="before-after")
                self.compare = gr.Button(
                    "Compare checkpoints × strengths", size="sm", elem_id="compare"
                )
            with gr.Accordion("What to compare", open=False, elem_id="what-to-compare"):
                self.form.add("prompts")
                with gr.Row(elem_classes="row-fields"):
                    self.form.add("strengths", "seed", "steps", compact=True, min_width=90)
            self.errand = JobCard(studio, "grid", partial(comparison, studio.media))
            self.step = gr.Dropdown([], label="Checkpoint", elem_id="take-step")
            with gr.Row(elem_classes="row-fields"):
                self.keep = gr.Button("Keep as a LoRA", size="sm", elem_id="keep")
                self.use = gr.Button("Use this checkpoint", size="sm", elem_id="use-step")
            self.notice = Notice("kept")

    @property
    def views(self) -> list[Component]:
        """What changes with the training on screen."""
        return [self.place, self.step, *self.errand.views]

    def wire(self, shown: Component) -> None:
        """`shown` is the name of the training on screen."""
        self.errand.wire()
        inputs = {shown, self.step, *self.form.fields.values()}
        for button, ask in ((self.compare, self._everything), (self.pairs, self._before_after)):
            self.errand.notice.answer(
                button.click,
                lambda sent, ask=ask: self.errand.start(self._asked(sent, shown, ask)),
                inputs, self.errand.views,
            )  # fmt: skip
        self.notice.answer(self.keep.click, self._keep, [shown, self.step], [])

    def show(self, run: Run | None) -> Updates:
        """Updates for the training on screen."""
        steps = _steps(run) if run and run.state.ended else []
        if run is None or not steps:
            return {self.place: gr.Column(visible=False), **self.errand.show(None)}
        best = suggest_lora(run.folder, run.state)
        newest = next(iter(run_folder.run_folders(run.folder / "grids")), None)
        return {
            self.place: gr.Column(visible=True),
            self.step: gr.Dropdown(
                [(_called(run, step, best.step if best else -1), step) for step in steps],
                value=best.step if best and best.step in steps else steps[-1],
            ),
            **self.errand.show(self.studio.run(newest) if newest else None),
        }

    def kept(self, run: Run | None, step: int | None) -> Path:
        """The LoRA of a step, kept. SdloraError: it cannot be."""
        if run is None:
            raise RunError("that training is not there any more")
        if step is None:
            raise RunError("choose a checkpoint first")
        return copy_lora(run.folder, run.state, int(step), self.studio.workspace.loras)

    def _keep(self, name: str, step: int | None) -> Reply:
        file = self.kept(self.studio.training(name), step)
        words = "Kept. In a prompt it is {tag}"
        tag = format_tag(file.stem, markup.USUAL_WEIGHT)
        return Reply(html=markup.success(Message(words, tag=tag)))

    def _asked(self, sent: Mapping[Component, Any], shown: Component, ask: Any) -> GridSettings:
        if self.studio.training(sent[shown]) is None:
            raise RunError("that training is not there any more")
        return GridSettings.from_values({"run": sent[shown], **self.form.read(sent), **ask(sent)})

    def _everything(self, sent: Mapping[Component, Any]) -> dict[str, Any]:
        return {}

    def _before_after(self, sent: Mapping[Component, Any]) -> dict[str, Any]:
        """One LoRA at the weight that a click on it gives."""
        if sent[self.step] is None:
            raise RunError("choose a checkpoint first")
        return {"checkpoints": (sent[self.step],), "strengths": (markup.USUAL_WEIGHT,)}


def _steps(run: Run) -> list[int]:
    try:
        return list(loras_by_step(run.folder, run.state))
    except SdloraError:
        return []


def _called(run: Run, step: int, best: int) -> str:
    end = ", the end" if step == run.state.result_step else ""
    return f"step {step}{end}{' · the one to take' if step == best else ''}"


def comparison(media: Media, run: Run) -> str:
    """What has been drawn so far: pairs of one LoRA, else a table for each prompt."""
    try:
        settings = GridSettings.load(run.folder / run_folder.SETTINGS_FILE)
    except SdloraError as error:
        return markup.problem(error)
    by_prompt: dict[str, list[SampleReady]] = {}
    for sample in run.state.samples:
        by_prompt.setdefault(sample.prompt, []).append(sample)
    one = len(settings.checkpoints) == 1 == len(settings.strengths)
    draw = _pair if one else partial(_table, settings.strengths)
    blocks = "".join(draw(prompt, some, media) for prompt, some in by_prompt.items())
    warnings = markup.notices(run.state.warnings) if run.state.status == "done" else ""
    link = media.link(run.state.result) if run.state.status == "done" else ""
    name = f"{settings.run}-comparison.png"
    whole = f'<p><a class="act" href="{link}" download="{esc(name)}">Save as one picture</a></p>'
    return f'<section class="comparison">{blocks}{whole if link else ""}{warnings}</section>'


def _pair(prompt: str, some: Sequence[SampleReady], media: Media) -> str:
    cells = "".join(f"<figure>{_picture(one, media)}</figure>" for one in some)
    return f'<p>{esc(prompt)}</p><div class="pair pictures">{cells}</div>'


def _table(
    strengths: Sequence[float], prompt: str, some: Sequence[SampleReady], media: Media
) -> str:
    """Steps down, strengths across; the base model's picture before them."""
    places = {(one.step, one.report.get("strength")): one for one in some}
    plain = places.get((0, 0.0))
    strengths = grid_strengths(strengths)
    heads = "".join(f'<th scope="col">{strength:g}</th>' for strength in (0.0, *strengths))
    rows = []
    for step in sorted({one.step for one in some} - {0}):
        row = [plain, *(places.get((step, strength)) for strength in strengths)]
        cells = "".join(f"<td>{_picture(one, media, False) if one else ''}</td>" for one in row)
        rows.append(f'<tr><th scope="row">step {step}</th>{cells}</tr>')
    return (
        f'<div class="cells" tabindex="0" role="group" aria-label="{esc(prompt)}"><table>'
        f'<caption>{esc(prompt)}</caption><tr><th scope="col">weight</th>{heads}</tr>'
        f"{''.join(rows)}</table></div>"
    )


def _picture(one: SampleReady, media: Media, with_words: bool = True) -> str:
    strength = one.report.get("strength") or 0
    words = f"step {one.step}, weight {strength:g}" if one.step else "the base model"
    link, under = media.link(one.path), f"<figcaption>{esc(words)}</figcaption>"
    if not link:
        return ""
    return (
        f'<a href="{link}" target="_blank" class="picture" data-caption="{esc(one.prompt)}" '
        f'data-note="{esc(words)}" data-name="{esc(Path(one.path).name)}"><img src="{link}/small" '
        f'alt="{esc(f"{one.prompt}: {words}")}"></a>{under if with_words else ""}'
    )
