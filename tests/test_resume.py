"""A run that was interrupted at any step ends with the same bits as one that never was."""

import itertools
import math
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from sdlora.errors import DataError, RunError, SdloraError
from sdlora.events import (
    Checkpoint,
    Done,
    Event,
    Failed,
    Paused,
    Progress,
    Resumed,
    SampleReady,
    Started,
    Step,
    Stopped,
    Validated,
    Warned,
)
from sdlora.jobs.control_files import is_requested, write_request
from sdlora.jobs.run_folder import read, record
from sdlora.settings.train import TrainSettings
from sdlora.starter.draw import draw, random_scene
from sdlora.training import checkpoints
from sdlora.training.latent_dataset import LatentBatch
from sdlora.training.optim import OPTIMIZERS, OptimizerRow
from sdlora.training.train import train
from sdlora.training.train_state import TrainState
from sdlora.workspace import Workspace
from tiny import tiny

STEPS, EVERY = 6, 2


class Interrupted:
    """Runs trainings in folders of their own, and breaks them off."""

    def __init__(self, root: Path) -> None:
        self.root, self.numbers = root, itertools.count(1)
        self.space = Workspace.open(root / "workspace")

    def pictures(self, shapes: tuple[tuple[int, int], ...]) -> str:
        folder = self.root / f"pictures-{len(shapes)}"
        if not folder.exists():
            folder.mkdir()
            for number in range(5):
                picture = draw(random_scene(random.Random(number)))
                picture.resize(shapes[number % len(shapes)]).save(folder / f"{number}.png")
                (folder / f"{number}.txt").write_text(f"zibo, picture, {number}", encoding="utf-8")
        return str(folder)

    def folder(self) -> Path:
        return self.root / "runs" / str(next(self.numbers))

    def settings(self, sizes: int = 1, **values: Any) -> TrainSettings:
        shapes = ((64, 64), (96, 64))[:sizes]
        said = {
            "data": self.pictures(shapes), "name": "zibo", "model": str(tiny("sd1")),
            "steps": STEPS, "rank": 2, "alpha": 2, "warmup_steps": 1, "save_every": EVERY,
            "sample_every": 0, "keep_checkpoints": 9, "learning_rate": 1e-2, **values,
        }  # fmt: skip
        return TrainSettings.from_values(said)

    def run(self, settings: TrainSettings, folder: Path, until: float = STEPS) -> list[Event]:
        """Train in `folder`; what is killed after step `until` says and writes nothing more. 2.5:
        in the middle of step 3, when the gradient of its first pictures is there."""
        events: list[Event] = []
        with dying_in(math.ceil(until) if until % 1 else 0):
            for event in train(settings, self.space, folder):
                events.append(event)
                if isinstance(event, Step) and event.step == until < settings.steps:
                    break
        return events


class Died(BaseException):
    pass


@contextmanager
def dying_in(step: int) -> Iterator[None]:
    """A step whose first pictures are its last; 0: none."""
    gradients = TrainState._forward_backward

    def some(self: TrainState, batch: LatentBatch, at: int) -> Any:
        if at != step:
            return gradients(self, batch, at)
        gradients(self, batch[: self.settings.batch_size], at)
        raise Died

    with patch.object(TrainState, "_forward_backward", some), suppress(Died):
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interrupted]:
    root = tmp_path_factory.mktemp("resume")
    yield Interrupted(root)
    shutil.rmtree(root)


def sums(folder: Path, step: int = STEPS, name: str = "zibo") -> Any:
    """Hashes of every number that there is after `step`: of the LoRA, and of the learner."""
    facts = checkpoints.read_checkpoint(checkpoints.checkpoint_path(folder, step)).facts
    lora = checkpoints.checkpoint_path(folder, step) / f"{name}-step-{step:06}.safetensors"
    return facts["files"][checkpoints.NUMBERS_FILE], facts["learner"], read_body(lora)


def read_body(path: Path) -> str:
    from sdlora.lora.format.hashes import read_hashes

    return read_hashes(path).body


