"""What the worker's processes do, on tiny real models: all of it recorded in the work's folder."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from onnx_file import write_tagger
from sdlora import runs, work
from sdlora.checked import Settings
from sdlora.data.describing import DescribeSettings
from sdlora.kinds import MeasureSettings, kind_of
from sdlora.workspace import Workspace
from tiny import tiny


def done(settings: Settings, space: Workspace, stop: bool = False) -> runs.RunState:
    """The work done here; what its folder says of it, as the page reads it."""
    folder = runs.new_folder(settings, space)
    if stop:
        runs.stop(folder)
    state = work.do(kind_of(settings), folder, space)
    assert runs.read(folder) == state
    return state


def tagger(folder: Path) -> Path:
    """A tagger that knows three colours."""
    folder.mkdir()
    write_tagger(folder / "model.onnx", side=16)
    rows = "tag_id,name,category,count\n1,blue,0,9\n2,green,0,9\n3,red,0,9\n"
    (folder / "selected_tags.csv").write_text(rows)
    return folder


def test_a_training_is_measured_without_leaving_one(pictures: Path, space: Workspace) -> None:
    values = {"data": str(pictures), "name": "zibo", "model": str(tiny("sd1")), "rank": 2}
    state = done(MeasureSettings.of({**values, "steps": 20}), space)
    assert state.status == "done" and state.measured, state.error
    assert state.measured.steps == 20 and state.measured.step_s > 0
    assert not list(space.loras.iterdir()) and not list(space.runs.iterdir())
    wrong = done(MeasureSettings.of({**values, "data": str(pictures / "none")}), space)
    assert wrong.status == "failed" and "none" in wrong.error


def described(pictures: Path, space: Workspace, model: Path, **more: Any) -> runs.RunState:
    values = {"data": str(pictures), "by": "wd14", "model": str(model), "prefix": "zibo, "}
    stop = more.pop("stop", False)
    return done(DescribeSettings.of({**values, **more}), space, stop)


def test_captions_are_told_and_written_only_when_that_was_asked(
    tmp_path: Path, space: Workspace
) -> None:
    pytest.importorskip("onnxruntime")
    model, folder = tagger(tmp_path / "tagger"), tmp_path / "set"
    folder.mkdir()
    Image.new("RGB", (32, 32), (250, 10, 20)).save(folder / "a.png")
    Image.new("RGB", (32, 32), (20, 10, 240)).save(folder / "b.png")
    (folder / "b.txt").write_text("by hand")
    state = described(folder, space, model, every=True)
    assert state.status == "done", state.error
    told = {Path(one.path).name: (one.before, one.after, one.was_file) for one in state.captions}
    assert told == {
        "a.txt": ("", "zibo, red", False),
        "b.txt": ("by hand", "zibo, blue", True),
    }
    assert not (folder / "a.txt").exists()
    state = described(folder, space, model, batch_size=1, stop=True)
    assert state.status == "stopped" and not state.captions
    assert described(folder, space, tmp_path / "no model").status == "failed"
