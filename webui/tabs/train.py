"""The tab *Train*: a few fields to start a training, and beside them the training on screen."""

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
from sdlora.prompt.scanner import escaped
from sdlora.settings.presets import preset, with_preset
from sdlora.settings.train import TrainSettings
from webui import caption_editor, dataset_report, dataset_upload, fields, markup
from webui.app_state import AppState, Run
from webui.captioning import Describing
from webui.drafts import Draft, lost, parsed, recall
from webui.estimates import known_cost
from webui.form import Form, marker
from webui.job_card import JobCard
from webui.job_poller import JobPoller
from webui.lora_details import prompt_words
from webui.notice import Notice, Reply
from webui.training_panel import TrainingPanel
from webui.uploads import discard
from webui.widgets import QUICK, html

GOALS = (
    ("Style: how everything looks", "style"),
    ("Character: someone", "character"),
    ("Object: something", "object"),
)
MOST_THUMBS = 20
TRIGGER_HINT = "The words that call it, as its captions or name suggest"
SET_NAME = "my pictures"
# Fields that name sets of pictures
SETS = {"more_data", "regularisation", "masks", "validation_data"}


@dataclass(frozen=True)
class TrainTab:
    """The components that others reach for."""

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
    describing: Describing
    summary: Component
    notice: Notice
    start: Component
    training: TrainingPanel

    @property
    def inputs(self) -> set[Component]:
        """What a training is started from."""
        fields = (*self.form.fields.values(), *self.advanced.fields.values())
        return {self.pictures, self.draft.usual, *fields}

    @property
    def held(self) -> dict[str, Component]:
        """What somebody fills in, by name."""
        beside = {"pictures": self.pictures, "set_name": self.set_name}
        return {**beside, **self.form.fields, **self.advanced.fields}

    @property
    def views(self) -> list[Component]:
        """What changes when the training on screen does."""
        return self.training.views

    @property
    def suggested(self) -> list[Component]:
        """What the choice of pictures, goal or model fills in."""
        named = [self.form.fields[name] for name in ("goal", "name", "trigger_word")]
        shown = (self.thumbs, self.preflight, self.summary, self.draft.usual)
        return [*shown, *named, *self.advanced.fields.values()]


def build(studio: AppState) -> TrainTab:
    """The tab's components and what they do, inside an open `gr.Tab`."""
    form, advanced = (Form(TrainSettings, "train", "advanced") for _ in range(2))
    sets = sorted(studio.workspace.dataset_folders())
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320, elem_classes="ask"):
            pictures = gr.Dropdown(
                sets, value=sets[0] if sets else None, label="Pictures", elem_id="pictures-choice",
                info="A set of captioned pictures to learn from",
            )  # fmt: skip
            thumbs = html(elem_id="thumbs")
            with gr.Row(elem_classes="row-fields"):
                look = gr.Button("Check these pictures", size="sm", elem_id="check-pictures")
                measure = gr.Button("Measure time and memory", size="sm", elem_id="measure")
            measured = JobCard(studio, "measure", markup.measured)
            checked_pictures = html(elem_id="preflight")
            set_name = _own_pictures(studio, pictures)
            edits = caption_editor.build(studio, pictures)
            describing = Describing(studio, pictures)
            with gr.Row(elem_classes="row-fields"):
                form.add("name", elem_id="lora-name", info="Its tag in prompts will be this")
                form.add("trigger_word", elem_id="trigger-word", info=TRIGGER_HINT)
            form.add("goal", build=partial(gr.Radio, GOALS), elem_classes=["goals"])
            form.add("effort")
            summary = html(elem_id="summary")
            start = gr.Button("Start training", variant="primary", elem_id="start")
            notice = Notice("train-notice")
            with gr.Row(elem_classes="row-fields resets"):
                draft = Draft("train")
            _advanced(studio, form, advanced)
        with gr.Column(scale=6, min_width=320, elem_classes="training"):
            training = TrainingPanel(studio)
    tab = TrainTab(
        form, advanced, draft, pictures, set_name, thumbs, look, measure, checked_pictures,
        measured, describing, summary, notice, start, training,
    )  # fmt: skip
    _wire(studio, tab)
    _wire_captions(studio, tab, edits)
    return tab


