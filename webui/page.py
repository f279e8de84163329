"""The page: its head, its tabs, and what happens when it opens or a tab hands over to another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from sdlora.errors import RunError
from webui import markup
from webui.calls import Page
from webui.loras import Wish
from webui.parts import QUICK, html
from webui.prompt_tags import with_tag
from webui.studio import Run, Studio
from webui.tabs import generate, train

HEAD = (
    '<div id="head"><h1>sd<span>lora</span></h1>'
    '<button id="theme-switch" type="button" aria-label="Switch between light and dark" '
    'title="Light or dark">◐</button></div>'
)


def build(studio: Studio) -> gr.Blocks:
    """The whole page over one workspace."""
    with Page(title="sdlora", analytics_enabled=False) as page:
        html(HEAD)
        problems = html(elem_id="workspace-problems")
        with gr.Tabs(selected="generate") as tabs:
            with gr.Tab("Generate", id="generate", render_children=True):
                making = generate.build(studio)
            with gr.Tab("Train", id="train", render_children=True):
                training = train.build(studio)

        def opened(request: gr.Request) -> dict[Any, Any]:
            named = request.query_params.get("run", "")
            shown = on_open(studio, tabs, making, training, named)
            return {**shown, problems: markup.notices(studio.problems())}

        outputs = [tabs, problems, training.pictures, *making.views, *training.views]
        outputs += making.chooser.views
        outputs += [*training.measured.views, *training.describing.views]
        page.load(opened, outputs=[*outputs, *training.suggested], **QUICK)
        _wire_use(studio, tabs, making, training)
    page.queue(api_open=False, max_size=64)
    return page


def _wire_use(
    studio: Studio, tabs: gr.Tabs, making: generate.GenerateTab, training: train.TrainTab
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
    studio: Studio,
    tabs: gr.Tabs,
    making: generate.GenerateTab,
    training: train.TrainTab,
    asked_for: str,
) -> dict[Any, Any]:
    """What a newly opened page shows: the training its address names, else the one that runs."""
    trainings, requests = studio.trainings(), studio.requests()
    live = next((run for run in trainings if run.live), None)
    named = studio.training(asked_for) if asked_for else None
    shown: Run | None = named or live or next(iter(trainings), None)
    sets = sorted(studio.workspace.dataset_folders())
    pictures = sets[0] if sets else None
    sent = {
        training.pictures: pictures,
        **training.form.show({"name": "any"}),
        **training.advanced.show({}),
    }
    wanted = train.suggest_values(studio, training, sent)
    to_training = {tabs: gr.Tabs(selected="train")} if named or live else {}
    return {
        **generate.view(studio, making, next(iter(requests), None)),
        **train.view(studio, training, shown),
        **wanted,
        **train.summed_up(studio, training, {**sent, **wanted}),
        **train.suggest_names(studio, training, pictures),
        training.pictures: gr.Dropdown(sets, value=pictures),
        **training.describing.opened(),
        **training.measured.show(studio.going_on("measure")),
        **making.chooser.show(studio, Wish(model_base=studio.model_base("starter"))),
        **to_training,
    }
