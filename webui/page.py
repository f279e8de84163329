"""The page: head and tabs, what happens when it opens, and the hand-over of a LoRA from one tab to
the other."""

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
from webui.download_panel import PageDownloads
from webui.lora_details import LoraFilter
from webui.prompt_tags import with_tag
from webui.tabs import generate, train
from webui.widgets import QUICK, html

HEAD = (
    '<div id="head"><h1>sd<span>lora</span></h1>'
    '<button id="theme-switch" type="button" aria-label="Switch between light and dark" '
    'title="Light or dark">◐</button></div>'
)


def build(app_state: AppState) -> gr.Blocks:
    """The whole page for one workspace."""
    with Page(title="sdlora", analytics_enabled=False) as page:
        html(HEAD)
        problems = html(elem_id="workspace-problems")
        with gr.Tabs(selected="generate") as tabs:
            with gr.Tab("Generate", id="generate", render_children=True):
                generate_tab = generate.build(app_state)
            with gr.Tab("Train", id="train", render_children=True):
                train_tab = train.build(app_state)
        panels = (generate_tab.picker.downloads, train_tab.picker.downloads)
        downloads = PageDownloads(app_state, *panels)

        def opened(generate_draft: str, train_draft: str, request: gr.Request) -> dict[Any, Any]:
            stored = (drafts.parsed(generate_draft), drafts.parsed(train_draft))
            asked_for = request.query_params.get("run", "")
            shown = on_open(app_state, tabs, (generate_tab, train_tab), stored, asked_for)
            notices = {problems: markup.notices(app_state.problems())}
            return {**shown, **downloads.opened(), **notices}

        own = (generate_tab.draft, train_tab.draft)
        outputs = [tabs, problems, generate_tab.draft.lost, train_tab.draft.lost]
        outputs += [*generate_tab.views, *train_tab.views]
        outputs += [*generate_tab.form.fields.values(), *train_tab.held.values()]
        outputs += [*generate_tab.lora_browser.views, *generate_tab.picker.views]
        outputs += [*train_tab.measured.views, *train_tab.captioning.views, *train_tab.picker.views]
        named = {part for part in train_tab.suggested if part not in train_tab.held.values()}
        page.load(
            opened,
            [draft.stored for draft in own],
            [*outputs, *named, *downloads.views, *downloads.folds],
            js=drafts.stored(*own),
            **QUICK,
        ).then(None, js=drafts.READY, **QUICK)
        _wire_use(app_state, tabs, generate_tab, train_tab)
        _list_anew(app_state, downloads, generate_tab, train_tab)
    page.queue(api_open=False, max_size=64)
    return page


def _list_anew(
    app_state: AppState,
    downloads: PageDownloads,
    generate_tab: generate.GenerateTab,
    train_tab: train.TrainTab,
) -> None:
    """List models and LoRAs anew once a download is done."""
    for picker in (generate_tab.picker, train_tab.picker):
        picker.reload_on(downloads.done.change)
    generate_tab.lora_browser.reload_on(app_state, downloads.done.change)


def _wire_use(
    app_state: AppState,
    tabs: gr.Tabs,
    generate_tab: generate.GenerateTab,
    train_tab: train.TrainTab,
) -> None:
    """Connect the buttons that use a training's result, or one of its checkpoints, in the Generate
    tab."""
    shown, picker = train_tab.training.shown, train_tab.training.checkpoint_picker

    def hand_over(run: Run, tag: str, sent: Mapping[Component, Any]) -> dict[Any, Any]:
        lora = train.lora_for_prompt(app_state, run, tag)
        text = with_tag(sent[generate_tab.prompt] or "", *lora)
        cards = generate_tab.lora_browser.show(
            app_state, generate_tab.lora_browser.current_filter(app_state, sent)
        )
        return {generate_tab.prompt: text, **cards, tabs: gr.Tabs(selected="generate")}

    def use(sent: Mapping[Component, Any]) -> dict[Any, Any]:
        run = app_state.training(sent[shown])
        if run is None or not run.state.result:
            raise RunError("the training is not there any more, or has left no LoRA")
        return hand_over(run, Path(run.state.result).stem, sent)

    def use_step(sent: Mapping[Component, Any]) -> dict[Any, Any]:
        run = app_state.training(sent[shown])
        tag = picker.save_checkpoint(run, sent[picker.step]).stem
        return hand_over(run, tag, sent) if run else {}

    target = [generate_tab.prompt, tabs, *generate_tab.lora_browser.views]
    inputs = {shown, generate_tab.prompt, *generate_tab.lora_browser.filter_inputs}
    train_tab.training.notice.answer(train_tab.training.use.click, use, inputs, target)
    picker.notice.answer(picker.use.click, use_step, {*inputs, picker.step}, target)


def on_open(
    app_state: AppState,
    tabs: gr.Tabs,
    built: tuple[generate.GenerateTab, train.TrainTab],
    stored: tuple[Mapping[str, Any], Mapping[str, Any]],
    asked_for: str,
) -> dict[Any, Any]:
    """Updates for a newly opened page: the stored drafts, and the training that the address names,
    else the running one."""
    generate_tab, train_tab = built
    trainings, requests = app_state.trainings(), app_state.requests()
    live = next((run for run in trainings if run.live), None)
    named = app_state.training(asked_for) if asked_for else None
    shown: Run | None = named or live or next(iter(trainings), None)
    to_training = {tabs: gr.Tabs(selected="train")} if named or live else {}
    form = generate.refilled(generate_tab, stored[0])
    model = form.get(generate_tab.form.fields["model"]) or "starter"
    training = train.refilled(app_state, train_tab, stored[1])
    models, pickers = app_state.usable_models(), dict[Any, Any]()
    for picker, parts, values in (
        (generate_tab.picker, generate_tab.form, form),
        (train_tab.picker, train_tab.advanced, training),
    ):
        chosen = values.get(picker.model)
        pickers |= {picker.model: picker.choices(models, chosen), **picker.opened(chosen)}
        pickers |= picker.part_choices(models, parts, values)
    return {
        **generate.view(app_state, generate_tab, next(iter(requests), None)),
        **form,
        **train.view(app_state, train_tab, shown),
        **training,
        **pickers,
        **train_tab.captioning.opened(),
        **train_tab.measured.show(app_state.live_run("measure")),
        **generate_tab.lora_browser.show(
            app_state, LoraFilter(model_base=app_state.model_base(model))
        ),
        **to_training,
    }
