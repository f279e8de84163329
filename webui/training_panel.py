"""A training on screen: status, loss curve, samples and checkpoints, and the buttons that control
it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr
from gradio.components import Component

from sdlora.errors import RunError
from sdlora.jobs import run_folder
from sdlora.jobs.control_files import Request
from sdlora.jobs.review import lora_files, suggest_lora
from webui import markup
from webui.app_state import AppState, Run
from webui.checkpoint_picker import CheckpointPicker
from webui.job_poller import JobPoller
from webui.notice import Notice, Updates
from webui.resume_options import ResumeOptions
from webui.widgets import QUICK, html

EMPTY = '<div class="empty"><p>A training appears here,<br>with its progress and samples.</p></div>'


class TrainingPanel:
    """Components of the panel, built where it stands, and their events."""

    def __init__(self, app_state: AppState) -> None:
        self.history = gr.Dropdown([], label="Trainings", visible=False, elem_id="history")
        self.card, self.curve = html(EMPTY, elem_id="run-card"), html(elem_id="curve")
        with gr.Row(elem_classes="row-fields"):
            self.use = gr.Button("Use this LoRA", variant="primary", visible=False, elem_id="use")
            self.resume = gr.Button("Resume", visible=False, elem_id="resume")
            self.pause = gr.Button("Pause", visible=False, elem_id="pause")
            self.stop = gr.Button("Stop and save", visible=False, elem_id="stop")
        self.options = ResumeOptions()
        with gr.Row(elem_classes="row-fields"):
            self.save = gr.Button("Save now", size="sm", visible=False, elem_id="save-now")
            self.sample = gr.Button("Sample now", size="sm", visible=False, elem_id="sample-now")
        self.notice = Notice("run-notice")
        self.samples = html(elem_id="samples")
        self.checkpoints = html(elem_id="checkpoints")
        self.checkpoint_picker = CheckpointPicker(app_state)
        self.shown, self.seen = gr.State(""), gr.State("")
        self.timer = gr.Timer(1.0, active=False)

    @property
    def views(self) -> list[Component]:
        """Components that change with the training on screen."""
        buttons = (self.use, self.resume, self.pause, self.stop, self.save, self.sample)
        own = (self.card, self.curve, self.samples, self.checkpoints, self.history)
        beside = (*self.options.views, *self.checkpoint_picker.views)
        return [*buttons, *own, *beside, self.shown, self.seen, self.timer]

    def wire(self, app_state: AppState, poller: JobPoller) -> None:
        """Connect the buttons to the training on screen."""

        def ask(request: Request) -> Callable[[str], Updates]:
            return lambda name: self._act(
                poller, name, lambda run: run_folder.request(run.folder, request)
            )

        def choose(name: str) -> Updates:
            return self._act(poller, name, lambda run: None)

        def answer(event: Callable[..., Any], act: Callable[[str], Updates]) -> None:
            self.notice.answer(event, act, [self.shown], self.views)

        asks: tuple[tuple[Component, Request], ...] = (
            (self.pause, "pause"),
            (self.save, "save"),
            (self.sample, "sample"),
        )
        for button, request in asks:
            answer(button.click, ask(request))
        self._wire_resume(app_state, poller)
        answer(self.stop.click, poller.stop)
        self.notice.answer(
            self.history.input, choose, [self.history], self.views, trigger_mode="always_last"
        )
        self.checkpoint_picker.wire(self.shown)
        self.timer.tick(poller.tick, [self.shown, self.seen], self.views, **QUICK)

    def _wire_resume(self, app_state: AppState, poller: JobPoller) -> None:
        """Connect the buttons that resume: unchanged, with another folder of pictures, or with more
        steps."""
        options = self.options

        def resume(sent: Mapping[Component, Any]) -> Updates:
            def act(run: Run) -> None:
                app_state.resume(run, options.changed_data(app_state, sent))

            return self._act(poller, sent[self.shown], act)

        def take_more(sent: Mapping[Component, Any]) -> Updates:
            def act(run: Run) -> None:
                changes = {
                    **options.changed_steps(run, sent),
                    **options.changed_data(app_state, sent),
                }
                app_state.resume(run, changes)

            return self._act(poller, sent[self.shown], act)

        asked = {self.shown, options.pictures, options.steps}
        self.notice.answer(self.resume.click, resume, asked, self.views)
        self.notice.answer(options.more.click, take_more, asked, self.views)

    def _act(self, poller: JobPoller, name: str, act: Callable[[Run], None]) -> Updates:
        run = poller.find(name)
        if run is None:
            raise RunError("there is no training {name!r} any more", name=name)
        act(run)
        return poller.view(poller.find(name))

    def show(self, app_state: AppState, run: Run | None) -> Updates:
        """Updates that show a training; None: there has been none."""
        if run is None:
            off = {self.card: EMPTY, self.timer: gr.Timer(active=False)}
            return {
                **off,
                **self.options.show(app_state, None),
                **self.checkpoint_picker.show(None),
            }
        state = run.state
        names = [(markup.run_label(training), training.name) for training in app_state.trainings()]
        return {
            **self._buttons(run),
            self.card: markup.run_card(run, run.name),
            self.curve: markup.loss_curve(state.losses, state.validations),
            self.samples: markup.gallery(state.samples, app_state.media, small=True, by_step=True),
            self.checkpoints: _checkpoints(run),
            self.history: gr.Dropdown(names, value=run.name, visible=len(names) > 1),
            **self.options.show(app_state, run),
            **self.checkpoint_picker.show(run),
            self.shown: run.name,
            self.seen: run.version,
            self.timer: gr.Timer(active=run.live),
        }

    def _buttons(self, run: Run) -> Updates:
        """Updates that show only the buttons that apply to the training's status."""
        state, works = run.state, run.state.status == "running" and not run.stopping
        stop = _STOP_LABELS[state.status in ("queued", "loading"), run.stopping]
        again = "Resume" if state.checkpoint is not None else "Start again"
        pausing, saving, sampling = (
            request in run.asked for request in ("pause", "save", "sample")
        )
        return {
            self.use: gr.Button(visible=not run.live and bool(state.result)),
            self.resume: gr.Button(again, visible=state.ended and state.status != "done"),
            self.pause: gr.Button(
                "Pausing …" if pausing else "Pause", visible=works, interactive=not pausing
            ),
            self.stop: gr.Button(stop, visible=run.live),
            self.save: gr.Button(
                "Saving …" if saving else "Save now", visible=works, interactive=not saving
            ),
            self.sample: gr.Button(
                "Sampling …" if sampling else "Sample now", visible=works, interactive=not sampling
            ),
        }


# (nothing to save yet, stop was requested before) -> label of the stop button
_STOP_LABELS = {
    (True, False): "Cancel",
    (True, True): "Cancel at once",
    (False, False): "Stop and save",
    (False, True): "Stop now, without the last steps",
}


def _checkpoints(run: Run) -> str:
    steps = [step for step, _ in lora_files(run.folder)]
    choice = run.state.ended and len(steps) > 1
    advice = suggest_lora(run.folder, run.state) if choice else None
    return markup.checkpoints(steps, run.state, advice.reason if advice else "")
