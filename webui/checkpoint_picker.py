"""Choice of a checkpoint after a training: comparison images, and the LoRA of one step saved or
used."""

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
    """Components of the choice, built where they stand; visible once a training that saved a LoRA
    has ended."""

    def __init__(self, app_state: AppState) -> None:
        self.app_state, self.form = app_state, Form(GridSettings)
        with gr.Column(visible=False, elem_id="finish", elem_classes="finish") as self.place:
            with gr.Row(elem_classes="row-fields"):
                self.pairs = gr.Button("Before and after", size="sm", elem_id="before-after")
                self.compare = gr.Button(
                    "Compare checkpoints × strengths", size="sm", elem_id="compare"
                )
            with gr.Accordion("Comparison settings", open=False, elem_id="what-to-compare"):
                self.form.add("prompts")
                with gr.Row(elem_classes="row-fields"):
                    self.form.add("strengths", "seed", "steps", compact=True, min_width=90)
            self.job_card = JobCard(app_state, "grid", partial(comparison, app_state.media))
            self.step = gr.Dropdown([], label="Checkpoint", elem_id="take-step")
            with gr.Row(elem_classes="row-fields"):
                self.keep = gr.Button("Save as a LoRA", size="sm", elem_id="keep")
                self.use = gr.Button("Use this checkpoint", size="sm", elem_id="use-step")
            self.notice = Notice("kept")

    @property
    def views(self) -> list[Component]:
        """Components that change with the training on screen."""
        return [self.place, self.step, *self.job_card.views]

    def wire(self, shown: Component) -> None:
        """Connect the buttons; `shown` holds the name of the training on screen."""
        self.job_card.wire()
        inputs = {shown, self.step, *self.form.fields.values()}
        for button, ask in ((self.compare, self._whole_grid), (self.pairs, self._before_after)):
            self.job_card.notice.answer(
                button.click,
                lambda sent, ask=ask: self.job_card.start(self._grid_settings(sent, shown, ask)),
                inputs, self.job_card.views,
            )  # fmt: skip
        self.notice.answer(self.keep.click, self._on_save, [shown, self.step], [])

    def show(self, run: Run | None) -> Updates:
        """Updates for the training on screen."""
        steps = _steps(run) if run and run.state.ended else []
        if run is None or not steps:
            return {self.place: gr.Column(visible=False), **self.job_card.show(None)}
        best = suggest_lora(run.folder, run.state)
        newest = next(iter(run_folder.run_folders(run.folder / "grids")), None)
        return {
            self.place: gr.Column(visible=True),
            self.step: gr.Dropdown(
                [(_checkpoint_label(run, step, best.step if best else -1), step) for step in steps],
                value=best.step if best and best.step in steps else steps[-1],
            ),
            **self.job_card.show(self.app_state.run(newest) if newest else None),
        }

    def save_checkpoint(self, run: Run | None, step: int | None) -> Path:
        """Path of a step's LoRA after copying it into loras/. SdloraError: it cannot be copied."""
        if run is None:
            raise RunError("that training is not there any more")
        if step is None:
            raise RunError("choose a checkpoint first")
        return copy_lora(run.folder, run.state, int(step), self.app_state.workspace.loras)

    def _on_save(self, name: str, step: int | None) -> Reply:
        file = self.save_checkpoint(self.app_state.training(name), step)
        template = "Saved; use it in a prompt as {tag}"
        tag = format_tag(file.stem, markup.DEFAULT_WEIGHT)
        return Reply(html=markup.success(Message(template, tag=tag)))

    def _grid_settings(
        self, sent: Mapping[Component, Any], shown: Component, ask: Any
    ) -> GridSettings:
        if self.app_state.training(sent[shown]) is None:
            raise RunError("that training is not there any more")
        return GridSettings.from_values({"run": sent[shown], **self.form.read(sent), **ask(sent)})

    def _whole_grid(self, sent: Mapping[Component, Any]) -> dict[str, Any]:
        return {}

    def _before_after(self, sent: Mapping[Component, Any]) -> dict[str, Any]:
        """Settings for one LoRA at the weight that a click on its card gives."""
        if sent[self.step] is None:
            raise RunError("choose a checkpoint first")
        return {"checkpoints": (sent[self.step],), "strengths": (markup.DEFAULT_WEIGHT,)}


