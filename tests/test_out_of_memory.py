"""Too little memory: the next rung down, the same pictures, and it is told."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from sdlora.errors import DeviceError
from sdlora.events import (
    Done,
    Warned,
)
from sdlora.starter.draw import draw, random_scene
from sdlora.training.train import prepare
from sdlora.training.train_state import TrainState
from sdlora.workspace import Workspace
from training_runs import Run, learnt, numbers_of, result_of


@pytest.mark.parametrize("rung", [1, 2, 3])
def test_too_little_memory_is_made_do_with_and_told(
    rung: int, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rung in turn; the pictures of every step are those of a run that had enough."""
    seen: dict[int, tuple[str, ...]] = {}
    gradients, failing = TrainState._forward_backward, [0]

    def hungry(self: TrainState, batch: Any, step: int) -> torch.Tensor:
        if step in failing:
            failing.remove(step)
            raise torch.OutOfMemoryError("CUDA out of memory")
        seen[step] = batch.names
        return gradients(self, batch, step)

    monkeypatch.setattr(TrainState, "_forward_backward", hungry)
    whole, order = numbers_of(learnt(run(batch_size=4, name="enough"))), dict(seen)
    failing[:] = [4] * rung  # at step 4, when others were learnt
    events = run(batch_size=4)
    told = [event.message for event in events if isinstance(event, Warned)]
    words = (
        "gradient_checkpointing is on",
        "4 pictures per step are computed 2 at a time",
        "1 at a",
    )
    assert len(told) == rung
    assert all(word in said for word, said in zip(words, told, strict=False))
    assert isinstance(events[-1], Done) and seen == order and len(order[4]) == 4
    assert torch.allclose(numbers_of(learnt(events)), whole, atol=3e-3)


def test_the_last_rung_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TrainState, "_forward_backward", hungry)
    events = run(batch_size=2, expect=DeviceError)
    told = [event.message for event in events if isinstance(event, Warned)]
    assert [said.split(";")[1][:9] for said in told] == [" gradient", " 2 pictur", " offload "]
    assert "with gradient_checkpointing, offload and one picture at a time" in run.error


def test_keeping_what_a_step_remembers_in_main_memory_changes_no_bit(run: Run) -> None:
    assert torch.equal(numbers_of(learnt(run())), numbers_of(learnt(run(offload=True))))


def test_the_rehearsal_takes_the_largest_batch_and_leaves_no_trace(
    run: Run, pictures: Path, space: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        draw(random_scene(random.Random(number))).resize((96, 32)).save(pictures / f"{number}.png")
    training = result_of(prepare(run.settings(), space, tmp_path / "rehearsed"))
    before, seen = training.state.state_dict(), []
    learn = TrainState.train_step

    def watched(self: TrainState, step: int) -> Any:
        seen.append(self.dataset.batch(step).latents.numel())
        if len(seen) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return learn(self, step)

    monkeypatch.setattr(TrainState, "train_step", watched)
    (told,) = training.warm_up_memory()
    assert "gradient_checkpointing is on" in told.message
    steps = range(1, training.dataset.steps_per_round + 1)
    assert seen == [max(training.dataset.batch(step).latents.numel() for step in steps)] * 2
    after = training.state.state_dict()
    assert after.facts == before.facts and after.tensors.keys() == before.tensors.keys()
    assert all(torch.equal(after.tensors[name], before.tensors[name]) for name in before.tensors)
