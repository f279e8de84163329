"""The verb `runs`: trainings listed, shown, stopped, paused, resumed, and their LoRAs compared."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sdlora import PROGRAM, kohya
from sdlora.cli.flags import add_flags, add_shared_flags, given
from sdlora.cli.train import DONE, FAILED, train_in
from sdlora.errors import RunError, SdloraError, SettingsError
from sdlora.events import Event, Failed, RunState, Validated
from sdlora.files import write_atomically
from sdlora.jobs import run_folder
from sdlora.jobs.control_files import REQUESTS
from sdlora.jobs.heartbeat import IDLE_SHOWN_S, SILENCE_SHOWN_S
from sdlora.jobs.queue import Queue
from sdlora.jobs.resume import MAY_CHANGE
from sdlora.jobs.review import copy_lora, draw_curves, suggest_lora
from sdlora.jobs.supervise import WorkerKeeper, end_now
from sdlora.messages import COMMAND, as_message, readable
from sdlora.models.registry import preset_family
from sdlora.prompt.tags import format_tag
from sdlora.settings.grid import GridSettings
from sdlora.settings.train import TrainSettings
from sdlora.terminal import OnInterrupt, Printer, clock, follow
from sdlora.worker import tasks
from sdlora.workspace import Workspace

Act = Callable[[Path, Workspace, argparse.Namespace], int]


def add_run_verbs(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb `runs`."""
    parser.set_defaults(json=False)
    verbs = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    add_shared_flags(verbs.add_parser("list", help="all trainings, newest first"))
    for name, (summary, _) in VERBS.items():
        verb_parser = verbs.add_parser(name, help=summary, description=summary)
        verb_parser.add_argument("name", nargs="?", help="name of the run")
        add_shared_flags(verb_parser)
        if name == "stop":
            now = (
                "end it within seconds, without finishing its step; the second `stop` does the same"
            )
            verb_parser.add_argument("--now", action="store_true", help=now)
        if name == "grid":
            add_flags(verb_parser, GridSettings, but=("run",))
        if name == "resume":
            own = [field for field in TrainSettings.model_fields if field not in MAY_CHANGE]
            add_flags(verb_parser, TrainSettings, but=own)
        if name == "keep":
            verb_parser.add_argument(
                "--step", type=int, help="of which step (default: the one to take)"
            )


def runs_verb(options: argparse.Namespace) -> int:
    """List, show, stop, pause or resume trainings."""
    workspace = Workspace.open(options.workspace)
    if options.what == "list":
        for name, state in run_folder.list_runs(workspace.runs, Queue(workspace.database)).items():
            say_run(name, state, options.json)
        return DONE
    if not options.name:
        raise SdloraError("name a run: python launch.py runs {verb} NAME", verb=options.what)
    _, act = VERBS[options.what]
    return act(run_folder.find_run(workspace.runs, options.name), workspace, options)


def say_run(name: str, state: RunState, as_json: bool) -> None:
    """A run in one line."""
    if as_json:
        facts = {
            "name": name, "status": state.status, "step": state.step, "total": state.total,
            "seconds_left": state.seconds_left, "result": state.result, "error": state.error,
            "loss": state.losses[-1][1] if state.losses else None,
            "checkpoint": state.checkpoint, "resumable": state.resumable,
            "unreadable": state.unreadable, "silent_s": state.silent_s, "idle_s": state.idle_s,
        }  # fmt: skip
        print(json.dumps(facts, ensure_ascii=False))
        return
    left = f", {clock(state.seconds_left)} left" if state.seconds_left and not state.ended else ""
    end = as_message(state.error).on(COMMAND) or readable(state.result)
    left = _signs(state) or left
    on = f" (resumes from step {state.checkpoint})" if state.resumable else ""
    unread = run_folder.unread_lines(state)
    print(
        f"{name}: {state.status}, step {state.step} of {state.total}{left}"
        + (end and f", {end}") + on + (unread and f", {unread}")
    )  # fmt: skip


def _signs(state: RunState) -> str:
    """Return a note on a run without heartbeat or without progress; '' for none."""
    if state.silent_s >= SILENCE_SHOWN_S:
        return f", no answer for {clock(state.silent_s)}"
    return f", no progress for {clock(state.idle_s)}" if state.idle_s >= IDLE_SHOWN_S else ""


def show(folder: Path, workspace: Workspace, options: argparse.Namespace) -> int:
    """Show all of a run: its curves as a picture, its samples by step, the best LoRA."""
    state = run_folder.read(folder, Queue(workspace.database))
    say_run(readable(folder.name), state, options.json)
    if options.json:
        return DONE
    if unread := run_folder.unread_lines(state):
        print(f"  warning: {unread}")
    for key, value in state.details.items():
        print(f"  {key}: {value}")
    for warned in state.warnings:
        print(f"  warning: {warned.message}")
    for figure in state.validations:
        print(f"  {_validation_text(figure)}")
    for sample in state.samples:
        print(f"  sample at step {sample.step}: {sample.path}")
    if state.losses or state.validations:
        picture = draw_curves(state, folder.name)
        path = write_atomically(folder / "curves.png", lambda to: picture.save(to, format="png"))
        print(f"  curves: {path}")
    for grid_folder in run_folder.run_folders(folder / "grids"):
        if drawn := run_folder.read(grid_folder).result:
            print(f"  comparison: {drawn}")
    if best := suggest_lora(folder, state):
        print(f"  take: {best.path}\n  because {best.reason}")
    return DONE


