"""A full disk: told before the first step, waited for at the end, at no bit's cost."""

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sdlora import disk_room
from sdlora.errors import RunError
from sdlora.events import Checkpoint, Done, Event, Progress, Saved, Step, Stopped, Warned
from sdlora.training.checkpoints import checkpoint_path
from sdlora.training.optim import OPTIMIZERS
from sdlora.training.train import prepare, train
from test_resume import Interrupted, read_body, sums
from training_runs import result_of


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interrupted]:
    root = tmp_path_factory.mktemp("room")
    yield Interrupted(root)
    shutil.rmtree(root)


class Disk:
    """One that is full while `full` says so; `waited` is how often a training waited for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full: Callable[[], bool] = lambda: False
        self.waited, self.sync = 0, os.fsync
        monkeypatch.setattr(os, "fsync", self.fsync)
        monkeypatch.setattr(disk_room.time, "sleep", self.sleep)

    def fsync(self, handle: int) -> None:
        if self.full():
            raise OSError(errno.ENOSPC, "No space left on device")
        self.sync(handle)

    def sleep(self, _: float) -> None:
        self.waited += 1


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def told(events: list[Event]) -> list[str]:
    return [event.message for event in events if isinstance(event, Warned)]


def free(monkeypatch: pytest.MonkeyPatch, mib: float) -> None:
    usage = SimpleNamespace(free=round(mib * 2**20))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS.keys() - {"adamw8bit"}))
def test_what_a_checkpoint_takes_is_known_before_there_is_one(
    optimizer: str, ema: float, runs: Interrupted
) -> None:
    settings = runs.settings(optimizer=optimizer, ema_decay=ema, steps=1, save_every=1, rank=32)
    folder = runs.folder()
    learner = result_of(prepare(settings, runs.space, folder)).state
    runs.run(settings, folder)
    sizes = {p.name: p.stat().st_size for p in checkpoint_path(folder, 1).iterdir()}
    assert sum(sizes.values()) <= learner.checkpoint_bytes < 1.6 * sum(sizes.values())
    lora = sizes["zibo-step-000001.safetensors"]
    assert lora <= learner.lora_bytes < 1.6 * lora


def test_a_disk_without_room_for_one_checkpoint_is_told_before_the_first_step(
    runs: Interrupted, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, folder, events = runs.settings(), runs.folder(), []
    free(monkeypatch, 0.2)
    with pytest.raises(RunError, match=r"has 0\.2 MiB free, .* at least 0\.\d MiB, for a checkp"):
        for event in train(settings, runs.space, folder):
            events.append(event)
    assert not any(isinstance(event, Step) for event in events)
    free(monkeypatch, 100)
    assert isinstance(runs.run(settings, folder)[-1], Done), "with room it begins"


def test_room_for_some_checkpoints_is_told_and_the_training_begins(
    runs: Interrupted, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, folder = runs.settings(save_every=1, keep_checkpoints=4), runs.folder()
    free(monkeypatch, 0.6)
    events = runs.run(settings, folder, until=5)
    (said,) = [message for message in told(events) if "free" in message]
    assert "0.6 MiB free" in said and "5 checkpoints of 0.2 MiB each and its LoRA" in said
    free(monkeypatch, 0.5)  # four are there: one more is written before the oldest goes
    assert not [message for message in told(runs.run(settings, folder)) if "free" in message]


def test_a_checkpoint_that_does_not_fit_is_left_out_and_the_next_is_tried(
    runs: Interrupted, disk: Disk
) -> None:
    settings, whole, folder = runs.settings(cache_gib=0), runs.folder(), runs.folder()
    runs.run(settings, whole)
    full = iter([True])
    disk.full = lambda: next(full, False)
    events = runs.run(settings, folder)
    (said,) = [message for message in told(events) if "no checkpoint" in message]
    assert "no checkpoint of step 2: No space left on device" in said
    assert re.search(r"has [\d.]+ [MG]iB free; 0\.2 MiB are needed", said)
    assert [e.step for e in events if isinstance(e, Checkpoint)] == [4, 6]
    assert sums(whole) == sums(folder) and disk.waited == 0
    assert not list((folder / "state").glob(".writing*"))


def test_what_can_be_made_again_makes_room(runs: Interrupted, disk: Disk) -> None:
    settings, folder, cache = runs.settings(), runs.folder(), runs.space.cache
    runs.run(settings, runs.folder())
    assert list(cache.rglob("*.safetensors"))
    disk.full = lambda: any(cache.rglob("*.safetensors"))
    events = runs.run(settings, folder)
    assert [e.step for e in events if isinstance(e, Checkpoint)] == [2, 4, 6]
    assert any("the cache was emptied of 0." in message for message in told(events))


@pytest.mark.parametrize("stopped", [False, True])
def test_what_was_learnt_waits_for_room(stopped: bool, runs: Interrupted, disk: Disk) -> None:
    """At its end, or when it is stopped; then it is as if the disk had never been full."""
    name = f"waits-{stopped}"
    settings, whole, folder = runs.settings(name=name, cache_gib=0), runs.folder(), runs.folder()
    runs.run(settings.model_copy(update={"name": "whole"}), whole)
    events: list[Event] = []

    def should_stop() -> bool:
        return stopped and any(isinstance(e, Step) and e.step == 3 for e in events)

    disk.full = lambda: disk.waited < 3
    for event in train(settings, runs.space, folder, should_stop):
        if isinstance(event, Step) and event.step == 4:
            assert disk.waited == 0, "it learns as long as it can"
        events.append(event)
    assert disk.waited == 3
    assert len([t for t in told(events) if t.endswith("it waits")]) == 1
    assert Progress("waiting for room on the disk").what in [getattr(e, "what", "") for e in events]
    assert isinstance(events[-1], Stopped if stopped else Done)
    if stopped:
        assert [e.step for e in events if isinstance(e, Checkpoint)] == [3]
        events = runs.run(settings, folder)
    path = next(e.path for e in events if isinstance(e, Saved))
    assert read_body(Path(path)) == read_body(runs.space.loras / "whole.safetensors")


def test_another_failure_of_the_disk_is_not_waited_for(
    runs: Interrupted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(handle: int) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output error"):
        runs.run(runs.settings(name="broken", save_every=0, cache_gib=0), runs.folder())
    assert not (runs.space.loras / "broken.safetensors").exists()
