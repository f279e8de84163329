"""The Generate tab: prompt, LoRA browser and settings; the images beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr
from gradio.components import Component

from sdlora.errors import SdloraError
from sdlora.jobs import run_folder
from sdlora.settings.image_request import ImageRequest
from webui import markup, prompt_preview
from webui.app_state import AppState, Run
from webui.drafts import Draft, lost, recall
from webui.form import Form, error_renderer
from webui.job_poller import JobPoller
from webui.lora_browser import LoraBrowser
from webui.metadata_import import MetadataImporter, has_infotext
from webui.model_picker import PART_LOOKS, ModelPicker
from webui.notice import Notice, Reply
from webui.widgets import QUICK, TYPED, html

PLACEHOLDER = (
    "What should the picture show? For example:\n"
    "impressionist style, a red house by the sea, <lora:impressionist_style:0.8>"
)
SEED_WIDTH = 215  # pixels, for the 20 digits of a 64-bit seed
# Debounce: of the texts typed within 150 ms only the last is sent.
DEBOUNCED = "(...values) => new Promise((done) => setTimeout(() => done(values), 150))"
PASTED_SETTINGS = (
    "the settings in this text, such as Steps and Seed, are read as words of the prompt; press "
    "Import the settings in this text to set them instead"
)
EMPTY = '<div class="empty"><p>Your pictures appear here.<br>Ctrl + Enter makes one.</p></div>'


@dataclass(frozen=True)
class GenerateTab:
    """Components of the tab that other modules use."""

    form: Form
    prompt: Component
    counter: Component
    unused: Component
    parsed: Component
    picker: ModelPicker
    lora_browser: LoraBrowser
    metadata_importer: MetadataImporter
    draft: Draft
    generate: Component
    cancel: Component
    notice: Notice
    card: Component
    pictures: Component
    earlier: Component
    shown: Component
    seen: Component
    timer: gr.Timer

    @property
    def views(self) -> list[Component]:
        """Components that change with the request on screen."""
        own = (self.card, self.pictures, self.earlier, self.cancel)
        return [*own, self.shown, self.seen, self.timer]


def build(app_state: AppState) -> GenerateTab:
    """Build the tab inside an open `gr.Tab`, with its events."""
    form = Form(ImageRequest, "generate", "more-settings", PART_LOOKS)
    with gr.Row(equal_height=False, elem_classes="making"):
        with gr.Column(scale=5, min_width=320, elem_classes="ask"):
            form.add("prompt", lines=4, placeholder=PLACEHOLDER, elem_id="prompt", info=None)
            counter = html(elem_id="counter")
            with gr.Row(elem_classes="go"):
                generate = gr.Button("Generate", variant="primary", elem_id="generate", scale=3)
                cancel = gr.Button(
                    "Cancel", interactive=False, elem_id="cancel", scale=1, min_width=90
                )
            notice, restored = Notice("generate-notice"), Notice("restored-notice")
            unused = html(elem_id="unused")
            with gr.Accordion("Parsed prompt", open=False, elem_id="becomes"):
                parsed = html(elem_id="parsed")
            offer = gr.Button(
                "Import the settings in this text",
                size="sm",
                visible=False,
                elem_id="take-settings",
            )
            picker = ModelPicker(app_state, form, "generate")
            lora_browser = LoraBrowser()
            metadata_importer, draft = _settings(app_state, form, restored, offer)
        with gr.Column(scale=6, min_width=320, elem_classes="made"):
            card, pictures = html(EMPTY, elem_id="generate-card"), html(elem_id="pictures")
            earlier = html(elem_id="earlier")
    shown, seen, timer = gr.State(""), gr.State(""), gr.Timer(1.0, active=False)
    tab = GenerateTab(
        form, form.fields["prompt"], counter, unused, parsed, picker, lora_browser,
        metadata_importer, draft, generate, cancel, notice, card, pictures, earlier, shown, seen,
        timer,
    )  # fmt: skip
    _wire(app_state, tab)
    return tab


def _settings(
    app_state: AppState, form: Form, restored: Notice, offer: Component
) -> tuple[MetadataImporter, Draft]:
    with gr.Row(elem_classes="row-fields"):
        form.add("steps", "guidance", "count", compact=True, min_width=80)
        form.add("seed", compact=True, min_width=SEED_WIDTH, elem_id="seed")
    with gr.Row(elem_classes="row-fields"):
        metadata_importer = MetadataImporter(restored, offer)
        dice = gr.Button("Random seed", size="sm", elem_id="dice")
        same = gr.Button("Seed of the last picture", size="sm", elem_id="same-seed")
    with gr.Accordion("More settings", open=False, elem_id="more-settings"):
        form.add("negative_prompt", lines=2, elem_id="negative-prompt")
        with gr.Row(elem_classes="row-fields"):
            form.add("width", "height", compact=True, min_width=90)
            form.add("sampler", compact=True, min_width=150)
        form.add_rest()
    with gr.Row(elem_classes="row-fields resets"):
        draft = Draft("generate")
    draft.usual.value = json.dumps(form.held({}))
    dice.click(lambda: "-1", outputs=form.fields["seed"], **QUICK)
    same.click(lambda: _last_seed(app_state), outputs=form.fields["seed"], **QUICK)
    return metadata_importer, draft


def _last_seed(app_state: AppState) -> str:
    newest = app_state.recent_pictures(None, limit=1)
    return str(newest[0].seed if newest else -1)


def refilled(tab: GenerateTab, stored: Mapping[str, Any]) -> dict[Component, Any]:
    """Updates that restore a draft into the form. Other fields stay: the user may be typing
    already."""
    recalled, problems = recall(stored, tab.form)
    return {**recalled, tab.draft.lost: lost(problems)}


def _wire(app_state: AppState, tab: GenerateTab) -> None:
    poller = JobPoller(app_state, app_state.request, lambda run: view(app_state, tab, run))

    def generate(sent: Mapping[Component, Any]) -> Reply:
        return poller.start(ImageRequest.from_values(tab.form.read(sent)), card="generate-card")

    fields = set(tab.form.fields.values())
    error_html = error_renderer(tab.form)
    tab.notice.answer(tab.generate.click, generate, fields, tab.views, error_html=error_html)
    tab.notice.answer(tab.cancel.click, poller.stop, [tab.shown], tab.views)
    tab.lora_browser.wire(app_state, tab.form.fields["model"])
    tab.metadata_importer.wire(app_state, tab.form)
    tab.draft.wire(
        tab.form.fields,
        tab.form.fields.values(),
        lambda stored: {**tab.form.show({}), **refilled(tab, stored)},
    )
    _wire_preview(app_state, tab)
    tab.timer.tick(poller.tick, inputs=[tab.shown, tab.seen], outputs=tab.views, **QUICK)


def _wire_preview(app_state: AppState, tab: GenerateTab) -> None:
    """Update the prompt preview while the user types."""
    fields = tab.form.fields
    names = ("prompt", "negative_prompt", "model", "steps", "seed", "styles")

    def update_preview(sent: Mapping[Component, Any]) -> dict[Component, Any]:
        request = prompt_preview.PreviewRequest(**tab.form.valid_values(sent, *names))
        preview = prompt_preview.parse_prompts(app_state, request)
        has_settings = has_infotext(request.prompt)
        if has_settings:
            preview = replace(preview, problems=(*preview.problems, PASTED_SETTINGS))
        return {
            tab.counter: prompt_preview.counter_line(preview, request),
            tab.unused: prompt_preview.unused_notice(preview),
            tab.parsed: prompt_preview.preview_html(preview, request),
            tab.metadata_importer.offer: gr.Button(visible=has_settings),
        }

    gr.on(
        [fields[name].change for name in names],
        update_preview,
        {fields[name] for name in names},
        [tab.counter, tab.unused, tab.parsed, tab.metadata_importer.offer],
        js=DEBOUNCED,
        **TYPED,
    )


def view(app_state: AppState, tab: GenerateTab, run: Run | None) -> dict[Component, Any]:
    """Updates that show a request; None: there has been none yet."""
    old = markup.gallery(app_state.recent_pictures(run), app_state.media, small=True, reuse=True)
    earlier = f'<div class="legend">Earlier</div>{old}' if old else ""
    if run is None:
        return {tab.card: EMPTY, tab.earlier: earlier, tab.timer: gr.Timer(active=False)}
    return {
        tab.card: markup.run_card(run, _title(run)),
        tab.pictures: markup.gallery(run.state.samples, app_state.media, reuse=True),
        tab.earlier: earlier,
        tab.cancel: gr.Button(interactive=run.live and not run.stopping),
        tab.shown: run.name,
        tab.seen: run.version,
        tab.timer: gr.Timer(active=run.live),
    }


def _title(run: Run) -> str:
    try:
        prompt = ImageRequest.load(run.folder / run_folder.SETTINGS_FILE).prompt
    except SdloraError:
        return run.name
    return prompt if len(prompt) <= 120 else f"{prompt[:117]}…"