def _validation_text(figure: Validated) -> str:
    loss = "" if figure.loss is None else f", loss {figure.loss:.4f}{' (best)' * figure.best}"
    drift = "" if figure.drift is None else f", drift {figure.drift:.2%}"
    return f"validation at step {figure.step}{loss}{drift}"


def stop(folder: Path, workspace: Workspace, options: argparse.Namespace) -> int:
    """End a run after the present step; the LoRA is saved, and the run can be resumed. A second
    stop, or --now, ends it within seconds, with what it last saved."""
    queue = Queue(workspace.database)
    state = run_folder.read(folder, queue)
    if state.ended:
        raise SdloraError("the run {name} has already ended", name=repr(folder.name))
    if state.status != "queued" and (options.now or run_folder.stop_asked(folder)):
        end_now(folder, queue)
        return DONE
    run_folder.cancel(folder, queue)
    WorkerKeeper(workspace, queue).replace_silent()
    return DONE


def ask(folder: Path, workspace: Workspace, options: argparse.Namespace) -> int:
    """Write a request into the run's folder."""
    run_folder.request(folder, options.what)
    return DONE


def resume(folder: Path, workspace: Workspace, options: argparse.Namespace) -> int:
    """Resume a training that was killed, stopped or paused, or is finished and gets more steps,
    here or by the page's worker."""
    TrainSettings.load(folder / run_folder.SETTINGS_FILE)
    changes = {name: value for name, value in vars(options).items() if name in MAY_CHANGE}
    queue = Queue(workspace.database)
    if queue.holder("worker"):  # it owns the device
        run_folder.resume(folder, queue, changes)
        WorkerKeeper(workspace, queue).replace_silent()
        print(f"{folder.name} waits in the queue; {PROGRAM} runs show {folder.name}")
        return DONE
    run_folder.reopen(folder, queue, changes)
    return train_in(folder, workspace, options.json)


def grid(folder: Path, workspace: Workspace, options: argparse.Namespace) -> int:
    """Draw every checkpoint at every strength, as one picture."""
    settings = GridSettings.from_values({"run": folder.name, **given(options, GridSettings)})
    queue = Queue(workspace.database)
    if queue.holder("worker"):  # it owns the device
        job_folder = run_folder.start(settings, workspace, queue)
        print("the page's worker draws it, after what waits there already", file=sys.stderr)
        with OnInterrupt(lambda: run_folder.cancel(job_folder, queue)):
            keeper = WorkerKeeper(workspace, queue)
            state = follow(watched(job_folder, queue, keeper), Printer(options.json))
    else:
        job_folder = run_folder.new_folder(settings, workspace)
        with OnInterrupt(lambda: run_folder.stop(job_folder)):
            state = tasks.run_task("grid", job_folder, workspace, options.json)
    if state.result and not options.json:
        print(state.result)
    return DONE if state.status == "done" else FAILED


def watched(folder: Path, queue: Queue, keeper: WorkerKeeper) -> Iterator[Event]:
    """Yield the worker's events about the work in `folder`, until it has ended. A worker that does
    not answer is replaced. RunError: there is no worker any more."""
    follower = run_folder.RunFollower(folder)
    while not follower.state.ended:
        if queue.holder("worker"):
            keeper.wake()
        elif not keeper.is_replacing:
            raise RunError("the worker is gone that should have done this; ask for it again")
        job = queue.job_of(folder)
        yield from follower.new_events()
        if job and not job.waits and not follower.state.ended:  # the queue alone knows the end
            yield Failed(job.reason)
            return
        time.sleep(0.1)


def keep_lora(folder: Path, workspace: Workspace, options: argparse.Namespace) -> int:
    """Copy the LoRA of a step into the LoRA folder, under a name of its own."""
    state = run_folder.read(folder)
    best = suggest_lora(folder, state)
    step = options.step if options.step is not None or best is None else best.step
    path = copy_lora(folder, state, step or 0, workspace.loras)
    print(
        json.dumps({"path": str(path)}) if options.json else f"{path}\n  {format_tag(path.stem, 1)}"
    )
    return DONE


def toml(folder: Path, workspace: Workspace, options: argparse.Namespace) -> int:
    """Print the run's settings for kohya's sd-scripts."""
    from sdlora.settings.presets import with_preset

    settings = TrainSettings.load(folder / run_folder.SETTINGS_FILE)
    try:
        settings = with_preset(settings, preset_family(workspace.model_source(settings.model)))
    except SettingsError as error:
        raise SettingsError(
            "the settings of {run!r} are not valid: {why}", run=folder.name, why=error
        ) from None
    print(kohya.write(settings), end="")
    return DONE


VERBS: dict[str, tuple[str, Act]] = {
    "show": ("all of a run: curves, samples, which LoRA to take", show),
    "stop": (REQUESTS["stop"], stop),
    "pause": (REQUESTS["pause"], ask),
    "save": (REQUESTS["save"], ask),
    "sample": (REQUESTS["sample"], ask),
    "resume": ("go on with a training that was broken off, or take more steps", resume),
    "grid": ("draw every checkpoint at every strength, as one picture", grid),
    "keep": ("make the LoRA of a step one that prompts can name", keep_lora),
    "toml": ("print its settings for kohya's sd-scripts", toml),
}
