"""The tables of optimizers and schedules."""

import pytest
import torch
from diffusers.optimization import get_cosine_schedule_with_warmup
from hypothesis import given
from hypothesis import strategies as st

from sdlora.errors import SettingsError
from sdlora.optim import SCHEDULES, make_optimizer, rate_share, set_rates
from sdlora.settings import TrainSettings


@given(
    schedule=st.sampled_from(sorted(SCHEDULES)),
    steps=st.integers(1, 300),
    warmup=st.integers(0, 400),
)
def test_the_rate_rises_then_never_rises_again_and_is_never_zero(
    schedule: str, steps: int, warmup: int
) -> None:
    shares = [rate_share(schedule, step, steps, warmup) for step in range(1, steps + 1)]
    assert all(0 < share <= 1 for share in shares)
    top = min(max(warmup, 1), steps)
    assert shares[:top] == sorted(shares[:top])
    assert shares[top:] == sorted(shares[top:], reverse=True)
    assert shares[top - 1] == 1


def test_cosine_is_the_one_everybody_means() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    oracle = get_cosine_schedule_with_warmup(optimizer, 10, 100)
    for step in range(1, 101):
        if step > 10:  # the oracle's rise starts at zero, which wastes a step
            assert rate_share("cosine", step, 100, 10) == pytest.approx(oracle.get_last_lr()[0])
        optimizer.step()
        oracle.step()


def test_the_settings_name_the_schedules_of_the_table() -> None:
    for schedule in SCHEDULES:
        assert TrainSettings.of({"data": "d", "name": "n", "schedule": schedule})
    with pytest.raises(SettingsError):
        TrainSettings.of({"data": "d", "name": "n", "schedule": "wavy"})


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_an_optimizer_goes_down_and_each_group_has_its_rate(name: str) -> None:
    a, b = (torch.nn.Parameter(torch.ones(4)) for _ in range(2))
    optimizer = make_optimizer(name, [([a], 0.1), ([b], 0.01), ([], 1.0)], weight_decay=0.0)
    assert set_rates(optimizer, 0.5) == pytest.approx(0.05)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.005])
    (a.square().sum() + b.square().sum()).backward()
    optimizer.step()
    assert (a < 1).all() and (b < 1).all()
    assert (1 - a).mean() > (1 - b).mean()


def test_an_optimizer_that_is_not_there_is_said_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    group = [([torch.nn.Parameter(torch.ones(1))], 0.1)]
    with pytest.raises(SettingsError, match="Did you mean adamw"):
        make_optimizer("adam", group, 0.0)
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(SettingsError, match="pip install bitsandbytes"):
        make_optimizer("adamw8bit", group, 0.0)
