"""The Train tab: the form that starts a training, and the training on screen beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from sdlora.data.caption_files import SIDECAR_SUFFIXES
from sdlora.data.report import check_dataset
from sdlora.errors import LoraFileError, SdloraError
from sdlora.jobs import run_folder
from sdlora.jobs.kinds import MeasureSettings
from sdlora.messages import Message
from sdlora.models.registry import preset_family
from sdlora.prompt.scanner import escaped
from sdlora.settings.presets import preset, with_preset
from sdlora.settings.train import TrainSettings
from webui import caption_editor, dataset_report, dataset_upload, fields, markup
from webui.app_state import AppState, Run
from webui.captioning import CaptioningPanel
from webui.drafts import Draft, lost, parsed, recall
from webui.estimates import known_cost
from webui.form import Form, error_renderer
from webui.job_card import JobCard
from webui.job_poller import JobPoller
from webui.lora_details import prompt_trigger_words
from webui.model_picker import PART_LOOKS, ModelPicker
from webui.notice import Notice, Reply
from webui.training_panel import TrainingPanel
from webui.uploads import discard
from webui.widgets import QUICK, TYPED, html

GOALS = (
    ("Style: the look of a picture", "style"),
    ("Character: a person or a creature", "character"),
    ("Object: a thing or a place", "object"),
)
MAX_THUMBS = 20
NAME_HINT = "Name of the LoRA and of its tag in prompts"
TRIGGER_HINT = "Words that activate the LoRA; suggested from the captions"
SET_NAME = "my pictures"
# Fields that name sets of pictures
SETS = {"more_data", "regularisation", "masks", "validation_data"}


@dataclass(frozen=True)
class TrainTab:
    """Components of the tab that other modules use."""

    form: Form
    advanced: Form
    draft: Draft
    pictures: Component
    set_name: Component
    thumbs: Component
    look: Component
    measure: Component
    preflight: Component
    measured: JobCard
    captioning: CaptioningPanel
    picker: ModelPicker
    summary: Component
    notice: Notice
    start: Component
    training: TrainingPanel

    @property
    def inputs(self) -> set[Component]:
        """Components whose values make the settings of a training."""
        fields = (*self.form.fields.values(), *self.advanced.fields.values())
        return {self.pictures, self.draft.usual, *fields}

    @property
    def held(self) -> dict[str, Component]:
        """Components that the user fills in, by name."""
        beside = {"pictures": self.pictures, "set_name": self.set_name}
        return {**beside, **self.form.fields, **self.advanced.fields}

    @property
    def views(self) -> list[Component]:
        """Components that change with the training on screen."""
        return self.training.views

    @property
    def suggested(self) -> list[Component]:
        """Components that the choice of pictures, goal or model fills in."""
        named = [self.form.fields[name] for name in ("goal", "name", "trigger_word")]
        shown = (self.thumbs, self.preflight, self.summary, self.draft.usual)
        return [*shown, *named, *self.advanced.fields.values()]


def build(app_state: AppState) -> TrainTab:
    """Build the tab inside an open `gr.Tab`, with its events."""
    form, advanced = (Form(TrainSettings, "train", "advanced", PART_LOOKS) for _ in range(2))
    sets = sorted(app_state.workspace.dataset_folders())
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320, elem_classes="ask"):
            pictures = gr.Dropdown(
                sets, value=sets[0] if sets else None, label="Pictures", elem_id="pictures-choice",
                info="Set of captioned pictures to train on",
            )  # fmt: skip
            thumbs = html(elem_id="thumbs")
            with gr.Row(elem_classes="row-fields"):
                look = gr.Button("Check these pictures", size="sm", elem_id="check-pictures")
                measure = gr.Button("Measure time and memory", size="sm", elem_id="measure")
            measured = JobCard(app_state, "measure", markup.measurement_notice)
            checked_pictures = html(elem_id="preflight")
            set_name = _own_pictures(app_state, pictures)
            edits = caption_editor.build(app_state, pictures)
            captioning = CaptioningPanel(app_state, pictures)
            with gr.Row(elem_classes="row-fields"):
                form.add("name", elem_id="lora-name", info=NAME_HINT)
                form.add("trigger_word", elem_id="trigger-word", info=TRIGGER_HINT)
            form.add("goal", build=partial(gr.Radio, GOALS), elem_classes=["goals"])
            form.add("effort")
            picker = ModelPicker(app_state, form, "train")
            summary = html(elem_id="summary")
            start = gr.Button("Start training", variant="primary", elem_id="start")
            notice = Notice("train-notice")
            with gr.Row(elem_classes="row-fields resets"):
                draft = Draft("train")
            _advanced(form, advanced)
        with gr.Column(scale=6, min_width=320, elem_classes="training"):
            training = TrainingPanel(app_state)
    tab = TrainTab(
        form, advanced, draft, pictures, set_name, thumbs, look, measure, checked_pictures,
        measured, captioning, picker, summary, notice, start, training,
    )  # fmt: skip
    _wire(app_state, tab)
    _wire_captions(app_state, tab, edits)
    return tab


def _own_pictures(app_state: AppState, pictures: Component) -> Component:
    with gr.Accordion("Add your own pictures", open=False, elem_id="own-pictures"):
        name = gr.Textbox(label="Name of the set", value=SET_NAME, elem_id="set-name")
        files = gr.File(
            label="Drop pictures and captions (.txt of the same name) here, or one zip",
            file_count="multiple",
            file_types=["image", *SIDECAR_SUFFIXES, ".zip"],
            height=160,
            elem_id="files",
        )
        add = gr.Button("Add these pictures", elem_id="add")
        notice = Notice("add-notice")

    def added(name: str, paths: list[str] | None) -> Reply:
        result = dataset_upload.add_files(app_state.workspace, name, [Path(p) for p in paths or ()])
        discard(map(Path, paths or ()), app_state.workspace.uploads)
        sets = sorted(app_state.workspace.dataset_folders())
        chosen = gr.Dropdown(sets, value=result.folder.name)
        return Reply({files: None, pictures: chosen}, markup.upload_notice(result))

    notice.answer(add.click, added, [name, files], [files, pictures])
    return name


def _advanced(form: Form, advanced: Form) -> None:
    with gr.Accordion("Advanced", open=False, elem_id="advanced"):
        advanced.add_rest("data", *form.fields)


def _wire(app_state: AppState, tab: TrainTab) -> None:
    poller = JobPoller(app_state, app_state.training, lambda run: tab.training.show(app_state, run))

    def chosen(sent: Mapping[Component, Any]) -> dict[Component, Any]:
        shown = suggest_names(app_state, tab, sent)
        return {
            **shown,
            **summary_line(app_state, tab, {**sent, **shown}),
            **keep_live_measurement(app_state, tab),
        }

    def preset_for(sent: Mapping[Component, Any]) -> dict[Component, Any]:
        shown = suggest_values(app_state, tab, sent)
        return {
            **shown,
            **summary_line(app_state, tab, {**sent, **shown}),
            **keep_live_measurement(app_state, tab),
        }

    def start(sent: Mapping[Component, Any]) -> Reply:
        settings = TrainSettings.from_values(settings_values(app_state, tab, sent))
        return poller.start(settings, settings.name, "run-card")

    suggested, inputs = [*tab.suggested, *tab.measured.views], tab.inputs
    tab.pictures.change(chosen, inputs=inputs, outputs=suggested, **QUICK)
    for name in ("goal", "effort", "model"):
        tab.form.fields[name].input(preset_for, inputs=inputs, outputs=suggested, **TYPED)
    tab.picker.chosen.then(preset_for, inputs=inputs, outputs=suggested, **QUICK)
    for name in ("steps", "epochs", "batch_size"):
        part = tab.advanced.fields[name]
        part.input(lambda sent: summary_line(app_state, tab, sent), inputs, [tab.summary], **TYPED)
    tab.draft.wire(
        tab.held,
        [*tab.form.fields.values(), tab.pictures, tab.set_name, *tab.suggested],
        lambda stored: refilled(app_state, tab, stored),
    )
    _wire_checks(app_state, tab)
    error_html = error_renderer(tab.form, tab.advanced)
    tab.notice.answer(tab.start.click, start, inputs, tab.views, error_html=error_html)
    tab.training.wire(app_state, poller)


def _wire_checks(app_state: AppState, tab: TrainTab) -> None:
    """Connect the checks before a training: dataset report, and measurement of time and memory."""
    inputs = tab.inputs
    tab.measured.notice.answer(
        tab.look.click, lambda sent: {tab.preflight: preflight_html(app_state, tab, sent)},
        inputs, [tab.preflight], show_progress="minimal",
    )  # fmt: skip
    tab.measured.wire()
    tab.measured.card.change(
        lambda sent: summary_line(app_state, tab, sent), inputs, [tab.summary], **QUICK
    )
    tab.measured.notice.answer(
        tab.measure.click, lambda sent: tab.measured.start(measure_settings(app_state, tab, sent)),
        inputs, tab.measured.views,
    )  # fmt: skip


def keep_live_measurement(app_state: AppState, tab: TrainTab) -> dict[Component, Any]:
    """Updates that clear a measurement of other settings, unless one is running."""
    return tab.measured.show(app_state.live_run("measure"))


def _wire_captions(app_state: AppState, tab: TrainTab, edits: list[Any]) -> None:
    """Read the captions again after they have changed."""
    outputs = [tab.thumbs, tab.preflight, tab.draft.usual, tab.form.fields["trigger_word"]]

    def read_again(sent: Mapping[Component, Any]) -> dict[Component, Any]:
        updates = suggest_names(app_state, tab, sent)
        return {part: value for part, value in updates.items() if part in outputs}

    for event in (*edits, *tab.captioning.wire()):
        event.then(read_again, tab.inputs, outputs, **QUICK)


def family_of(app_state: AppState, tab: TrainTab, sent: Mapping[Component, Any]) -> str:
    """Model family whose presets apply to the chosen model."""
    return preset_family(
        app_state.workspace.model_source(sent[tab.form.fields["model"]] or "starter")
    )


def preset_values(
    app_state: AppState, tab: TrainTab, sent: Mapping[Component, Any]
) -> dict[str, Any]:
    """Preset for the goal, effort and model in the form."""
    goal, effort = (sent[tab.form.fields[name]] for name in ("goal", "effort"))
    return preset(family_of(app_state, tab, sent), goal, effort)


def settings_values(
    app_state: AppState, tab: TrainTab, sent: Mapping[Component, Any]
) -> dict[str, Any]:
    """Settings that the user set. The page sends names of sets, never paths; DataError for another
    name."""
    folder = app_state.workspace.dataset_folders().get(sent[tab.pictures])
    preset_of_goal = preset_values(app_state, tab, sent)
    given = {**tab.form.read(sent), **tab.advanced.read(sent, preset_of_goal)}
    for name in given.keys() & SETS:
        value = given[name]
        many = tuple(
            dataset_upload.set_path(app_state.workspace, name_of_set)
            for name_of_set in ((value,) if isinstance(value, str) else value)
        )
        given[name] = many if isinstance(value, tuple) else "".join(many)
    return {"data": str(folder or ""), **given}


def measure_settings(
    app_state: AppState, tab: TrainTab, sent: Mapping[Component, Any]
) -> MeasureSettings:
    """Settings of a measurement of the training in the form. SettingsError: they are invalid."""
    return MeasureSettings.from_values(
        {**settings_values(app_state, tab, sent), "name": "measured"}
    )


def default_goal(app_state: AppState, tab: TrainTab, sent: Mapping[Component, Any]) -> str:
    """Goal of the chosen pictures where the set declares one; else the default."""
    pictures = sent[tab.pictures]
    known = app_state.workspace.goal_of(pictures) if pictures else ""
    return known or str(fields.default_value(TrainSettings.model_fields["goal"]))


def default_values(
    app_state: AppState, tab: TrainTab, sent: Mapping[Component, Any]
) -> dict[str, Any]:
    """Default values of the components: suggestions from the pictures, and the preset of goal,
    effort and model."""
    sets = app_state.workspace.dataset_folders()
    folder = sets.get(sent[tab.pictures] or "")
    names: dict[str, Any] = {"goal": default_goal(app_state, tab, sent)}
    if folder is not None:
        trigger_word = dataset_upload.read_set(folder).trigger_word
        names |= {"name": app_state.free_name(folder.name), "trigger_word": trigger_word}
    return {
        "pictures": next(iter(sorted(sets)), None),
        "set_name": SET_NAME,
        **tab.form.held(names),
        **tab.advanced.held(preset_values(app_state, tab, sent)),
    }


def suggestions(
    app_state: AppState, tab: TrainTab, sent: Mapping[Component, Any], names: Iterable[str]
) -> dict[Component, Any]:
    """Default values of these fields, except where the user has set another one."""
    before, now = parsed(sent.get(tab.draft.usual)), default_values(app_state, tab, sent)
    held = tab.held
    untouched = [n for n in names if sent.get(held[n]) in (None, "", before.get(n))]
    return {tab.draft.usual: json.dumps(now), **{held[name]: now[name] for name in untouched}}


def suggest_names(
    app_state: AppState, tab: TrainTab, sent: Mapping[Component, Any]
) -> dict[Component, Any]:
    """Goal, name and trigger word for the chosen set, the preset of that goal, and the set's
    thumbnails."""
    folder = app_state.workspace.dataset_folders().get(sent[tab.pictures] or "")
    if folder is None:
        return {tab.thumbs: "", tab.preflight: ""}
    pictures_of_set = dataset_upload.read_set(folder)
    shown = slice(0, MAX_THUMBS)
    label = f"{len(pictures_of_set.pictures)} pictures"
    goal = tab.form.fields["goal"]
    aim = {goal: suggestions(app_state, tab, sent, ("goal",)).get(goal, sent[goal])}
    names = ("name", "trigger_word", *tab.advanced.fields)
    return {
        **suggestions(app_state, tab, {**sent, **aim}, names),
        **aim,
        tab.preflight: "",  # it belongs to another set
        tab.thumbs: markup.thumbnails(
            pictures_of_set.pictures[shown], app_state.media, pictures_of_set.captions[shown], label
        ),
    }


def suggest_values(
    app_state: AppState, tab: TrainTab, sent: Mapping[Component, Any]
) -> dict[Component, Any]:
    """Advanced fields by the preset of goal, effort and model."""
    return suggestions(app_state, tab, sent, tab.advanced.fields)


def refilled(app_state: AppState, tab: TrainTab, stored: Mapping[str, Any]) -> dict[Component, Any]:
    """Updates that fill the form anew: the default values, with a draft's values over them."""
    recalled, problems = recall(stored, tab.form, tab.advanced, beside=("pictures", "set_name"))
    sets = sorted(app_state.workspace.dataset_folders())
    pictures = stored.get("pictures")
    if pictures and pictures not in sets:
        problems.append(
            Message("the set of pictures {name!r} does not exist any more", name=pictures)
        )
    if pictures not in sets:
        pictures = sets[0] if sets else None
    begun = {tab.pictures: pictures, **tab.form.show({})}
    begun[tab.form.fields["goal"]] = default_goal(app_state, tab, begun)
    begun |= recalled
    usual = default_values(app_state, tab, begun)
    sent = {part: usual[name] for name, part in tab.held.items()}
    sent |= {**recalled, tab.pictures: pictures, tab.draft.usual: json.dumps(usual)}
    return {
        **sent,
        **suggest_names(app_state, tab, sent),
        **summary_line(app_state, tab, sent),
        tab.set_name: stored.get("set_name") or SET_NAME,
        tab.pictures: gr.Dropdown(sets, value=pictures),
        tab.draft.lost: lost(problems),
    }