# cases with every value here; benchmarks/interrupted.py takes every pair
MATRIX: dict[str, tuple[Any, ...]] = {
    "optimizer": (
        *("adamw", "adafactor", "prodigy", "schedule_free", "lion", "nadamw"),
        *("schedule_free_radam", "came", "ademamix"),
    ),
    "schedule": ("cosine", "constant", "linear", "cosine_restarts", "polynomial", "rex"),
    "ema_decay": (0.0, 0.9),
    "gradient_accumulation": (1, 2),
    "sizes": (1, 2),
    "chance": ({}, {"dropout": 0.2, "flip": True, "caption_dropout": 0.4, "shuffle_tags": True}),
    "train_text_encoder": (False, True),
    "kill": (1, 2, 3, 5, 2.5, 4.5),
}


@pytest.mark.parametrize("number", range(len(MATRIX["optimizer"])))
def test_killed_and_resumed_is_never_interrupted(number: int, runs: Interrupted) -> None:
    case = {name: values[number % len(values)] for name, values in MATRIX.items()}
    case |= {
        "ema_decay": (0.0, 0.9, 0.9, 0.0, 0.0, 0.9)[number % 6],
        "kill": (1, 2.5, 3, 5, 2, 4.5)[number % 6],
    }
    compare(runs, case)


@pytest.mark.parametrize("optimizer", ["adamw8bit", "laid_out_alike"])
def test_what_an_optimizer_remembers_in_bytes_comes_back(
    optimizer: str, runs: Interrupted, monkeypatch: pytest.MonkeyPatch
) -> None:
    if optimizer == "adamw8bit":
        pytest.importorskip("bitsandbytes", reason="43 MB that nothing else needs")
    monkeypatch.setitem(OPTIMIZERS, "laid_out_alike", OptimizerRow("adam_8bit", "EightBits"))
    wide: dict[str, Any] = {"targets": ("attention", "conv"), "conv_rank": 32}
    compare(runs, {"optimizer": optimizer, "kill": 3, "chance": {}, "ema_decay": 0.9, **wide})
    path = checkpoints.checkpoint_path(runs.root / "runs" / str(next(runs.numbers) - 1), STEPS)
    tensors = checkpoints.read_checkpoint(path).state().tensors
    kept = {
        (name.split(".")[2], tensor.dtype) for name, tensor in tensors.items() if "optim" in name
    }
    assert {("state1", torch.uint8), ("absmax1", torch.float32), ("qmap2", torch.float32)} <= kept


def compare(runs: Interrupted, case: dict[str, Any]) -> None:
    kill, chance = case.pop("kill"), case.pop("chance")
    settings = runs.settings(**case, **chance)
    whole, broken = runs.folder(), runs.folder()
    runs.run(settings, whole)
    runs.run(settings, broken, until=kill)
    events = runs.run(settings, broken)
    saved = (math.ceil(kill) - 1) // EVERY * EVERY  # killed before what was due after its step
    assert [e.step for e in events if isinstance(e, Resumed)] == ([saved] if saved else [])
    assert sums(whole) == sums(broken)
    assert isinstance(events[-1], Done)


@pytest.mark.parametrize("base_precision", ["int8", "fp8", "nf4"])
def test_on_frozen_weights_too(base_precision: str, runs: Interrupted) -> None:
    chance = {"dropout": 0.2, "base_precision": base_precision}
    compare(runs, {"kill": 3, "chance": chance, "gradient_checkpointing": True})
    plain, small = runs.folder(), runs.folder()
    runs.run(runs.settings(dropout=0.2), plain)
    events = runs.run(runs.settings(**chance), small)
    (started,) = (event for event in events if isinstance(event, Started))
    assert started.details["frozen weights"].startswith(f"{base_precision} in ")
    assert sums(plain) != sums(small), "another base is learnt on"


