"""The command line: settings become flags, events become lines.

Exit code 0 means that the verb did all that was asked. Problems go to standard error, results to
standard output; with --json both become one JSON object per line, for programs.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sdlora import IS_CHECKOUT, __version__
from sdlora.cli.dataset import add_tools as add_dataset_tools
from sdlora.cli.dataset import dataset
from sdlora.cli.flags import add_flags, add_shared_flags, given, name_operands
from sdlora.cli.lora import add_tools, lora
from sdlora.cli.models import add_model_tools, models
from sdlora.cli.runs import add_run_verbs, runs_verb
from sdlora.cli.train import DONE, FAILED, add_train_flags, train
from sdlora.errors import SdloraError
from sdlora.events import (
    Failed,
    SampleReady,
    Warned,
    to_line,
)
from sdlora.files import write_to_free_path
from sdlora.messages import Message, command_surface
from sdlora.settings.image_request import ImageRequest
from sdlora.terminal import OnInterrupt, Printer, follow
from sdlora.workspace import TRAINING_DATA, Workspace

OPEN_PAGE = ("serve", "--open")

# Verbs


def generate(options: argparse.Namespace) -> int:
    """Make images from a prompt; LoRAs are named in it: <lora:name:0.8>."""
    from sdlora.worker.worker import open_engine

    workspace = Workspace.open(options.workspace)
    printer, incomplete = Printer(options.json), False
    request = ImageRequest.from_values(_request_values(options, workspace, printer))
    made: list[str] = []
    stop_requests: list[bool] = []
    with OnInterrupt(lambda: stop_requests.append(True)):
        for event in open_engine(workspace).generate(request, lambda: bool(stop_requests)):
            if isinstance(event, SampleReady):
                incomplete = incomplete or bool(event.report.get("problems"))
                event = _copy_to_output(event, options.output, len(made), request.count)
                made.append(event.path)
            printer.show(event)
    if not options.json:
        print("\n".join(made))
    if incomplete:
        print("not everything in the prompt could be used; see above", file=sys.stderr)
    return DONE if len(made) == request.count and not incomplete else FAILED


# Suffix of --output -> image format
_FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


def _request_values(
    options: argparse.Namespace, workspace: Workspace, printer: Printer
) -> dict[str, Any]:
    """Return the values of an image request: the flags given, over the metadata of the picture of
    --like."""
    from_picture: dict[str, Any] = {}
    if options.like:
        from sdlora.image_metadata.reader import read_parameters
        from sdlora.image_metadata.to_request import request_of
        from sdlora.lora.library.library import Library

        metadata = read_parameters(Path(options.like))
        from_picture, problems = request_of(metadata, Library.for_workspace(workspace), workspace)
        for problem in problems:
            printer.show(Warned(problem))
    if options.output and (format_ := _FORMATS.get(Path(options.output).suffix.lower())):
        from_picture["image_format"] = format_
    values = {**from_picture, **given(options, ImageRequest)}
    if "prompt" not in values:
        raise SdloraError("say what to show: python launch.py generate PROMPT, or --like PICTURE")
    return values


def _copy_to_output(event: SampleReady, output: str | None, index: int, count: int) -> SampleReady:
    """Copy the image to where the user wants it, beside the workspace's copy. Nothing is
    overwritten."""
    if output is None:
        return event
    target = Path(output)
    made = Path(event.path).suffix
    if _FORMATS.get(target.suffix.lower()) != _FORMATS[made]:
        target = target.with_name(target.name + made)
    if count > 1:
        target = target.with_stem(f"{target.stem}-{index + 1}")
    path = write_to_free_path(target, lambda to: shutil.copyfile(event.path, to))
    if path != target:
        print(f"warning: {target} exists, so this image is {path}", file=sys.stderr)
    return SampleReady(str(path), event.step, event.prompt, event.seed, event.report, at=event.at)


def serve(options: argparse.Namespace) -> int:
    """Serve the page on this machine."""
    from webui.server import serve as serving

    return serving(Workspace.open(options.workspace), options.port, options.open)


def worker(options: argparse.Namespace) -> int:
    """Run the jobs of the queue; the page starts a worker by itself."""
    from sdlora.worker.worker import main as working

    return working(Workspace.open(options.workspace))


def demo(options: argparse.Namespace) -> int:
    """Train a style on the starter model and draw it at several LoRA weights."""
    from sdlora.cli.demo import demo as show

    workspace = Workspace.open(options.workspace)
    printer = Printer(options.json)
    last = follow(show(workspace, workspace.outputs / "demo"), printer)
    if last.status != "done":
        return FAILED
    print(Path(last.result).with_suffix(".json").read_text(encoding="utf-8").strip())
    return DONE


# The verbs that need the picture sets that ship
READ_PICTURE_SETS = (serve, demo, train, dataset)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    name = "launch.py" if IS_CHECKOUT else "sdlora"
    parser = argparse.ArgumentParser(prog=name, description=__import__("sdlora").__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    def verb(
        name: str, act: Callable[[argparse.Namespace], int], shared: bool = True
    ) -> argparse.ArgumentParser:
        description = (act.__doc__ or "").strip()
        verb_parser = verbs.add_parser(name, help=description, description=description)
        verb_parser.set_defaults(act=act)
        if shared:
            add_shared_flags(verb_parser)
        return verb_parser

    page = verb("serve", serve)
    page.add_argument(
        "--port", type=int, default=None, help="fixed port (default: 7860 or the next free)"
    )
    page.add_argument("--open", action="store_true", help="open the browser")
    verb("worker", worker)
    verb("demo", demo)
    add_train_flags(verb("train", train))
    _add_image_flags(verb("generate", generate))
    add_run_verbs(verb("runs", runs_verb, shared=False))
    add_tools(verb("lora", lora, shared=False))
    add_model_tools(verb("models", models, shared=False))
    add_dataset_tools(verb("dataset", dataset, shared=False))
    return parser


def _add_image_flags(image_parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb `generate`."""
    image_parser.add_argument(
        "prompt",
        nargs="?",
        default=argparse.SUPPRESS,
        metavar="PROMPT",
        help="what to show; LoRA tags included",
    )
    name_operands(image_parser, {"prompt": "PROMPT"})
    image_parser.add_argument(
        "--like", metavar="PICTURE", help="make a picture again; what is given here wins"
    )
    image_parser.add_argument("--output", metavar="FILE", help="where the image is copied to")
    add_flags(image_parser, ImageRequest, but=("prompt",))


