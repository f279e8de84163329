"""A training on screen: where it stands, its curves, samples and checkpoints; what it is asked."""

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
    """The components, built where it stands, and what they do."""

    def __init__(self, studio: AppState) -> None:
        self.history = gr.Dropdown([], label="Trainings", visible=False, elem_id="history")
        self.card, self.curve = html(EMPTY, elem_id="run-card"), html(elem_id="curve")
        with gr.Row(elem_classes="row-fields"):
            self.use = gr.Button("Use it", variant="primary", visible=False, elem_id="use")
            self.resume = gr.Button("Resume", visible=False, elem_id="resume")
            self.pause = gr.Button("Pause", visible=False, elem_id="pause")
            self.stop = gr.Button("Stop and keep", visible=False, elem_id="stop")
        self.options = ResumeOptions()
        with gr.Row(elem_classes="row-fields"):
            self.save = gr.Button("Save now", size="sm", visible=False, elem_id="save-now")
            self.sample = gr.Button("Sample now", size="sm", visible=False, elem_id="sample-now")
        self.notice = Notice("run-notice")
        self.samples = html(elem_id="samples")
        self.checkpoints = html(elem_id="checkpoints")
        self.finish = CheckpointPicker(studio)
        self.shown, self.seen = gr.State(""), gr.State("")
        self.timer = gr.Timer(1.0, active=False)

    @property
    def views(self) -> list[Component]:
        """What changes when the training on screen does."""
        buttons = (self.use, self.resume, self.pause, self.stop, self.save, self.sample)
        own = (self.card, self.curve, self.samples, self.checkpoints, self.history)
        beside = (*self.options.views, *self.finish.views)
        return [*buttons, *own, *beside, self.shown, self.seen, self.timer]

    def wire(self, studio: AppState, follower: JobPoller) -> None:
        """What the buttons ask of the training on screen."""

        def ask(wish: Request) -> Callable[[str], Updates]:
            return lambda name: self._act(
                follower, name, lambda run: run_folder.request(run.folder, wish)
            )

        def choose(name: str) -> Updates:
            return self._act(follower, name, lambda run: None)

        def answer(event: Callable[..., Any], act: Callable[[str], Updates]) -> None:
            self.notice.answer(event, act, [self.shown], self.views)

        asks: tuple[tuple[Component, Request], ...] = (
            (self.pause, "pause"),
            (self.save, "save"),
            (self.sample, "sample"),
        )
        for button, wish in asks:
            answer(button.click, ask(wish))
        self._wire_resume(studio, follower)
        answer(self.stop.click, follower.stop)
        self.notice.answer(self.history.input, choose, [self.history], self.views)
        self.finish.wire(self.shown)
        self.timer.tick(follower.tick, [self.shown, self.seen], self.views, **QUICK)

    def _wire_resume(self, studio: AppState, follower: JobPoller) -> None:
        """Resume as it was, with its pictures in another place, or with more steps."""
        options = self.options

        def resume(sent: Mapping[Component, Any]) -> Updates:
            def act(run: Run) -> None:
                studio.resume(run, options.moved(studio, sent))

            return self._act(follower, sent[self.shown], act)

        def take_more(sent: Mapping[Component, Any]) -> Updates:
            def act(run: Run) -> None:
                changes = {**options.longer(run, sent), **options.moved(studio, sent)}
                studio.resume(run, changes)

            return self._act(follower, sent[self.shown], act)

        asked = {self.shown, options.pictures, options.steps}
        self.notice.answer(self.resume.click, resume, asked, self.views)
        self.notice.answer(options.more.click, take_more, asked, self.views)

    def _act(self, follower: JobPoller, name: str, act: Callable[[Run], None]) -> Updates:
        run = follower.find(name)
        if run is None:
            raise RunError("there is no training {name!r} any more", name=name)
        act(run)
        return follower.view(follower.find(name))

    def show(self, studio: AppState, run: Run | None) -> Updates:
        """Updates that bring a training onto the screen; None: there has been none."""
        if run is None:
            off = {self.card: EMPTY, self.timer: gr.Timer(active=False)}
            return {**off, **self.options.show(studio, None), **self.finish.show(None)}
        state = run.state
        names = [(markup.run_label(one), one.name) for one in studio.trainings()]
        return {
            **self._buttons(run),
            self.card: markup.run_card(run, run.name),
            self.curve: markup.loss_curve(state.losses, state.validations),
            self.samples: markup.gallery(state.samples, studio.media, small=True, by_step=True),
            self.checkpoints: _checkpoints(run),
            self.history: gr.Dropdown(names, value=run.name, visible=len(names) > 1),
            **self.options.show(studio, run),
            **self.finish.show(run),
            self.shown: run.name,
            self.seen: run.version,
            self.timer: gr.Timer(active=run.live),
        }

    def _buttons(self, run: Run) -> Updates:
        """What can be asked of a training as it stands, and no more than that."""
        state, works = run.state, run.state.status == "running" and not run.stopping
        stop = _STOP[state.status in ("queued", "loading"), run.stopping]
        again = "Resume" if state.checkpoint is not None else "Start again"
        pausing, saving, sampling = (wish in run.asked for wish in ("pause", "save", "sample"))
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


# By whether there is nothing yet that could be kept, and whether it was asked to stop before
_STOP = {
    (True, False): "Cancel",
    (True, True): "Cancel at once",
    (False, False): "Stop and keep",
    (False, True): "Stop now, without the last steps",
}


def _checkpoints(run: Run) -> str:
    steps = [step for step, _ in lora_files(run.folder)]
    choice = run.state.ended and len(steps) > 1
    advice = suggest_lora(run.folder, run.state) if choice else None
    return markup.checkpoints(steps, run.state, advice.reason if advice else "")