def _steps(run: Run) -> list[int]:
    try:
        return list(loras_by_step(run.folder, run.state))
    except SdloraError:
        return []


def _checkpoint_label(run: Run, step: int, best: int) -> str:
    end = ", the end" if step == run.state.result_step else ""
    return f"step {step}{end}{' · suggested' if step == best else ''}"


def comparison(media: Media, run: Run) -> str:
    """HTML of the images so far: image pairs of one LoRA, else a table for each prompt."""
    try:
        settings = GridSettings.load(run.folder / run_folder.SETTINGS_FILE)
    except SdloraError as error:
        return markup.problem(error)
    by_prompt: dict[str, list[SampleReady]] = {}
    for sample in run.state.samples:
        by_prompt.setdefault(sample.prompt, []).append(sample)
    is_pair = len(settings.checkpoints) == 1 == len(settings.strengths)
    draw = _pair if is_pair else partial(_table, settings.strengths)
    blocks = "".join(draw(prompt, samples, media) for prompt, samples in by_prompt.items())
    warnings = markup.notices(run.state.warnings) if run.state.status == "done" else ""
    link = media.link(run.state.result) if run.state.status == "done" else ""
    name = f"{settings.run}-comparison.png"
    whole = f'<p><a class="act" href="{link}" download="{esc(name)}">Save as one picture</a></p>'
    return f'<section class="comparison">{blocks}{whole if link else ""}{warnings}</section>'


def _pair(prompt: str, samples: Sequence[SampleReady], media: Media) -> str:
    cells = "".join(f"<figure>{_picture(sample, media)}</figure>" for sample in samples)
    return f'<p>{esc(prompt)}</p><div class="pair pictures">{cells}</div>'


def _table(
    strengths: Sequence[float], prompt: str, samples: Sequence[SampleReady], media: Media
) -> str:
    """Table with a row for each step and a column for each strength; the base model's image
    first."""
    places = {(sample.step, sample.report.get("strength")): sample for sample in samples}
    plain = places.get((0, 0.0))
    strengths = grid_strengths(strengths)
    heads = "".join(f'<th scope="col">{strength:g}</th>' for strength in (0.0, *strengths))
    rows = []
    for step in sorted({sample.step for sample in samples} - {0}):
        row = [plain, *(places.get((step, strength)) for strength in strengths)]
        cells = "".join(
            f"<td>{_picture(sample, media, False) if sample else ''}</td>" for sample in row
        )
        rows.append(f'<tr><th scope="row">step {step}</th>{cells}</tr>')
    return (
        f'<div class="cells" tabindex="0" role="group" aria-label="{esc(prompt)}"><table>'
        f'<caption>{esc(prompt)}</caption><tr><th scope="col">weight</th>{heads}</tr>'
        f"{''.join(rows)}</table></div>"
    )


def _picture(sample: SampleReady, media: Media, with_caption: bool = True) -> str:
    strength = sample.report.get("strength") or 0
    description = f"step {sample.step}, weight {strength:g}" if sample.step else "the base model"
    link, under = media.link(sample.path), f"<figcaption>{esc(description)}</figcaption>"
    if not link:
        return ""
    return (
        f'<a href="{link}" target="_blank" class="picture" data-caption="{esc(sample.prompt)}" '
        f'data-note="{esc(description)}" data-name="{esc(Path(sample.path).name)}">'
        f'<img src="{link}/small" '
        f'alt="{esc(f"{sample.prompt}: {description}")}"></a>{under if with_caption else ""}'
    )