def with_verb(arguments: Sequence[str]) -> list[str]:
    """Return the command line with its verb: without one, or with flags alone, to open the page."""
    first = arguments[0] if arguments else "--open"
    if first.startswith("--") and first not in ("--help", "--version"):
        return [*OPEN_PAGE, *arguments]
    return list(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; a user's mistake is one sentence, not a traceback. Ctrl+C gives 130."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a path need not be text, nor fit the terminal
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = with_verb(sys.argv[1:] if arguments is None else arguments)
    options = build_parser().parse_args(arguments)
    try:
        if options.act in READ_PICTURE_SETS:
            _draw_shipped_sets()
        return int(options.act(options))
    except (SdloraError, OSError) as error:  # an OSError names the file and the system's reason
        if options.json:
            print(to_line(Failed(_message(error))), flush=True)
        surface = command_surface(getattr(options, "operands", {}))
        print(f"error: {_message(error).on(surface)}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130


def _draw_shipped_sets() -> None:
    """Draw the picture sets that ship where they are absent: pip installs the program alone."""
    if not TRAINING_DATA.exists():
        from sdlora.starter.sets import draw_shipped_sets

        print(f"Drawing the picture sets into {TRAINING_DATA}, once ...", file=sys.stderr)
        draw_shipped_sets(TRAINING_DATA)


def _message(error: SdloraError | OSError) -> Message:
    return error.message if isinstance(error, SdloraError) else Message(str(error))


if __name__ == "__main__":
    sys.exit(main())
