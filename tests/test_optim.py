"""The tables of optimizers and schedules."""

import sys
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from diffusers.optimization import (
    get_cosine_schedule_with_warmup,
    get_cosine_with_hard_restarts_schedule_with_warmup,
    get_linear_schedule_with_warmup,
    get_polynomial_decay_schedule_with_warmup,
)
from hypothesis import given
from hypothesis import strategies as st

from sdlora.errors import SettingsError
from sdlora.settings.train import Schedule, TrainSettings
from sdlora.training.optim import (
    OPTIMIZERS,
    SCHEDULES,
    OptimizerRow,
    check_optimizer,
    lr_multiplier,
    make_optimizer,
    set_rates,
    unused,
)
from training_runs import Run


def plan(schedule: str, steps: int = 100, warmup: int = 10, **more: object) -> TrainSettings:
    said = {"steps": steps, "warmup_steps": min(warmup, steps), "schedule": schedule, **more}
    return TrainSettings.from_values({"data": "d", "name": "n", **said})


@given(
    schedule=st.sampled_from(sorted(SCHEDULES)),
    steps=st.integers(1, 300),
    warmup=st.integers(0, 400),
)
def test_the_rate_rises_then_never_rises_again_and_is_never_zero(
    schedule: str, steps: int, warmup: int
) -> None:
    its = plan(schedule, steps, warmup, schedule_cycles=1)
    shares = [lr_multiplier(its, step) for step in range(1, steps + 1)]
    assert all(0 < share <= 1 for share in shares)
    top = min(max(warmup, 1), steps)
    assert shares[:top] == sorted(shares[:top])
    assert shares[top:] == sorted(shares[top:], reverse=True)
    assert shares[top - 1] == 1


@pytest.mark.parametrize(
    ("schedule", "oracle", "options"),
    [
        ("linear", get_linear_schedule_with_warmup, {}),
        ("cosine", get_cosine_schedule_with_warmup, {}),
        ("cosine_restarts", get_cosine_with_hard_restarts_schedule_with_warmup, {"num_cycles": 3}),
        ("polynomial", get_polynomial_decay_schedule_with_warmup, {"power": 2.0, "lr_end": 0.0}),
    ],
)
def test_a_schedule_is_the_one_everybody_means(
    schedule: str, oracle: Callable[..., Any], options: dict[str, float]
) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = oracle(optimizer, 10, 100, **options)
    for step in range(1, 101):
        if step > 10:  # the oracles' rise starts at zero, which wastes a step
            assert lr_multiplier(plan(schedule), step) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_rex_by_hand() -> None:
    assert lr_multiplier(plan("rex", 100, 0), 51) == pytest.approx(0.5 / 0.75)
    assert lr_multiplier(plan("rex", 100, 0), 1) == 1


def test_an_optimizer_that_averages_has_no_schedule_and_that_is_said() -> None:
    its = plan("cosine", optimizer="schedule_free")
    assert {lr_multiplier(its, step) for step in range(10, 101)} == {1.0}
    assert unused(its).keys() == {"schedule"}
    assert unused(plan("cosine", optimizer="prodigy")).keys() == {"learning_rate"}
    assert not unused(plan("cosine"))


def test_the_settings_name_the_schedules_of_the_table() -> None:
    assert set(get_args(Schedule)) == set(SCHEDULES)
    with pytest.raises(SettingsError):
        plan("wavy")


@pytest.mark.parametrize("name", sorted(OPTIMIZERS.keys() - {"prodigy"}))
def test_an_optimizer_goes_down_and_each_group_has_its_rate(name: str) -> None:
    if name == "adamw8bit":
        pytest.importorskip("bitsandbytes", reason="43 MB that nothing else needs")
    a, b = (torch.nn.Parameter(torch.ones(4)) for _ in range(2))
    optimizer = make_optimizer(name, [([a], 0.1), ([b], 0.01), ([], 1.0)], weight_decay=0.0)
    assert set_rates(optimizer, 0.5) == pytest.approx(0.05)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.005])
    for _ in range(12):  # one of them waits until it knows how far gradients spread
        (a.square().sum() + b.square().sum()).backward()
        optimizer.step()
    assert (a < 1).all() and (b < 1).all()
    assert (1 - a).mean() > (1 - b).mean()


def test_prodigy_is_left_to_find_its_rate() -> None:
    a, b = (torch.nn.Parameter(torch.ones(4)) for _ in range(2))
    optimizer = make_optimizer("prodigy", [([a], 1e-4), ([b], 5e-5)], weight_decay=0.01)
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 1.0]
    for _ in range(100):
        (a.square().sum() + b.square().sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert optimizer.param_groups[0]["d"] > 100 * optimizer.param_groups[0]["d0"]
    assert (a < 0.99).all()


def test_an_optimizer_that_is_not_there_is_said_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    group = [([torch.nn.Parameter(torch.ones(1))], 0.1)]
    with pytest.raises(SettingsError, match="Did you mean adamw"):
        make_optimizer("adam", group, 0.0)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(SettingsError, match="pip install bitsandbytes"):
        make_optimizer("adamw8bit", group, 0.0)


def test_an_optimizer_that_cannot_compute_here_is_told_before_the_long_work(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    class ForGpus(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            raise NotImplementedError("no kernel for cpu tensors")

    monkeypatch.setattr(torch.optim, "ForGpus", ForGpus, raising=False)
    monkeypatch.setitem(OPTIMIZERS, "for_gpus", OptimizerRow("torch.optim", "ForGpus"))
    events = run(optimizer="for_gpus", expect=SettingsError)
    assert events == [] and "does not run on this cpu, use adamw: no kernel" in run.error
    for name in OPTIMIZERS.keys() - {"adamw8bit", "for_gpus"}:
        check_optimizer(name, torch.device("cpu"))
