"""A memory plan does what its level says, but for what the user has set, and says why."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.open_checkpoint import write_sparse
from sdlora.events import Done, Started
from sdlora.settings.presets import with_preset
from sdlora.settings.train import PLANNED, TrainSettings
from sdlora.training import memory_plan
from sdlora.training.memory_plan import LEVELS, MemoryPlan, plan_memory
from sdlora.training.out_of_memory import next_memory_saving
from sdlora.workspace import Workspace
from tiny import CPU, tiny
from training_runs import Run, learnt, numbers_of, only

GPU = torch.device("cuda")  # only named here
LEAST = {"data": "x", "name": "x"}


def settings(**values: Any) -> TrainSettings:
    return TrainSettings.from_values({**LEAST, **values})


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = tmp_path_factory.mktemp("sparse") / "sdxl.safetensors"
    write_sparse("sdxl", path)
    yield str(path)
    path.unlink()


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Plans of a device with so much free memory, where AdamW in 8 bits runs on GPUs."""

    def make(source: str, free: float, device: torch.device = GPU, **values: Any) -> MemoryPlan:
        monkeypatch.setattr(memory_plan, "free_memory_gib", lambda _: free)
        monkeypatch.setattr(memory_plan, "_has_small_adamw", lambda device: device == GPU)
        return plan_memory(settings(**values), source, 2, device)

    return make


def decided(plan: MemoryPlan) -> dict[str, Any]:
    defaults = TrainSettings.model_fields
    values = {name: getattr(plan.settings, name) for name in sorted(PLANNED)}
    return {name: value for name, value in values.items() if value != defaults[name].default}


def test_every_level_adds_to_the_one_before(plan: Any) -> None:
    source = str(tiny("sdxl"))
    medium = {"gradient_checkpointing": True, "optimizer": "adamw8bit"}
    low = {"base_precision": "int8", **medium}
    expected = [{}, medium, low, {**low, "stream_blocks": 1.0}]
    plans = [plan(source, 1, memory=level) for level in LEVELS]
    assert [decided(p) for p in plans] == expected
    assert str(plans[0]) == "high, as chosen: everything on the device"
    assert str(plans[3]) == (
        "lowest, as chosen: activations are computed twice, adamw8bit keeps its numbers in 8 "
        "bits, the base model is held in int8, 100% of the blocks come from main memory"
    )
    for p in plans:
        assert p.details["predicted memory"] == str(p.prediction)
    on_cpu = plan(source, 1, CPU, memory="lowest")
    assert "optimizer" not in decided(on_cpu), "nothing is gained by it there"


@pytest.mark.parametrize("through_preset", [False, True])
def test_what_the_user_has_set_wins(through_preset: bool) -> None:
    """A default that was asked for, too; a preset's value is not the user's."""
    asked = settings(memory="lowest", base_precision="full", gradient_checkpointing=False)
    if through_preset:
        asked = with_preset(asked, "sdxl")
    found = plan_memory(asked, str(tiny("sdxl")), 2, CPU)
    assert decided(found) == {"stream_blocks": 1.0}
    other = settings(memory="lowest", base_precision="fp8", optimizer="lion", compile_blocks=True)
    other = with_preset(other, "sdxl") if through_preset else other
    expected = {"base_precision": "fp8", "optimizer": "lion", "gradient_checkpointing": True}
    assert decided(plan_memory(other, str(tiny("sdxl")), 2, CPU)) == expected


def test_auto_takes_the_first_that_fits_a_gpu(sdxl: str, plan: Any) -> None:
    asked = {"batch_size": 1, "rank": 16}
    found = {free: plan(sdxl, free, **asked).level for free in (24, 15, 8, 5, 3, 1)}
    assert list(found.values()) == ["high", "high", "medium", "low", "lowest", "lowest"]
    words = str(plan(sdxl, 5, **asked))
    assert words.startswith("low, because 11.8 GiB or more would be needed otherwise and 5.0 GiB")
    assert str(plan(sdxl, 24, **asked)) == (
        "high, because 11.8 GiB or more is needed and 24.0 GiB are free: everything on the device"
    )


def test_auto_changes_no_result_on_a_processor(sdxl: str, plan: Any) -> None:
    assert plan(sdxl, 64, CPU).level == "high"
    for free in (10, 1):
        assert decided(plan(sdxl, free, CPU)) == {"gradient_checkpointing": True}


def test_a_model_that_is_not_here_is_trained_as_it_is(plan: Any) -> None:
    found = plan("someone/model", 4)
    assert decided(found) == {} and "the model is not here yet" in str(found)


def test_auto_is_high_on_this_processor(run: Run) -> None:
    events = run()
    details = only(Started, events).details
    assert (
        details["memory"].startswith("high, because ")
        and "or more: " in (details["predicted memory"])
    )
    assert torch.equal(numbers_of(learnt(events)), numbers_of(learnt(run(memory="high"))))


def test_the_lowest_trains_and_says_so(run: Run) -> None:
    """As with each of its settings by hand."""
    events = run("sdxl", memory="lowest")
    details = only(Started, events).details
    assert isinstance(events[-1], Done)
    assert details["frozen weights"].startswith("int8 in ") and details["streamed blocks"]
    assert details["memory"].startswith("lowest, as chosen: activations are computed twice, the ")
    by_hand = run("sdxl", base_precision="int8", gradient_checkpointing=True)
    assert torch.equal(numbers_of(learnt(events)), numbers_of(learnt(by_hand)))


def test_a_gpu_that_runs_out_streams_before_it_offloads() -> None:
    asked = settings(gradient_checkpointing=True, batch_size=1)
    streamed, remedy = next_memory_saving(asked, on_gpu=True)
    assert streamed.stream_blocks == 1 and "copied to the GPU while they are needed" in remedy
    offloaded, _ = next_memory_saving(streamed, on_gpu=True)
    assert offloaded.offload and next_memory_saving(asked)[0].offload
    compiled = asked.model_copy(update={"compile_blocks": True})
    assert next_memory_saving(compiled, on_gpu=True)[0].offload


def test_measuring_a_training_measures_its_plan(
    run: Run, space: Workspace, capsys: pytest.CaptureFixture[str], pictures: Path
) -> None:
    from sdlora.cli.main import main

    line = ["dataset", "check", str(pictures), "--model", str(tiny("sdxl")), "--measure"]
    assert main([*line, "--memory", "lowest", "--workspace", str(space.root)]) == 0
    assert "plan: lowest, as chosen: activations are" in capsys.readouterr().out