def _own_pictures(studio: AppState, pictures: Component) -> Component:
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
        result = dataset_upload.add(studio.workspace, name, [Path(p) for p in paths or ()])
        discard(map(Path, paths or ()), studio.workspace.uploads)
        sets = sorted(studio.workspace.dataset_folders())
        chosen = gr.Dropdown(sets, value=result.folder.name)
        return Reply({files: None, pictures: chosen}, markup.added(result))

    notice.answer(add.click, added, [name, files], [files, pictures])
    return name


def _advanced(studio: AppState, form: Form, advanced: Form) -> None:
    with gr.Accordion("Advanced", open=False, elem_id="advanced"):
        models = studio.workspace.model_names()
        form.add("model", build=partial(gr.Dropdown, models, allow_custom_value=True))
        advanced.add_rest("data", *form.fields)


def _wire(studio: AppState, tab: TrainTab) -> None:
    follower = JobPoller(studio, studio.training, lambda run: tab.training.show(studio, run))

    def chosen(sent: Mapping[Component, Any]) -> dict[Component, Any]:
        shown = suggest_names(studio, tab, sent)
        return {**shown, **summed_up(studio, tab, {**sent, **shown}), **measured_still(studio, tab)}

    def preset_for(sent: Mapping[Component, Any]) -> dict[Component, Any]:
        shown = suggest_values(studio, tab, sent)
        return {**shown, **summed_up(studio, tab, {**sent, **shown}), **measured_still(studio, tab)}

    def start(sent: Mapping[Component, Any]) -> Reply:
        settings = TrainSettings.from_values(values(studio, tab, sent))
        return follower.start(settings, settings.name, "run-card")

    suggested, inputs = [*tab.suggested, *tab.measured.views], tab.inputs
    tab.pictures.change(chosen, inputs=inputs, outputs=suggested, **QUICK)
    for name in ("goal", "effort", "model"):
        tab.form.fields[name].input(preset_for, inputs=inputs, outputs=suggested, **QUICK)
    for name in ("steps", "epochs", "batch_size"):
        part = tab.advanced.fields[name]
        part.input(lambda sent: summed_up(studio, tab, sent), inputs, [tab.summary], **QUICK)
    tab.draft.wire(
        tab.held,
        [*tab.form.fields.values(), tab.pictures, tab.set_name, *tab.suggested],
        lambda stored: refilled(studio, tab, stored),
    )
    _wire_looks(studio, tab)
    marks = marker(tab.form, tab.advanced)
    tab.notice.answer(tab.start.click, start, inputs, tab.views, marks=marks)
    tab.training.wire(studio, follower)


def _wire_looks(studio: AppState, tab: TrainTab) -> None:
    """What can be known of a training before it starts."""
    inputs = tab.inputs
    tab.measured.notice.answer(
        tab.look.click, lambda sent: {tab.preflight: checked(studio, tab, sent)},
        inputs, [tab.preflight], show_progress="minimal",
    )  # fmt: skip
    tab.measured.wire()
    tab.measured.card.change(
        lambda sent: summed_up(studio, tab, sent), inputs, [tab.summary], **QUICK
    )
    tab.measured.notice.answer(
        tab.measure.click, lambda sent: tab.measured.start(to_measure(studio, tab, sent)),
        inputs, tab.measured.views,
    )  # fmt: skip


def measured_still(studio: AppState, tab: TrainTab) -> dict[Component, Any]:
    """What was measured was something else, now that the choice is another; unless it goes on."""
    return tab.measured.show(studio.going_on("measure"))


