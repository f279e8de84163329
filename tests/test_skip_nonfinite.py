"""What is not a number is never applied, whatever the optimizer; again and again, it ends."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sdlora.errors import DataError
from sdlora.events import (
    Checkpoint,
    Done,
    Resumed,
    Step,
    Warned,
)
from sdlora.lora.format.file import read_lora
from sdlora.training.loss_log import SPAN, LossLog
from sdlora.training.optim import OPTIMIZERS, make_optimizer
from sdlora.training.skip_nonfinite import NonFiniteSkip
from sdlora.training.validation import BaseLossCheck
from sdlora.workspace import Workspace
from training_runs import Breaks, Run, learnt, numbers_of, only


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "schedule_free", "prodigy", "came"])
def test_a_step_that_is_no_number_is_left_out_and_its_pictures_named(
    optimizer: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is learnt at step 4 is what was learnt at step 3, whatever the optimizer remembers."""
    same = {"steps": 9, "schedule": "constant", "optimizer": optimizer, "caption_dropout": 0.0}
    before = numbers_of(learnt(run(**same, stop_at=3)))
    broken = Breaks(monkeypatch, lambda call: call in (4, 6))
    after = run(**same, stop_at=4)
    told = only(Warned, [e for e in after if isinstance(e, Warned) and "left out" in e.message])
    assert "step 4 was left out" in told.message and ", ".join(broken.seen[3]) in told.message
    assert torch.equal(numbers_of(learnt(after)), before)
    broken.seen.clear()
    events = run(**same)
    assert isinstance(events[-1], Done) and numbers_of(learnt(events)).isfinite().all()
    assert [e.loss for e in events if isinstance(e, Step) and e.step in (5, 9)] != [None, None]


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_a_step_that_is_left_out_leaves_everything_as_it_was(optimizer: str, first: bool) -> None:
    """Numbers, moments and counters, to the bit; also where it is the very first."""
    row = OPTIMIZERS[optimizer]
    pytest.importorskip(row.module.partition(".")[0])

    def steps(sound: list[bool]) -> tuple[Any, ...]:
        rng = torch.Generator().manual_seed(0)
        weights = [nn.Parameter(torch.randn(64, 80, generator=rng)) for _ in range(2)]
        made = make_optimizer(optimizer, [(weights, 1e-2)], weight_decay=0.01)
        guard = NonFiniteSkip(made)
        for fine in sound:
            for weight in weights:
                grad = torch.randn(64, 80, generator=rng if fine else None)
                weight.grad = grad if fine else grad.fill_(torch.nan)
            guard.step(torch.tensor(fine))
        guard.settle()
        groups = [{k: v for k, v in g.items() if k != "params"} for g in made.param_groups]
        return weights, [dict(made.state[weight]) for weight in weights], groups

    broken = [False, True, True, True, False] if first else [True, True, False, True, False]
    for ours, whole in zip(steps(broken), steps([True] * 3), strict=True):
        torch.testing.assert_close(ours, whole, rtol=0, atol=0)


@pytest.mark.parametrize("what", [{"ema_decay": 0.5}, {"max_norm": 0.003}])
def test_nothing_else_moves_in_a_step_that_is_left_out(
    what: dict[str, float], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = {"steps": 9, "schedule": "constant", "caption_dropout": 0.0, **what}
    before = numbers_of(learnt(run(**same, stop_at=3)))
    Breaks(monkeypatch, lambda call: call == 4)
    assert torch.equal(numbers_of(learnt(run(**same, stop_at=4))), before)


def test_a_training_that_diverges_goes_back_once_and_then_ends(
    run: Run, space: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Breaks(monkeypatch, lambda call: call > 6)
    events = run(steps=40, save_every=4, stop_at=None, expect=DataError)
    told = [event.message for event in events if isinstance(event, Warned)]
    assert (
        f"step 7 was left out, for its loss or gradient is not a number; pictures: "
        f"{', '.join(broken.seen[6])}" in told
    )
    assert [e.step for e in events if isinstance(e, Resumed)] == [4]
    assert any("back to step 4, from where it goes on at half the learning rate" in t for t in told)
    steps = [event for event in events if isinstance(event, Step)]
    first, again = (next(s for s in some if s.step == 6) for some in (steps, steps[::-1]))
    assert again.learning_rate == pytest.approx(first.learning_rate / 2)
    assert list(space.loras.iterdir()) == []
    kept = read_lora(next((tmp_path / "run-1" / "lora").iterdir()))
    assert numbers_of(kept).isfinite().all() and "also at half the learning rate" in run.error


def test_a_training_that_comes_apart_without_a_wrong_number_goes_back_too(
    run: Run, space: Workspace, tmp_path: Path
) -> None:
    """On a model that knows something: far too high a rate makes it worse than it was."""
    wild = {"model": "starter", "learning_rate": 0.05, "rank": 8, "alpha": 64, "batch_size": 1}
    events = run(**wild, steps=24, save_every=12, resolution=64, expect=DataError)
    (told,) = [event.message for event in events if isinstance(event, Warned)]
    said = "its loss on the pictures that it learns is "
    assert f"it diverges at step 12, {said}" in told and "back to step 0" in told
    assert only(Resumed, events).step == 0 and not [e for e in events if isinstance(e, Checkpoint)]
    assert said in run.error and "Lower learning_rate" in run.error
    assert list(space.loras.iterdir()) == []
    assert [file.name for file in (tmp_path / "run-1" / "lora").iterdir()] == [
        "zibo-step-000012.safetensors"
    ]


def test_a_loss_that_climbs_only_by_its_noise_levels_is_left_alone(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is worth a look, which shows that nothing is wrong."""
    Breaks(monkeypatch, lambda call: call > 24, times=4.0)
    looks: list[str] = []
    honest = BaseLossCheck.complaint
    monkeypatch.setattr(
        BaseLossCheck, "complaint", lambda its: looks.append(honest(its)) or looks[-1]
    )
    assert isinstance(run(steps=60)[-1], Done)
    assert len(looks) > 1 and not any(looks)


def test_what_the_ledger_knows_comes_back_also_from_an_older_one() -> None:
    ledger = LossLog(half_bits=False, unsound=[3], first=[0.1] * SPAN, late=[0.3] * SPAN)
    other = LossLog(half_bits=False)
    other.load_state_dict(json.loads(json.dumps(ledger.state_dict())))
    assert other == ledger and other.climbs() and not other.climbs()
    other.load_state_dict([3, 7])
    assert other == LossLog(half_bits=False, unsound=[3, 7]) and not other.climbs()
