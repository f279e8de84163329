"""Work in a process of its own: `python -m sdlora.worker.tasks KIND FOLDER --workspace DIR`.

Each kind is a row of WORK: from what its folder says to the events that tell what becomes of it.
Torch is loaded where a row begins, so that this page costs nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from sdlora.data.caption_editing import Change
from sdlora.data.report import check
from sdlora.events import Captioned, Done, Event, RunState, Stopped
from sdlora.jobs import run_folder
from sdlora.jobs.kinds import Kind, MeasureSettings
from sdlora.settings.captioning import DescribeSettings
from sdlora.settings.grid import GridSettings
from sdlora.settings.presets import with_preset
from sdlora.settings.train import TrainSettings
from sdlora.terminal import Printer, follow
from sdlora.workspace import Workspace

Work = Callable[[Path, Workspace], Iterator[Event]]


def train(folder: Path, workspace: Workspace) -> Iterator[Event]:
    """A training; asked to stop, it keeps what it has learnt."""
    from sdlora.training.train import train as training

    settings = TrainSettings.load(folder / run_folder.SETTINGS_FILE)
    settings = with_preset(settings, workspace.preset_family(settings.model))
    yield from training(settings, workspace, folder, lambda: run_folder.stop_asked(folder))


def measure(folder: Path, workspace: Workspace) -> Iterator[Event]:
    """A few steps of a training, for their time and memory."""
    from sdlora.training.measure_step import measure as measuring

    settings = MeasureSettings.load(folder / run_folder.SETTINGS_FILE)
    found = check(with_preset(settings, workspace.preset_family(settings.model)), workspace)
    yield from measuring(found, workspace)


def grid(folder: Path, workspace: Workspace) -> Iterator[Event]:
    """Every checkpoint of a run at every strength."""
    from sdlora.inference.xy_grid import draw_grid

    yield from draw_grid(GridSettings.load(folder / run_folder.SETTINGS_FILE), workspace, folder)


def describe(folder: Path, workspace: Workspace) -> Iterator[Event]:
    """Captions by a model that looks at the pictures."""
    from sdlora.data.captioning import describe as describing

    settings = DescribeSettings.load(folder / run_folder.SETTINGS_FILE)
    for event in describing(settings, workspace.picture_folder(settings.data)):
        if isinstance(event, Change):
            path, was_file = str(event.path), event.was_file
            yield Captioned(path, event.before, event.after, was_file)
        else:
            yield event
    yield Done()


def stoppable(work: Work) -> Work:
    """The same, ended after the event that it was asked to stop at."""

    def to_its_end(folder: Path, workspace: Workspace) -> Iterator[Event]:
        for event in work(folder, workspace):
            yield event
            if not isinstance(event, Done) and run_folder.stop_asked(folder):
                yield Stopped()
                return

    return to_its_end


WORK: dict[Kind, Work] = {
    "train": train,  # which has something to keep when it is stopped
    "measure": stoppable(measure),
    "grid": stoppable(grid),
    "describe": stoppable(describe),
}


def do(kind: Kind, folder: Path, workspace: Workspace, as_json: bool = False) -> RunState:
    """Do the work, everything recorded in its folder and printed; how it ended."""
    return follow(run_folder.record(WORK[kind](folder, workspace), folder), Printer(as_json))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="sdlora work")
    parser.add_argument("kind", choices=list(WORK))
    parser.add_argument("folder")
    parser.add_argument("--workspace", required=True)
    asked = parser.parse_args()
    end = do(asked.kind, Path(asked.folder), Workspace.open(asked.workspace))
    sys.exit(end.status == "failed")