def _wire_captions(studio: AppState, tab: TrainTab, edits: list[Any]) -> None:
    """What the captions say is looked at again when they have changed."""
    outputs = [tab.thumbs, tab.preflight, tab.draft.usual, tab.form.fields["trigger_word"]]

    def look_again(sent: Mapping[Component, Any]) -> dict[Component, Any]:
        found = suggest_names(studio, tab, sent)
        return {part: value for part, value in found.items() if part in outputs}

    for event in (*edits, *tab.describing.wire()):
        event.then(look_again, tab.inputs, outputs, **QUICK)


def family_of(studio: AppState, tab: TrainTab, sent: Mapping[Component, Any]) -> str:
    """Whose presets fit the chosen model."""
    return studio.workspace.preset_family(sent[tab.form.fields["model"]] or "starter")


def wanted_values(studio: AppState, tab: TrainTab, sent: Mapping[Component, Any]) -> dict[str, Any]:
    """The preset of what is chosen in the form."""
    goal, effort = (sent[tab.form.fields[name]] for name in ("goal", "effort"))
    return preset(family_of(studio, tab, sent), goal, effort)


def values(studio: AppState, tab: TrainTab, sent: Mapping[Component, Any]) -> dict[str, Any]:
    """What the user set. The page sends names of sets, never a path; DataError for another."""
    folder = studio.workspace.dataset_folders().get(sent[tab.pictures])
    wanted = wanted_values(studio, tab, sent)
    given = {**tab.form.read(sent), **tab.advanced.read(sent, wanted)}
    for name in given.keys() & SETS:
        its = given[name]
        many = tuple(
            dataset_upload.named(studio.workspace, one)
            for one in ((its,) if isinstance(its, str) else its)
        )
        given[name] = many if isinstance(its, tuple) else "".join(many)
    return {"data": str(folder or ""), **given}


def to_measure(studio: AppState, tab: TrainTab, sent: Mapping[Component, Any]) -> MeasureSettings:
    """The training in the form, to be measured. SettingsError: it could not begin."""
    return MeasureSettings.from_values({**values(studio, tab, sent), "name": "measured"})


def usual_goal(studio: AppState, tab: TrainTab, sent: Mapping[Component, Any]) -> str:
    """The goal that the chosen pictures are for, as far as they say; else the default."""
    pictures = sent[tab.pictures]
    known = studio.workspace.goal_of(pictures) if pictures else ""
    return known or str(fields.default(TrainSettings.model_fields["goal"]))


def usual_values(studio: AppState, tab: TrainTab, sent: Mapping[Component, Any]) -> dict[str, Any]:
    """What the components hold while nobody has set them: what the pictures suggest, and what the
    goal, the effort and the model want."""
    sets = studio.workspace.dataset_folders()
    folder = sets.get(sent[tab.pictures] or "")
    names: dict[str, Any] = {"goal": usual_goal(studio, tab, sent)}
    if folder is not None:
        trigger_word = dataset_upload.look(folder).trigger_word
        names |= {"name": studio.free_name(folder.name), "trigger_word": trigger_word}
    return {
        "pictures": next(iter(sorted(sets)), None),
        "set_name": SET_NAME,
        **tab.form.held(names),
        **tab.advanced.held(wanted_values(studio, tab, sent)),
    }


def suggestions(
    studio: AppState, tab: TrainTab, sent: Mapping[Component, Any], names: Iterable[str]
) -> dict[Component, Any]:
    """The usual values of these fields, except where somebody has set another one."""
    before, now = parsed(sent.get(tab.draft.usual)), usual_values(studio, tab, sent)
    held = tab.held
    untouched = [n for n in names if sent.get(held[n]) in (None, "", before.get(n))]
    return {tab.draft.usual: json.dumps(now), **{held[name]: now[name] for name in untouched}}


