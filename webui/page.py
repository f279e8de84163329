"""The page: its head, its tabs, and what happens when it opens or a tab hands over to another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from sdlora.errors import RunError
from webui import drafts, markup
from webui.app_state import AppState, Run
from webui.calls import Page
from webui.lora_details import LoraFilter
from webui.prompt_tags import with_tag
from webui.tabs import generate, train
from webui.widgets import QUICK, html

HEAD = (
    '<div id="head"><h1>sd<span>lora</span></h1>'
    '<button id="theme-switch" type="button" aria-label="Switch between light and dark" '
    'title="Light or dark">◐</button></div>'
)


def build(studio: AppState) -> gr.Blocks:
    """The whole page over one workspace."""
    with Page(title="sdlora", analytics_enabled=False) as page:
        html(HEAD)
        problems = html(elem_id="workspace-problems")
        with gr.Tabs(selected="generate") as tabs:
            with gr.Tab("Generate", id="generate", render_children=True):
                making = generate.build(studio)
            with gr.Tab("Train", id="train", render_children=True):
                training = train.build(studio)

        def opened(generate_draft: str, train_draft: str, request: gr.Request) -> dict[Any, Any]:
            stored = (drafts.parsed(generate_draft), drafts.parsed(train_draft))
            asked_for = request.query_params.get("run", "")
            shown = on_open(studio, tabs, (making, training), stored, asked_for)
            return {**shown, problems: markup.notices(studio.problems())}

        own = (making.draft, training.draft)
        outputs = [
            tabs,
            problems,
            making.draft.lost,
            training.draft.lost,
            *making.views,
            *training.views,
        ]
        outputs += [*making.form.fields.values(), *training.held.values()]
        outputs += making.chooser.views
        outputs += [*training.measured.views, *training.describing.views]
        named = {part for part in training.suggested if part not in training.held.values()}
        page.load(
            opened, [one.stored for one in own], [*outputs, *named], js=drafts.stored(*own), **QUICK
        ).then(None, js=drafts.READY, **QUICK)
        _wire_use(studio, tabs, making, training)
    page.queue(api_open=False, max_size=64)
    return page


def _wire_use(
    studio: AppState, tabs: gr.Tabs, making: generate.GenerateTab, training: train.TrainTab
) -> None:
    """What a training has left is taken to the other tab: its result, or one of its checkpoints."""
    shown, after = training.training.shown, training.training.finish

    def hand_over(run: Run, tag: str, sent: Mapping[Component, Any]) -> dict[Any, Any]:
        found = train.called(studio, run, tag)
        text = with_tag(sent[making.prompt] or "", *found)
        there = making.chooser.show(studio, making.chooser.wish(studio, sent))
        return {making.prompt: text, **there, tabs: gr.Tabs(selected="generate")}

    def use(sent: Mapping[Component, Any]) -> dict[Any, Any]:
        run = studio.training(sent[shown])
        if run is None or not run.state.result:
            raise RunError("the training is not there any more, or has left no LoRA")
        return hand_over(run, Path(run.state.result).stem, sent)

    def use_step(sent: Mapping[Component, Any]) -> dict[Any, Any]:
        run = studio.training(sent[shown])
        tag = after.kept(run, sent[after.step]).stem
        return hand_over(run, tag, sent) if run else {}

    target = [making.prompt, tabs, *making.chooser.views]
    inputs = {shown, making.prompt, *making.chooser.asked}
    training.training.notice.answer(training.training.use.click, use, inputs, target)
    after.notice.answer(after.use.click, use_step, {*inputs, after.step}, target)


def on_open(
    studio: AppState,
    tabs: gr.Tabs,
    built: tuple[generate.GenerateTab, train.TrainTab],
    stored: tuple[Mapping[str, Any], Mapping[str, Any]],
    asked_for: str,
) -> dict[Any, Any]:
    """What a newly opened page shows: what was typed last, and the training that its address
    names, else the one that runs."""
    making, training = built
    trainings, requests = studio.trainings(), studio.requests()
    live = next((run for run in trainings if run.live), None)
    named = studio.training(asked_for) if asked_for else None
    shown: Run | None = named or live or next(iter(trainings), None)
    to_training = {tabs: gr.Tabs(selected="train")} if named or live else {}
    form = generate.refilled(making, stored[0])
    model = form.get(making.form.fields["model"]) or "starter"
    return {
        **generate.view(studio, making, next(iter(requests), None)),
        **form,
        **train.view(studio, training, shown),
        **train.refilled(studio, training, stored[1]),
        **training.describing.opened(),
        **training.measured.show(studio.going_on("measure")),
        **making.chooser.show(studio, LoraFilter(model_base=studio.model_base(model))),
        **to_training,
    }
