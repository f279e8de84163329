"""The command: settings become flags, events become lines.

Exit code 0 means that what was asked for was done. Problems go to standard error, results to
standard output; with --json both become one JSON object per line, for programs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from sdlora import __version__
from sdlora.dataset_cli import add_tools as add_dataset_tools
from sdlora.dataset_cli import dataset
from sdlora.errors import SdloraError
from sdlora.events import (
    Event,
    Failed,
    Progress,
    RunState,
    SampleReady,
    Started,
    Step,
    Warned,
    fold,
    to_line,
)
from sdlora.flags import add_flags, add_shared_flags, given
from sdlora.lora_cli import add_tools, lora
from sdlora.presets import with_preset
from sdlora.settings import ImageRequest, TrainSettings
from sdlora.workspace import Workspace, free_path

DONE, FAILED, USAGE = 0, 1, 2


# Events -> lines


class Printer:
    """Shows events: a line that moves on a terminal, plain lines elsewhere, JSON on request."""

    def __init__(self, as_json: bool) -> None:
        self.as_json, self.moving, self.last_step_at = as_json, sys.stderr.isatty(), 0.0

    def show(self, event: Event) -> None:
        """Print one event."""
        if self.as_json:
            print(to_line(event), flush=True)
        elif isinstance(event, Warned | Failed):
            sign = "warning" if isinstance(event, Warned) else "error"
            self._line(f"{sign}: {event.message}{f' ({event.advice})' if event.advice else ''}")
        elif isinstance(event, Progress | Step):
            self._moving(
                _progress_words(event), whole=isinstance(event, Step) and event.step == event.total
            )
        elif isinstance(event, Started):
            self._line("\n".join([event.what, *(f"  {k}: {v}" for k, v in event.details.items())]))

    def _moving(self, words: str, whole: bool) -> None:
        if self.moving:
            print(f"\r\033[K{words}", end="\n" if whole else "", file=sys.stderr, flush=True)
        elif whole or time.monotonic() - self.last_step_at > 5:
            self.last_step_at = time.monotonic()
            print(words, file=sys.stderr, flush=True)

    def _line(self, words: str) -> None:
        start = "\r\033[K" if self.moving else ""
        print(f"{start}{words}", file=sys.stderr, flush=True)


def _progress_words(event: Progress | Step) -> str:
    if isinstance(event, Progress):
        return f"{event.what} {event.done}/{event.total}" if event.total else f"{event.what} …"
    loss = f", loss {event.loss:.4f}" if event.loss is not None else ""
    left = f", {clock(event.seconds_left)} left" if event.seconds_left is not None else ""
    return f"step {event.step} of {event.total}{loss}{left}"


def clock(seconds: float) -> str:
    """'45 s', '3 min 20 s', '2 h 05 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def follow(events: Iterable[Event], printer: Printer) -> RunState:
    """Print all events; the state they fold to."""
    state = RunState()
    for event in events:
        printer.show(event)
        state = fold([event], state)
    return state


class _OnInterrupt(AbstractContextManager[None]):
    """Ctrl+C asks once, politely; a second one ends the process as usual."""

    def __init__(self, ask: Callable[[], None]) -> None:
        self.ask = ask

    def _first(self, *_: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("\nstopping after this step; press Ctrl+C again to leave at once", file=sys.stderr)
        self.ask()

    def __enter__(self) -> None:
        self.before = signal.signal(signal.SIGINT, self._first)

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self.before)


# Verbs


def train(options: argparse.Namespace) -> int:
    """Train a LoRA from a folder of captioned pictures."""
    from sdlora import runs
    from sdlora.train import train as training

    if options.run_folder:
        folder = Path(options.run_folder).resolve()
        workspace = Workspace.open(folder.parent.parent)
        settings = TrainSettings.load(folder / runs.SETTINGS_FILE)
    else:
        if not options.data:
            raise SdloraError(
                "name a folder of pictures: python launch.py train FOLDER --name NAME"
            )
        values = given(options, TrainSettings)
        values.setdefault("name", Path(options.data).resolve().name)
        workspace = Workspace.open(options.workspace)
        settings = TrainSettings.of(values)
        folder = runs.new_folder(settings, workspace)
    settings = with_preset(settings, workspace.preset_family(settings.model))
    with _OnInterrupt(lambda: runs.stop(folder)):
        events = training(settings, workspace, folder, lambda: runs.stop_asked(folder))
        state = follow(runs.record(events, folder), Printer(options.json))
    if state.status in ("done", "stopped") and not options.json:
        print(state.result)
    return DONE if state.status in ("done", "stopped") else FAILED


def generate(options: argparse.Namespace) -> int:
    """Make images from a prompt; LoRAs are named in it: <lora:name:0.8>."""
    from sdlora.worker import open_engine

    request = ImageRequest.of(given(options, ImageRequest))
    workspace = Workspace.open(options.workspace)
    printer, lost = Printer(options.json), False
    made: list[str] = []
    asked: list[bool] = []
    with _OnInterrupt(lambda: asked.append(True)):
        for event in open_engine(workspace).generate(request, lambda: bool(asked)):
            if isinstance(event, SampleReady):
                lost = lost or bool(event.report.get("problems"))
                event = _delivered(event, options.output, len(made), request.count)
                made.append(event.path)
            printer.show(event)
    if not options.json:
        print("\n".join(made))
    if lost:
        print("not everything in the prompt could be used; see above", file=sys.stderr)
    return DONE if len(made) == request.count and not lost else FAILED


