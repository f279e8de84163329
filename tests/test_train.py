"""The loop, on tiny models: it learns, says all that happens, and repeats itself to the bit."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import KINDS, tiny

import sdlora.train
from sdlora import runs
from sdlora.errors import DataError, ModelError, SettingsError
from sdlora.events import Done, Event, SampleReady, Saved, Started, Step, Stopped, Warned
from sdlora.lora.file import LoraFile, read_lora
from sdlora.pace import Pace
from sdlora.settings import TrainSettings
from sdlora.starter.draw import draw, random_scene
from sdlora.train import train
from sdlora.workspace import Workspace

NOW = 1_750_000_000.0


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Six small captioned pictures."""
    import random

    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(6):
        draw(random_scene(random.Random(number))).resize((64, 64)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"zibo, picture {number}", encoding="utf-8")
    return folder


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "workspace")


@pytest.fixture
def run(pictures: Path, space: Workspace, tmp_path: Path) -> Callable[..., list[Event]]:
    """Runs a training to its end; each call in a run folder of its own."""
    numbers = itertools.count(1)

    def go(kind: str = "sd1", stop: Callable[[], bool] = lambda: False, **values: Any) -> list[Event]:
        said = {
            "data": str(pictures), "name": "zibo", "model": str(tiny(kind)), "steps": 4,
            "batch_size": 2, "rank": 2, "alpha": 2, "learning_rate": 1e-2, "warmup_steps": 0,
            "sample_every": 0, **values,
        }  # fmt: skip
        folder = tmp_path / f"run-{next(numbers)}"
        return list(train(TrainSettings.of(said), space, folder, stop))

    return go


def learnt(events: list[Event]) -> LoraFile:
    """The LoRA that a run left where prompts find it."""
    (saved,) = [event for event in events if isinstance(event, Saved)]
    return read_lora(Path(saved.path))


def flat(file: LoraFile) -> torch.Tensor:
    return torch.cat([half.flatten() for p in file.pairs.values() for half in (p.down, p.up)])


def calls(count: int) -> Callable[[], bool]:
    """Asks to stop from the call after `count` on."""
    asked = itertools.count(1)
    return lambda: next(asked) > count


@pytest.mark.parametrize("kind", KINDS)
def test_every_family_learns_in_the_same_loop(kind: str, run: Callable[..., list[Event]]) -> None:
    events = run(kind, targets=("attention", "feed_forward", "conv"), train_text_encoder=True)
    (started,) = [event for event in events if isinstance(event, Started)]
    assert started.total == 4
    assert started.details["trigger word"] == "zibo"
    assert "parameters" in started.details["learning"]
    steps = [event for event in events if isinstance(event, Step)]
    assert [step.step for step in steps] == [1, 2, 3, 4]
    assert all(0 < step.loss < 10 for step in (steps[0], steps[-1]) if step.loss is not None)
    file = learnt(events)
    assert all(pair.up.any() for pair in file.pairs.values()), "a layer learnt nothing"
    prefixes = {name.split("_")[1] for name in file.pairs}
    assert prefixes == ({"unet", "te1", "te2"} if kind == "sdxl" else {"unet", "te"})
    assert any("resnets" in name for name in file.pairs)
    assert file.metadata["modelspec.trigger_phrase"] == "zibo"
    assert file.metadata["ss_steps"] == "4"
    assert isinstance(events[-1], Done) and events[-1].path.endswith("loras/zibo.safetensors")


def test_the_loss_falls(run: Callable[..., list[Event]]) -> None:
    events = run(steps=60, batch_size=4, rank=8, alpha=8, targets=("attention", "conv"))
    losses = [event.loss for event in events if isinstance(event, Step) and event.loss]
    assert len(losses) == 13  # step 1 and every fifth
    assert sum(losses[-4:]) / 4 < 0.8 * sum(losses[:3]) / 3


def test_two_runs_write_the_same_bytes_whatever_else_draws(
    run: Callable[..., list[Event]], space: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chance is used wherever it can be; the second run samples, and the world's dice are thrown."""
    monkeypatch.setattr("time.time", lambda: NOW)
    chance = {"dropout": 0.3, "flip": True, "caption_dropout": 0.3, "train_text_encoder": True}
    run(**chance)
    first = (space.loras / "zibo.safetensors").read_bytes()
    (space.loras / "zibo.safetensors").unlink()
    torch.manual_seed(99)
    state = torch.get_rng_state()
    run(**chance, sample_every=2)
    assert (space.loras / "zibo.safetensors").read_bytes() == first
    assert torch.equal(torch.get_rng_state(), state), "the process's own dice were thrown"
    other = learnt(run(**chance, seed=1))
    assert not torch.equal(flat(other), flat(read_lora(space.loras / "zibo.safetensors")))


def test_stopping_keeps_the_lora_of_the_last_step(
    run: Callable[..., list[Event]], space: Workspace
) -> None:
    events: list[Event] = []
    whole = run(steps=3)
    asked = runs.RunState()
    asked_after = iter([False] * 1000)
    assert learnt(whole).metadata["ss_steps"] == "3"
    del asked, asked_after

    seen: list[int] = []

    def stop() -> bool:
        return len(seen) >= 3

    real = sdlora.train.Training.learn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sdlora.train.Training, "learn", lambda self, step: (seen.append(step), real(self, step))
        )
        events = run(steps=50, schedule="constant", stop=stop)
    assert isinstance(events[-1], Stopped)
    assert events[-1].step == 3
    assert Path(events[-1].path).name == "zibo-2.safetensors"
    assert learnt(events).metadata["ss_steps"] == "3"
    same = learnt(run(steps=3, schedule="constant"))
    assert torch.equal(flat(learnt(events)), flat(same))
