"""Work that cannot work is refused before it is queued, in a moment and with what to do."""

import time
from pathlib import Path

import pytest
from PIL import Image

from fakes import write_lora
from sdlora.errors import ModelError, SdloraError
from sdlora.events import Done, SampleReady, Saved, Started
from sdlora.jobs import run_folder
from sdlora.jobs.kinds import MeasureSettings
from sdlora.messages import PAGE
from sdlora.settings.base import Settings
from sdlora.settings.captioning import DescribeSettings
from sdlora.settings.grid import GridSettings
from sdlora.settings.image_request import ImageRequest
from sdlora.settings.train import TrainSettings
from sdlora.training.startable import check_startable
from sdlora.workspace import Workspace

ROWS = [
    (TrainSettings, {"data": "{root}/none"}, "There is no folder none; choose another set."),
    (TrainSettings, {"data": "{root}/bare"}, "There is no picture in bare; put some there first."),
    (TrainSettings, {"more_data": ("3*{root}/none",)}, "There is no folder none"),
    (TrainSettings, {"masks": "{root}/none"}, "There is no folder none"),
    (TrainSettings, {"model": "starterr"}, "There is no model 'starterr'; there are starter."),
    (MeasureSettings, {"validation_data": "{root}/none"}, "There is no folder none"),
    (ImageRequest, {"model": "{root}/none"}, "There is no model"),
    (ImageRequest, {"model": "{root}/bare"}, "bare is not a diffusers model"),
    (GridSettings, {"run": "finn"}, "There is no run 'finn'. Did you mean fin?"),
    (GridSettings, {"checkpoints": (7,)}, "There is no LoRA of step 7; the run has those of 3."),
    (GridSettings, {"run": "early"}, "The run 'early' has no LoRA yet: press Save now"),
    (GridSettings, {"run": "dull"}, "The run has drawn no samples whose prompts could be taken"),
    (DescribeSettings, {"data": "{root}/none"}, "There is no folder none"),
    (DescribeSettings, {"data": "{root}/told"}, "Every picture in told has a caption; tick Also"),
    (DescribeSettings, {"model": "{root}/none"}, "Model: "),
]


@pytest.fixture
def root(space: Workspace, tmp_path: Path) -> Path:
    for name in ("good", "told"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "a.png")
    (tmp_path / "told" / "a.txt").write_text("a house", encoding="utf-8")
    (tmp_path / "bare").mkdir()
    for name in ("fin", "early", "dull"):
        settings = TrainSettings.from_values({"data": str(tmp_path / "good"), "name": name})
        folder = run_folder.new_folder(settings, space)
        run_folder.append_event(folder, Started("training", 3))
        if name == "early":
            continue
        path = str(write_lora(folder / "lora" / f"{name}.safetensors", 1))
        if name == "fin":
            run_folder.append_event(
                folder, SampleReady(str(tmp_path / "good" / "a.png"), 3, "a house", 0)
            )
        run_folder.append_event(folder, Saved(path, 3))
        run_folder.append_event(folder, Done(path))
    return tmp_path


def made(kind: type[Settings], values: dict[str, object], root: Path) -> Settings:
    least: dict[str, object] = {
        TrainSettings: {"data": "{root}/good", "name": "x"},
        MeasureSettings: {"data": "{root}/good", "name": "x"},
        GridSettings: {"run": "fin"},
        DescribeSettings: {"data": "{root}/good"},
    }.get(kind, {})  # type: ignore[assignment,call-overload]

    def placed(value: object) -> object:
        if isinstance(value, tuple):
            return tuple(map(placed, value))
        return value.replace("{root}", str(root)) if isinstance(value, str) else value

    return kind.from_values({name: placed(value) for name, value in {**least, **values}.items()})


@pytest.mark.parametrize(("kind", "values", "sentence"), ROWS)
def test_is_refused_at_once(
    space: Workspace, root: Path, kind: type[Settings], values: dict[str, object], sentence: str
) -> None:
    check_startable(made(kind, {}, root), space)
    began = time.monotonic()
    with pytest.raises(SdloraError) as caught:
        check_startable(made(kind, values, root), space)
    assert time.monotonic() - began < 20
    shown = " ".join(caught.value.message.sentences(PAGE))
    assert shown.startswith(sentence)
    assert f"{root}" not in shown or "model" in values, "a path of the server's"


def test_a_part_from_elsewhere_that_is_not_here_is_named_before_the_work(space: Workspace) -> None:
    (space.vaes).mkdir(exist_ok=True)
    (space.vaes / "soft.safetensors").write_bytes(b"")
    for setting in ("vae", "text_encoder"):
        request = ImageRequest(**{setting: "nosuch"})
        with pytest.raises(ModelError, match=f"{setting}.*: there is no 'nosuch' here"):
            check_startable(request, space)
    with pytest.raises(ModelError, match="Did you mean soft"):
        check_startable(ImageRequest(vae="sofd"), space)
    check_startable(ImageRequest(vae="soft"), space)
