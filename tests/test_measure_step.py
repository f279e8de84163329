"""What a training takes is measured on real steps of its largest size."""

import json
from pathlib import Path
from typing import Any

import pytest

from picture_files import scene
from sdlora.cli.main import main
from sdlora.data.report import Preflight, check_dataset
from sdlora.errors import DeviceError
from sdlora.settings.train import TrainSettings
from sdlora.training.measure_step import largest_step, measure
from sdlora.training.train_state import TrainState
from sdlora.workspace import Workspace
from tiny import tiny


def checked(workspace: Path, data: Path, **values: Any) -> Preflight:
    settings = {"data": str(data), "name": "n", "model": str(tiny("sd1")), **values}
    return check_dataset(TrainSettings.from_values(settings), Workspace.open(workspace))


def test_the_largest_step_is_the_one_with_the_most_pixels(tmp_path: Path, workspace: Path) -> None:
    for number, size in enumerate([(64, 64)] * 3 + [(128, 32)]):
        folder = tmp_path / ("9_wide" if number == 3 else "square")
        folder.mkdir(exist_ok=True)
        scene(number, size).save(folder / f"{number}.png")
    found = checked(workspace, tmp_path, batch_size=2, gradient_accumulation=2)
    examples, share = largest_step(found)
    assert [e.image.name for e in examples] == ["3.png"] * 4  # 4 x 4096 pixels, not 3 x 4096
    # 9 wide ones in steps of 4, 4 and 1, the square ones in one of 3: 12 pictures in 4 steps of 4
    assert share == pytest.approx(12 / 16)


def test_the_command_measures_real_steps(
    tmp_path: Path, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        scene(number, (64, 64)).save(tmp_path / f"{number}.png")
    line = ["dataset", "check", str(tmp_path), "--model", str(tiny("sd1")), "--measure", "--steps"]
    assert main([*line, "10", "--workspace", str(workspace), "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["device"] in ("cpu", "cuda", "mps") and said["step_s"] > 0
    assert (
        said["training_s"] == pytest.approx(said["steps"] * said["step_s"]) and said["steps"] == 10
    )
    assert said["free_gib"] > 0 and said["peak_gib"] >= 0
    assert main([*line, "10", "--workspace", str(workspace)]) == 0
    text = capsys.readouterr().out
    assert "s a step at the largest size" in text
    assert "MiB or more: weights " in text and "activations not counted" in text
    assert not list((workspace / "loras").iterdir())


def test_what_does_not_fit_is_told(
    tmp_path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene(1, (64, 64)).save(tmp_path / "a.png")

    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(TrainState, "train_step", full)
    with pytest.raises(DeviceError, match="a step of 1 pictures does not fit"):
        list(measure(checked(workspace, tmp_path), Workspace.open(workspace)))