def _delivered(event: SampleReady, output: str | None, index: int, count: int) -> SampleReady:
    """The image where the user wants it, beside the workspace's copy. Nothing is overwritten."""
    if output is None:
        return event
    wish = Path(output)
    if not wish.suffix:
        wish = wish.with_suffix(".png")
    if count > 1:
        wish = wish.with_stem(f"{wish.stem}-{index + 1}")
    wish.parent.mkdir(parents=True, exist_ok=True)
    path = free_path(wish)
    if path != wish:
        print(f"warning: {wish} exists, so this image is {path}", file=sys.stderr)
    shutil.copyfile(event.path, path)
    return SampleReady(str(path), event.step, event.prompt, event.seed, event.report, at=event.at)


def runs_verb(options: argparse.Namespace) -> int:
    """List, show or stop trainings."""
    from sdlora import runs
    from sdlora.jobs import Queue

    workspace = Workspace.open(options.workspace)
    if options.what == "list":
        for name, state in runs.list_runs(workspace.runs).items():
            _say_run(name, state, options.json)
        return DONE
    if not options.name:
        raise SdloraError(f"name a run: python launch.py runs {options.what} NAME")
    folder = runs.find_run(workspace.runs, options.name)
    if options.what == "stop":
        if runs.read(folder).ended:
            raise SdloraError(f"the run {options.name!r} has already ended")
        runs.cancel(folder, Queue(workspace.database))
        return DONE
    state = runs.read(folder)
    _say_run(options.name, state, options.json)
    if not options.json:
        for key, value in state.details.items():
            print(f"  {key}: {value}")
        for warned in state.warnings:
            print(f"  warning: {warned.message}")
    return DONE


def _say_run(name: str, state: RunState, as_json: bool) -> None:
    if as_json:
        facts = {
            "name": name, "status": state.status, "step": state.step, "total": state.total,
            "seconds_left": state.seconds_left, "result": state.result, "error": state.error,
            "loss": state.losses[-1][1] if state.losses else None,
        }  # fmt: skip
        print(json.dumps(facts, ensure_ascii=False))
        return
    left = f", {clock(state.seconds_left)} left" if state.seconds_left and not state.ended else ""
    end = state.error or state.result
    print(
        f"{name}: {state.status}, step {state.step} of {state.total}{left}" + (end and f", {end}")
    )


def serve(options: argparse.Namespace) -> int:
    """Serve the page on this machine."""
    from webui.server import serve as serving

    return serving(Workspace.open(options.workspace), options.port, options.open)


def worker(options: argparse.Namespace) -> int:
    """Do the queue's work; the page starts one by itself."""
    from sdlora.worker import main as working

    return working(Workspace.open(options.workspace))


def demo(options: argparse.Namespace) -> int:
    """Train a style on the starter model and draw how it grows with its weight."""
    from sdlora.demo import demo as show

    workspace = Workspace.open(options.workspace)
    printer = Printer(options.json)
    last = follow(show(workspace, workspace.outputs / "demo"), printer)
    if last.status != "done":
        return FAILED
    print(Path(last.result).with_suffix(".json").read_text(encoding="utf-8").strip())
    return DONE


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(prog="launch.py", description=__import__("sdlora").__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    def verb(
        name: str, act: Callable[[argparse.Namespace], int], shared: bool = True
    ) -> argparse.ArgumentParser:
        words = (act.__doc__ or "").strip()
        one = verbs.add_parser(name, help=words, description=words)
        one.set_defaults(act=act)
        if shared:
            add_shared_flags(one)
        return one

    page = verb("serve", serve)
    page.add_argument(
        "--port", type=int, default=None, help="fixed port (default: 7860 or the next free)"
    )
    page.add_argument("--open", action="store_true", help="open the browser")
    verb("worker", worker)
    verb("demo", demo)
    one = verb("train", train)
    one.add_argument("data", nargs="?", default=None, help="folder of pictures with captions")
    one.add_argument(
        "--run-folder", metavar="DIR", help="continue what the page prepared in a run folder"
    )
    add_flags(one, TrainSettings, but=("data",))
    one = verb("generate", generate)
    one.add_argument("prompt", help="what to show; LoRA tags included")
    one.add_argument("--output", metavar="FILE", help="where the image is copied to")
    add_flags(one, ImageRequest, but=("prompt",))
    one = verb("runs", runs_verb)
    one.add_argument("what", choices=("list", "show", "stop"))
    one.add_argument("name", nargs="?")
    add_tools(verb("lora", lora, shared=False))
    add_dataset_tools(verb("dataset", dataset, shared=False))
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; a user's mistake is one sentence, not a traceback."""
    options = build_parser().parse_args(arguments)
    try:
        return int(options.act(options))
    except SdloraError as error:
        if options.json:
            print(to_line(Failed(str(error))), flush=True)
        print(f"error: {error}", file=sys.stderr)
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
