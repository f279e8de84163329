"""What the worker's processes do, on tiny real models: all of it recorded in the work's folder."""

from pathlib import Path
from typing import Any

import tiny_captioners
from picture_files import scene
from sdlora.jobs import run_folder
from sdlora.jobs.kinds import MeasureSettings, kind_of
from sdlora.settings.base import Settings
from sdlora.settings.captioning import DescribeSettings
from sdlora.worker import tasks
from sdlora.workspace import Workspace
from tiny import tiny


def done(settings: Settings, space: Workspace, stop: bool = False) -> run_folder.RunState:
    """The work done here; what its folder says of it, as the page reads it."""
    folder = run_folder.new_folder(settings, space)
    if stop:
        run_folder.stop(folder)
    state = tasks.run_task(kind_of(settings), folder, space)
    assert run_folder.read(folder) == state
    return state


def test_a_training_is_measured_without_leaving_one(pictures: Path, space: Workspace) -> None:
    values = {"data": str(pictures), "name": "zibo", "model": str(tiny("sd1")), "rank": 2}
    state = done(MeasureSettings.from_values({**values, "steps": 20}), space)
    assert state.status == "done" and state.measured, state.error
    assert state.measured.steps == 20 and state.measured.step_s > 0
    assert not list(space.loras.iterdir()) and not list(space.runs.iterdir())
    wrong = done(MeasureSettings.from_values({**values, "data": str(pictures / "none")}), space)
    assert wrong.status == "failed" and "none" in wrong.error


def test_captions_are_told_and_not_written(tmp_path: Path, space: Workspace) -> None:
    model, folder = tmp_path / "blip", tmp_path / "set"
    for place in (model, folder):
        place.mkdir()
    tiny_captioners.blip(model)
    for name, number in ((0, 0), (1, 3)):  # of which it says something
        scene(number).save(folder / f"{name}.png")
    (folder / "1.txt").write_text("by hand")
    values: dict[str, Any] = {"data": str(folder), "model": str(model), "prefix": "zibo, "}
    values |= {"most_tokens": 6, "batch_size": 1}
    state = done(DescribeSettings.from_values({**values, "every": True}), space)
    assert state.status == "done", state.error
    told = {Path(one.path).name: (one.before, one.was_file) for one in state.captions}
    assert told == {"0.txt": ("", False), "1.txt": ("by hand", True)}
    assert all(len(one.after) > len("zibo, ") for one in state.captions)
    assert not (folder / "0.txt").exists() and (folder / "1.txt").read_text() == "by hand"
    state = done(DescribeSettings.from_values(values), space, stop=True)
    assert state.status == "stopped" and not state.captions
    state = done(DescribeSettings.from_values({**values, "model": str(folder)}), space)
    assert state.status == "failed" and "config.json" in state.error