def suggest_names(
    studio: AppState, tab: TrainTab, sent: Mapping[Component, Any]
) -> dict[Component, Any]:
    """Goal, name and trigger word for the chosen set of pictures, what that goal wants, and what
    is in the set."""
    folder = studio.workspace.dataset_folders().get(sent[tab.pictures] or "")
    if folder is None:
        return {tab.thumbs: "", tab.preflight: ""}
    found = dataset_upload.look(folder)
    some = slice(0, MOST_THUMBS)
    label = f"{len(found.pictures)} pictures"
    goal = tab.form.fields["goal"]
    aim = {goal: suggestions(studio, tab, sent, ("goal",)).get(goal, sent[goal])}
    names = ("name", "trigger_word", *tab.advanced.fields)
    return {
        **suggestions(studio, tab, {**sent, **aim}, names),
        **aim,
        tab.preflight: "",  # that of another set
        tab.thumbs: markup.thumbnails(
            found.pictures[some], studio.media, found.captions[some], label
        ),
    }


def suggest_values(
    studio: AppState, tab: TrainTab, sent: Mapping[Component, Any]
) -> dict[Component, Any]:
    """The advanced fields as the goal, the effort and the model want them."""
    return suggestions(studio, tab, sent, tab.advanced.fields)


def refilled(studio: AppState, tab: TrainTab, stored: Mapping[str, Any]) -> dict[Component, Any]:
    """Updates that begin the form anew: what is usual, and over it what a draft holds."""
    recalled, problems = recall(stored, tab.form, tab.advanced, beside=("pictures", "set_name"))
    sets = sorted(studio.workspace.dataset_folders())
    pictures = stored.get("pictures")
    if pictures and pictures not in sets:
        problems.append(Message("the set of pictures {name!r} is not here any more", name=pictures))
    if pictures not in sets:
        pictures = sets[0] if sets else None
    begun = {tab.pictures: pictures, **tab.form.show({})}
    begun[tab.form.fields["goal"]] = usual_goal(studio, tab, begun)
    begun |= recalled
    usual = usual_values(studio, tab, begun)
    sent = {part: usual[name] for name, part in tab.held.items()}
    sent |= {**recalled, tab.pictures: pictures, tab.draft.usual: json.dumps(usual)}
    return {
        **sent,
        **suggest_names(studio, tab, sent),
        **summed_up(studio, tab, sent),
        tab.set_name: stored.get("set_name") or SET_NAME,
        tab.pictures: gr.Dropdown(sets, value=pictures),
        tab.draft.lost: lost(problems),
    }


def summed_up(
    studio: AppState, tab: TrainTab, sent: Mapping[Component, Any]
) -> dict[Component, Any]:
    """One line on what will happen."""
    folder = studio.workspace.dataset_folders().get(sent[tab.pictures])
    try:
        given = TrainSettings.from_values({**values(studio, tab, sent), "name": "any"})
        settings = with_preset(given, family_of(studio, tab, sent))
    except SdloraError:
        return {tab.summary: ""}  # Start says what is wrong
    count = len(dataset_upload.look(folder).pictures) if folder else 0
    return {tab.summary: dataset_report.plan(settings, count, known_cost(studio, settings))}


def checked(studio: AppState, tab: TrainTab, sent: Mapping[Component, Any]) -> str:
    """Every picture as the training would see it. SdloraError: why there would be none."""
    given = TrainSettings.from_values({**values(studio, tab, sent), "name": "any"})
    settings = with_preset(given, family_of(studio, tab, sent))
    found = check_dataset(settings, studio.workspace)
    return dataset_report.report(found, studio.media, known_cost(studio, settings))


def view(studio: AppState, tab: TrainTab, run: Run | None) -> dict[Component, Any]:
    """Updates that bring a training onto the screen; None: there has been none."""
    return tab.training.show(studio, run)


def called(studio: AppState, run: Run, tag: str) -> tuple[str, tuple[str, ...], float]:
    """A LoRA of a training as prompts call it: its tag's name, the words, and its weight."""
    words: tuple[str, ...] = ()
    weight = markup.USUAL_WEIGHT
    with suppress(LoraFileError):
        entry = studio.library.find(tag)
        words, weight = prompt_words(entry), markup.usual_weight(entry)
    if not words:
        said = TrainSettings.load(run.folder / run_folder.SETTINGS_FILE)
        words = tuple(filter(None, [escaped(said.trigger_word)]))
    return tag, words, weight
