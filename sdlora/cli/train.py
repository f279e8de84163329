"""The verb `train`: settings from flags, from a LoRA or from kohya's file, and the run itself."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, get_args

from sdlora import PROGRAM, kohya
from sdlora.cli.flags import add_flags, given, name_operands
from sdlora.errors import SdloraError, SettingsError
from sdlora.jobs import run_folder
from sdlora.lora.format.training_metadata import LIKE_FILE, read_training_metadata
from sdlora.settings.train import Goal, TrainSettings
from sdlora.terminal import OnInterrupt
from sdlora.worker import tasks
from sdlora.workspace import Workspace

DONE, FAILED = 0, 1
ENDED_WELL = ("done", "stopped", "paused")


def add_train_flags(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb `train`."""
    parser.add_argument(
        "data", nargs="?", default=None, metavar="DATA", help="folder of pictures with captions"
    )
    name_operands(parser, {"data": "DATA"})
    parser.add_argument(
        "--like", metavar="FILE", help="train with the settings of this LoRA; flags take precedence"
    )
    parser.add_argument(
        "--config", metavar="FILE", help="settings from a TOML file of kohya's sd-scripts, or a "
        "JSON preset of kohya_ss",
    )  # fmt: skip
    add_flags(parser, TrainSettings, but=("data",))


def train(options: argparse.Namespace) -> int:
    """Train a LoRA from a folder of captioned pictures."""
    workspace = Workspace.open(options.workspace)
    values, like = _like(options, workspace)
    values |= _from_kohya(options)
    own = given(options, TrainSettings)
    values |= {name: value for name, value in own.items() if name != "data" or value}
    if not values.get("data"):
        raise SdloraError("name a folder of pictures: python launch.py train FOLDER --name NAME")
    values.setdefault("name", Path(values["data"]).resolve().name)
    if "goal" not in values and not options.config:
        values["goal"] = workspace.goal_of(values["data"]) or _ask_goal()
    folder = run_folder.new_folder(TrainSettings.from_values(values), workspace)
    if like:
        (folder / LIKE_FILE).write_text(json.dumps(like), encoding="utf-8")
    return train_in(folder, workspace, options.json)


def _ask_goal() -> str:
    """Return the goal, asked for on a terminal; elsewhere style, with a warning."""
    goals = get_args(Goal)
    answer = ""
    while sys.stdin.isatty() and answer not in goals:
        answer = input(f"What do the pictures have in common? {', '.join(goals)}: ").strip().lower()
    if not answer:
        print(
            f"warning: no --goal is given, so it is {goals[0]}; add --goal character for somebody, "
            "--goal object for a thing",
            file=sys.stderr,
        )
    return answer or goals[0]


def train_in(folder: Path, workspace: Workspace, as_json: bool) -> int:
    """Start the run in `folder`, or resume it."""
    with OnInterrupt(lambda: run_folder.stop(folder)):
        state = tasks.run_task("train", folder, workspace, as_json)
    if state.status in ENDED_WELL and not as_json:
        print(state.result or f"paused at step {state.step}: {PROGRAM} runs resume "
              f"{folder.name}")  # fmt: skip
    return DONE if state.status in ENDED_WELL else FAILED


def _like(options: argparse.Namespace, workspace: Workspace) -> tuple[dict[str, Any], Any]:
    """Return (settings of a LoRA, the facts that the new run is compared with)."""
    if not options.like:
        return {}, None
    path = Path(options.like)
    recipe = read_training_metadata(path)
    known = {k: v for k, v in recipe.settings.items() if k in TrainSettings.model_fields}
    for name in recipe.settings.keys() - known.keys():
        print(f"warning: {path.name} has a setting {name!r} that is not known", file=sys.stderr)
    if not options.data and known["data"] not in workspace.dataset_folders():
        raise SettingsError(
            "{file} was trained on a folder named {folder!r}, which is not in this workspace; "
            "name it: python launch.py train FOLDER --like {file}",
            file=path.name,
            folder=known["data"],
        )
    expected = {"file": path.name, "pictures": recipe.pictures, "versions": recipe.versions}
    return known, expected


def _from_kohya(options: argparse.Namespace) -> dict[str, Any]:
    if not options.config:
        return {}
    values, problems = kohya.read(Path(options.config))
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr)
    return values
