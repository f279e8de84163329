"""Job process: `python -m sdlora.worker.tasks KIND FOLDER --workspace DIR`.

Each job kind is a row of WORK: from the settings in its folder to its events. Torch is imported
inside the rows, so that importing this module is fast.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from sdlora.data.caption_editing import Change
from sdlora.data.report import check_dataset
from sdlora.events import Captioned, Done, Event, RunState, Stopped
from sdlora.jobs import run_folder
from sdlora.jobs.kinds import Kind, MeasureSettings
from sdlora.models.registry import preset_family
from sdlora.settings.captioning import DescribeSettings
from sdlora.settings.download import DownloadSettings
from sdlora.settings.grid import GridSettings
from sdlora.settings.presets import with_preset
from sdlora.settings.train import TrainSettings
from sdlora.terminal import Printer, follow
from sdlora.workspace import Workspace

Work = Callable[[Path, Workspace], Iterator[Event]]


def train(folder: Path, workspace: Workspace) -> Iterator[Event]:
    """Train; when asked to stop, save the LoRA."""
    from sdlora.training.train import train as training

    settings = TrainSettings.load(folder / run_folder.SETTINGS_FILE)
    settings = with_preset(settings, preset_family(workspace.model_source(settings.model)))
    yield from training(settings, workspace, folder, lambda: run_folder.stop_asked(folder))


def measure(folder: Path, workspace: Workspace) -> Iterator[Event]:
    """Take a few steps of a training, for their time and memory."""
    from sdlora.training.measure_step import measure as measuring

    settings = MeasureSettings.load(folder / run_folder.SETTINGS_FILE)
    report = check_dataset(
        with_preset(settings, preset_family(workspace.model_source(settings.model))), workspace
    )
    yield from measuring(report, workspace)


def grid(folder: Path, workspace: Workspace) -> Iterator[Event]:
    """Generate every checkpoint of a run at every strength."""
    from sdlora.inference.xy_grid import draw_grid

    yield from draw_grid(GridSettings.load(folder / run_folder.SETTINGS_FILE), workspace, folder)


def describe(folder: Path, workspace: Workspace) -> Iterator[Event]:
    """Caption pictures with a model."""
    from sdlora.data.captioning import caption_images as describing

    settings = DescribeSettings.load(folder / run_folder.SETTINGS_FILE)
    for event in describing(settings, workspace.picture_folder(settings.data)):
        if isinstance(event, Change):
            path, was_file = str(event.path), event.was_file
            yield Captioned(path, event.before, event.after, was_file)
        else:
            yield event
    yield Done()


def download(folder: Path, workspace: Workspace) -> Iterator[Event]:
    """Download a model; when asked to stop, leave what is there for another time."""
    from sdlora.assets.download import download as downloading
    from sdlora.assets.download import open_session

    settings = DownloadSettings.load(folder / run_folder.SETTINGS_FILE)
    session = open_session(lambda: run_folder.stop_asked(folder))
    with session.client:
        yield from downloading(settings, workspace, session)


def run_until_stopped(work: Work) -> Work:
    """Return the same task, ended after the event at which a stop is requested."""

    def until_stopped(folder: Path, workspace: Workspace) -> Iterator[Event]:
        for event in work(folder, workspace):
            yield event
            if not isinstance(event, Done) and run_folder.stop_asked(folder):
                yield Stopped()
                return

    return until_stopped


WORK: dict[Kind, Work] = {
    "train": train,  # which saves its LoRA when it is stopped
    "measure": run_until_stopped(measure),
    "grid": run_until_stopped(grid),
    "describe": run_until_stopped(describe),
    "download": download,  # which looks for it while it waits as well
}


def run_task(kind: Kind, folder: Path, workspace: Workspace, as_json: bool = False) -> RunState:
    """Run a task, all its events recorded in its folder and printed; returns its last state."""
    return follow(run_folder.record(WORK[kind](folder, workspace), folder), Printer(as_json))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="sdlora work")
    parser.add_argument("kind", choices=list(WORK))
    parser.add_argument("folder")
    parser.add_argument("--workspace", required=True)
    options = parser.parse_args()
    state = run_task(options.kind, Path(options.folder), Workspace.open(options.workspace))
    sys.exit(state.status == "failed")