def summary_line(
    app_state: AppState, tab: TrainTab, sent: Mapping[Component, Any]
) -> dict[Component, Any]:
    """Line with the pictures, steps and time of the training."""
    folder = app_state.workspace.dataset_folders().get(sent[tab.pictures])
    try:
        given = TrainSettings.from_values({**settings_values(app_state, tab, sent), "name": "any"})
        settings = with_preset(given, family_of(app_state, tab, sent))
    except SdloraError:
        return {tab.summary: ""}  # starting reports the error
    count = len(dataset_upload.read_set(folder).pictures) if folder else 0
    return {tab.summary: dataset_report.plan(settings, count, known_cost(app_state, settings))}


def preflight_html(app_state: AppState, tab: TrainTab, sent: Mapping[Component, Any]) -> str:
    """HTML of the dataset report. SettingsError, DataError: the training could not start."""
    given = TrainSettings.from_values({**settings_values(app_state, tab, sent), "name": "any"})
    settings = with_preset(given, family_of(app_state, tab, sent))
    preflight = check_dataset(settings, app_state.workspace)
    return dataset_report.report(preflight, app_state.media, known_cost(app_state, settings))


def view(app_state: AppState, tab: TrainTab, run: Run | None) -> dict[Component, Any]:
    """Updates that show a training; None: there has been none."""
    return tab.training.show(app_state, run)


def lora_for_prompt(app_state: AppState, run: Run, tag: str) -> tuple[str, tuple[str, ...], float]:
    """Tag name, trigger words and weight with which a prompt uses a training's LoRA."""
    trigger_words: tuple[str, ...] = ()
    weight = markup.DEFAULT_WEIGHT
    with suppress(LoraFileError):
        entry = app_state.library.find(tag)
        trigger_words, weight = prompt_trigger_words(entry), markup.default_weight(entry)
    if not trigger_words:
        settings = TrainSettings.load(run.folder / run_folder.SETTINGS_FILE)
        trigger_words = tuple(filter(None, [escaped(settings.trigger_word)]))
    return tag, trigger_words, weight
