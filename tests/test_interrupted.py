"""A run that is killed, or that the disk fails, ends with the same bits when it is resumed.

Here at some of the calls that change the disk; `benchmarks/interrupted.py` takes all of them.
"""

import errno
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks.disturbed import Proof
from benchmarks.interrupted import pairwise, power_losses
from sdlora import files
from sdlora.jobs import run_folder
from sdlora.training import checkpoints
from sdlora.training.latent_dataset import LatentBatch
from sdlora.training.train_state import TrainState

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks and kills by signal")
CALLS = ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir")
KILL_AT = (5, 29, 51, 73)  # of about eighty


@pytest.fixture(scope="module")
def proof(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proof]:
    yield Proof(tmp_path_factory.mktemp("interrupted"))


def before(at: int, act: Callable[[], None], calls: tuple[str, ...] = CALLS) -> Callable[[], None]:
    """Has a process `act` when it is about to make the `at`-th of these calls."""

    count = itertools.count(1)

    def watched(real: Callable[..., object], *given: object, **named: object) -> object:
        if next(count) == at:
            act()
        return real(*given, **named)

    def prepare() -> None:
        for name in calls:
            setattr(os, name, partial(watched, getattr(os, name)))

    return prepare


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("at", KILL_AT)
def test_a_kill_costs_no_bit(at: int, proof: Proof) -> None:
    with proof.disturbed() as place:
        assert place.run(prepare=before(at, die)) == -signal.SIGKILL
        assert not place.damage()
        assert proof.resumed(place) == []


def test_a_kill_inside_an_accumulation_costs_no_bit(tmp_path: Path) -> None:
    proof, gradients = (
        Proof(tmp_path, ["--gradient-accumulation", "3"]),
        TrainState._forward_backward,
    )

    def half(self: TrainState, batch: LatentBatch, step: int) -> Any:
        if step < 3 or len(batch) == 1:
            return gradients(self, batch, step)
        gradients(self, batch[:1], step)
        return die()

    with proof.disturbed() as place:
        killing = partial(setattr, TrainState, "_forward_backward", half)
        assert place.run(prepare=killing) == -signal.SIGKILL
        [state] = place.states()
        assert state.checkpoint in (2, 3)  # a round ends with a picture alone
        assert proof.resumed(place) == []


def test_several_kills_in_a_row_cost_no_bit(proof: Proof) -> None:
    with proof.disturbed() as place:
        for at in (45, 30, 20):
            assert place.run(prepare=before(at, die)) == -signal.SIGKILL
        assert proof.resumed(place) == []


@pytest.mark.parametrize("at", [14, 30])
def test_a_disk_that_fails_is_told_and_costs_no_bit(at: int, proof: Proof) -> None:
    with proof.disturbed() as place:
        code = place.run(prepare=before(at, fail, ("fsync",)))
        (folder,) = run_folder.run_folders(place.root / "runs")
        said = " ".join(warned.message for warned in run_folder.read(folder).warnings)
        assert "Input/output error" in said + run_folder.read(folder).error
        assert not place.damage()
        assert (proof.resumed(place) if code else place.problems(proof.expected)) == []


def test_a_power_loss_costs_no_bit(proof: Proof) -> None:
    found = power_losses(proof, most=200, resumed=2, every=3)
    assert found["looked at"] == 200 and found["wrong"] == {}


@pytest.mark.parametrize("module", [checkpoints, files])
def test_what_is_not_flushed_is_missed(
    module: ModuleType, proof: Proof, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the looking does see what is lost."""
    monkeypatch.setattr(module, "sync_folder", lambda folder: None)
    said = str(power_losses(proof, most=200, resumed=0, every=3)["wrong"])
    assert "is lost" in said
    if module is checkpoints:
        assert "cannot be read" in said, "pruned, and its name is still there"


def test_every_two_values_meet() -> None:
    factors = {"a": (1, 2, 3), "b": (True, False), "c": ("x", "y"), "d": (0, 1, 2)}
    cases = pairwise(factors)
    assert 9 <= len(cases) <= 14
    for one, other in itertools.combinations(factors, 2):
        met = {(case[one], case[other]) for case in cases}
        assert met == set(itertools.product(factors[one], factors[other]))