@pytest.mark.parametrize("base_precision", ["full", "int8"])
def test_on_streamed_blocks_too(base_precision: str, runs: Interrupted) -> None:
    """And the LoRA is that of the resident model, to the bit."""
    chance = {"dropout": 0.2, "base_precision": base_precision}
    compare(runs, {"kill": 3, "chance": chance, "stream_blocks": 1.0})
    compare(runs, {"kill": 3, "chance": {"dropout": 0.2}, "memory": "lowest"})
    plain, streamed = runs.folder(), runs.folder()
    runs.run(runs.settings(**chance), plain)
    events = runs.run(runs.settings(**chance, stream_blocks=1.0), streamed)
    (started,) = (event for event in events if isinstance(event, Started))
    assert " in main memory, " in started.details["streamed blocks"]
    assert sums(plain)[0] == sums(streamed)[0] and sums(plain)[2] == sums(streamed)[2]


def test_a_stopped_run_goes_on_and_replaces_its_own_lora(runs: Interrupted) -> None:
    settings = runs.settings(name="stopped", schedule="linear")
    whole, broken = runs.folder(), runs.folder()
    done = runs.run(settings.model_copy(update={"name": "whole"}), whole)
    stopped = list(train(settings, runs.space, broken, lambda: (broken / "state").exists()))
    assert isinstance(stopped[-1], Stopped) and stopped[-1].step == EVERY
    path = Path(stopped[-1].path)
    before = read_body(path)
    events = runs.run(settings, broken)
    assert events[-1].path == str(path), "a name of its own, not stopped-2"  # type: ignore[attr-defined]
    assert read_body(path) == read_body(Path(done[-1].path)) != before  # type: ignore[attr-defined]
    assert runs.run(settings, broken)[-1].path == str(path)  # type: ignore[attr-defined]


def test_a_pause_does_not_wait_for_samples(runs: Interrupted) -> None:
    """Asked for while the first of them is drawn: the others are named, not drawn."""
    prompts = {"sample_every": 1, "sample_prompts": ("a", "b", "c")}
    settings, folder, events = runs.settings(**prompts), runs.folder(), list[Event]()
    for event in train(settings, runs.space, folder):
        events.append(event)
        if isinstance(event, SampleReady):
            write_request(folder, "pause")
    assert len([e for e in events if isinstance(e, SampleReady)]) == 1
    assert isinstance(events[-1], Paused) and events[-1].step == 1
    told = [e.message for e in events if isinstance(e, Warned)]
    assert any(text.startswith("2 of 3 samples of step 1 are not drawn") for text in told)


def test_no_phase_before_the_first_step_goes_on_unnamed(runs: Interrupted) -> None:
    events = runs.run(runs.settings(), runs.folder())
    started = next(n for n, event in enumerate(events) if isinstance(event, Started))
    phases = [event.what for event in events[:started] if isinstance(event, Progress)]
    assert phases[-2:] == ["preparing the adapter", "measuring the base model"]


def test_a_paused_run_goes_on(runs: Interrupted) -> None:
    settings = runs.settings(save_every=0)
    whole, broken = runs.folder(), runs.folder()
    runs.run(settings, whole)
    broken.mkdir(parents=True)
    for step in (1, 2):
        write_request(broken, "pause")
        events = runs.run(settings, broken)
        assert isinstance(events[-1], Paused) and events[-1].step == step
        assert not is_requested(broken, "pause")
    assert not (broken / "lora").exists()
    write_request(broken, "save")
    events = runs.run(settings, broken)
    assert [e.step for e in events if isinstance(e, Checkpoint)] == [3]
    path = {folder: folder / "lora" / "zibo.safetensors" for folder in (whole, broken)}
    assert read_body(path[whole]) == read_body(path[broken])


