"""The page: its head, its tabs, and what happens when it opens or a tab hands over to another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr
from gradio.components import Component

from webui.loras import Wish
from webui.parts import QUICK, html
from webui.studio import Run, Studio
from webui.tabs import generate, train

HEAD = (
    '<div id="head"><h1>sd<span>lora</span></h1>'
    '<button id="theme-switch" type="button" aria-label="Switch between light and dark" '
    'title="Light or dark">◐</button></div>'
)


def build(studio: Studio) -> gr.Blocks:
    """The whole page over one workspace."""
    with gr.Blocks(title="sdlora", analytics_enabled=False) as page:
        html(HEAD)
        with gr.Tabs(selected="generate") as tabs:
            with gr.Tab("Generate", id="generate", render_children=True):
                making = generate.build(studio)
            with gr.Tab("Train", id="train", render_children=True):
                training = train.build(studio)

        def opened(request: gr.Request) -> dict[Any, Any]:
            return on_open(studio, tabs, making, training, request.query_params.get("run", ""))

        def use(sent: Mapping[Component, Any]) -> dict[Any, Any]:
            found = train.trained(studio, sent[training.training.shown])
            if found is None:
                return {making.notice: ""}
            text = generate.with_tag(sent[making.prompt] or "", *found)
            shown = making.chooser.show(studio, making.chooser.wish(studio, sent))
            return {making.prompt: text, **shown, tabs: gr.Tabs(selected="generate")}

        outputs = [tabs, training.pictures, *making.views, *training.views]
        outputs += making.chooser.views
        outputs += training.measured.views
        page.load(opened, outputs=[*outputs, *training.suggested], **QUICK)
        target = [making.prompt, making.notice, tabs, *making.chooser.views]
        inputs = {training.training.shown, making.prompt, *making.chooser.asked}
        training.training.use.click(use, inputs=inputs, outputs=target, **QUICK)
    page.queue(api_open=False, max_size=64)
    return page


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
        **training.measured.show(studio.going_on("measure")),
        **making.chooser.show(studio, Wish(model_base=studio.model_base("starter"))),
        **to_training,
    }