@pytest.mark.parametrize("file", [checkpoints.NUMBERS_FILE, checkpoints.FACTS_FILE])
def test_a_damaged_checkpoint_is_set_aside_and_an_earlier_one_used(
    file: str, runs: Interrupted
) -> None:
    settings, whole, broken = runs.settings(), runs.folder(), runs.folder()
    runs.run(settings, whole)
    runs.run(settings, broken, until=5)
    newest = checkpoints.checkpoint_path(broken, 4)
    content = bytearray((newest / file).read_bytes())
    content[len(content) // 2] ^= 1
    (newest / file).write_bytes(content)
    events = runs.run(settings, broken)
    assert isinstance(events[0], Resumed) and events[0].step == 2
    assert isinstance(events[1], Warned) and "step-000004" in events[1].message
    assert len(list((broken / "state").glob("broken-step-000004-*"))) == 1
    assert sums(whole) == sums(broken)


def test_a_checkpoint_of_another_version_is_refused_and_not_touched(runs: Interrupted) -> None:
    settings, folder = runs.settings(), runs.folder()
    runs.run(settings, folder, until=3)
    file = checkpoints.checkpoint_path(folder, 2) / checkpoints.FACTS_FILE
    file.write_text(file.read_text("utf-8").replace('"format": 1', '"format": 9'), encoding="utf-8")
    with pytest.raises(SdloraError, match="has format 9; this program reads 1"):
        runs.run(settings, folder)
    assert file.exists()


def test_other_pictures_than_at_the_beginning_are_named(runs: Interrupted, tmp_path: Path) -> None:
    shutil.copytree(runs.pictures(((64, 64),)), tmp_path / "mine")
    settings, folder = runs.settings(data=str(tmp_path / "mine")), runs.folder()
    runs.run(settings, folder, until=3)
    (tmp_path / "mine" / "1.png").unlink()
    caption = tmp_path / "mine" / "2.txt"
    said = caption.read_text("utf-8")
    caption.write_text(f"{said}, and more", encoding="utf-8")
    with pytest.raises(RunError, match="missing: mine/1.png; changed: mine/2.png"):
        runs.run(settings, folder)
    caption.write_text(said, encoding="utf-8")
    shutil.copy(Path(runs.pictures(((64, 64),))) / "1.png", tmp_path / "mine")
    assert isinstance(runs.run(settings, folder)[-1], Done), "put back, it goes on"


@pytest.mark.parametrize("caption_variants", [0, 3])
def test_lists_of_words_are_part_of_what_a_training_began_with(
    caption_variants: int, runs: Interrupted, tmp_path: Path
) -> None:
    shutil.copytree(runs.pictures(((64, 64),)), tmp_path / "mine")
    for caption in (tmp_path / "mine").glob("*.txt"):
        caption.write_text(f"{caption.read_text('utf-8')}, __weather__", encoding="utf-8")
    sky = runs.space.wildcards / "weather.txt"
    sky.parent.mkdir(parents=True, exist_ok=True)
    sky.write_text("rain\nsun\nsnow\n", encoding="utf-8")
    wild = {"caption_wildcards": True, "caption_variants": caption_variants}
    settings, whole, folder = (
        runs.settings(data=str(tmp_path / "mine"), **wild), runs.folder(), runs.folder()
    )  # fmt: skip
    runs.run(settings, whole)
    runs.run(settings, folder, until=3)
    sky.write_text("rain\nsun\nfog\n", encoding="utf-8")
    with pytest.raises(RunError, match="changed: wildcards/weather.txt"):
        runs.run(settings, folder)
    sky.write_text("rain\nsun\nsnow\n", encoding="utf-8")
    runs.run(settings, folder)
    assert sums(whole) == sums(folder)
    plain = runs.folder()
    runs.run(settings.model_copy(update={"caption_wildcards": False}), plain)
    assert sums(plain) != sums(whole), "what is drawn is learnt"


def test_the_newest_checkpoints_are_kept_and_what_a_kill_left_is_not(runs: Interrupted) -> None:
    settings, folder = runs.settings(save_every=1, keep_checkpoints=2), runs.folder()
    left = folder / "state" / ".writing-000001-x"
    left.mkdir(parents=True)
    events = runs.run(settings, folder)
    assert [path.name for path in checkpoints.checkpoint_folders(folder)] == [
        "step-000005",
        "step-000006",
    ]
    assert not left.exists()
    assert len([event for event in events if isinstance(event, Checkpoint)]) == 6


@pytest.mark.parametrize("cached", [False, True])
def test_a_picture_that_vanishes_before_it_is_encoded_is_named(
    cached: bool, runs: Interrupted, tmp_path: Path
) -> None:
    """Where it was encoded earlier, nobody has to look at it again."""
    shutil.copytree(runs.pictures(((64, 64),)), tmp_path / "mine")
    said = {"data": str(tmp_path / "mine"), "name": "vanishing", "cache_gib": int(cached)}
    settings, whole, folder = runs.settings(**said), runs.folder(), runs.folder()
    runs.run(settings, whole)
    gone = tmp_path / "mine" / "1.png"
    content, events = gone.read_bytes(), []
    named = pytest.raises(DataError, match=r"1\.png changed while it was read: .* Put it back")
    with nullcontext() if cached else named:
        for event in train(settings, runs.space, folder):
            events.append(event)
            if isinstance(event, Progress) and event.what == "loading the model":
                gone.unlink()
    assert isinstance(events[-1], Done) == cached
    gone.write_bytes(content)
    if not cached:
        assert isinstance(runs.run(settings, folder)[-1], Done)
    assert sums(whole, name="vanishing") == sums(folder, name="vanishing")


def test_pictures_that_vanish_later_change_nothing(runs: Interrupted, tmp_path: Path) -> None:
    shutil.copytree(runs.pictures(((64, 64),)), tmp_path / "mine")
    settings = runs.settings(data=str(tmp_path / "mine"), cache_gib=0)
    whole, folder, events = runs.folder(), runs.folder(), []
    runs.run(settings, whole)
    for event in train(settings, runs.space, folder):
        events.append(event)
        if isinstance(event, Step) and event.step == 3:
            shutil.rmtree(tmp_path / "mine")
    assert isinstance(events[-1], Done) and sums(whole) == sums(folder)


def test_a_device_that_is_lost_is_named_and_the_run_goes_on_later(runs: Interrupted) -> None:
    settings, whole, folder = runs.settings(), runs.folder(), runs.folder()
    runs.run(settings, whole)
    gradients, lost = (
        TrainState._forward_backward,
        torch.AcceleratorError("CUDA error: unspecified launch"),
    )

    def failing(self: TrainState, batch: LatentBatch, step: int) -> Any:
        if step == 4:
            raise lost
        return gradients(self, batch, step)

    with patch.object(TrainState, "_forward_backward", failing):
        *_, told = record(train(settings, runs.space, folder), folder)
    assert isinstance(told, Failed)
    assert told.message == "the device failed: CUDA error: unspecified launch"
    assert "goes on from its last checkpoint" in told.advice and read(folder).resumable
    events = runs.run(settings, folder)
    assert isinstance(events[0], Resumed) and events[0].step == 2
    assert sums(whole) == sums(folder)


def test_other_pictures_to_validate_with_are_named_and_measured_anew(
    runs: Interrupted, tmp_path: Path
) -> None:
    (tmp_path / "others").mkdir()
    for number in range(3):
        draw(random_scene(random.Random(100 + number))).save(tmp_path / "others" / f"{number}.png")
    said = {
        "validation_data": str(tmp_path / "others"), "validate_every": 1, "measure_drift": False,
    }  # fmt: skip
    settings, whole, folder = runs.settings(**said), runs.folder(), runs.folder()
    runs.run(settings, whole)
    runs.run(settings, folder, until=3)
    (tmp_path / "others" / "1.png").write_bytes((tmp_path / "others" / "2.png").read_bytes())
    events = runs.run(settings, folder)
    (told,) = [e.message for e in events if isinstance(e, Warned) and "not those" in e.message]
    assert "changed: others/1.png" in told and "up to step 2 cannot be compared" in told
    first, *_ = [event for event in events if isinstance(event, Validated)]
    assert first.step == 3 and first.best, "the first of its kind"
    assert sums(whole) == sums(folder)
