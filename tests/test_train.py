"""The loop, on tiny models: it learns, says all that happens, and repeats itself to the bit."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops

import sdlora.training.sample_images
import sdlora.training.train_state
from sdlora.errors import DataError, ModelError, SettingsError
from sdlora.eta import Pace
from sdlora.events import (
    Checkpoint,
    Done,
    Progress,
    SampleReady,
    Saved,
    Started,
    Step,
    Stopped,
    Warned,
)
from sdlora.inference.engine import render
from sdlora.lora.format.file import read_lora
from sdlora.lora.format.hashes import read_hashes
from sdlora.lora.format.training_metadata import read_training_metadata
from sdlora.settings.image_request import ImageRequest
from sdlora.starter.draw import draw, random_scene
from sdlora.training import train_state
from sdlora.training.train_state import TrainState
from sdlora.workspace import Workspace
from tiny import KINDS, open_tiny
from training_runs import Run, learnt, numbers_of, only


@pytest.mark.parametrize("kind", KINDS)
def test_every_family_learns_in_the_same_loop(kind: str, run: Run) -> None:
    events = run(kind, targets=("attention", "feed_forward", "conv"), train_text_encoder=True)
    started = only(Started, events)
    assert started.total == 4
    assert started.details["pictures"] == "6 of 64 x 64 pixels"
    assert started.details["trigger word"] == "zibo"
    assert {"learning", "model", "device", "number format", "seed"} <= started.details.keys()
    steps = [event for event in events if isinstance(event, Step)]
    assert [step.step for step in steps] == [1, 2, 3, 4]
    assert [step.loss is not None for step in steps] == [True, False, False, True]
    file = learnt(events)
    idle = {name for name, it in file.layers.items() if not it.tensors["up"].any()}
    # SDXL reads the first text encoder before its last layer
    assert all(name.startswith("lora_te1_text_model_encoder_layers_1_") for name in idle)
    prefixes = {name.split("_")[1] for name in file.layers}
    assert prefixes == ({"unet", "te1", "te2"} if kind == "sdxl" else {"unet", "te"})
    assert any("_resnets_" in name for name in file.layers)
    assert file.metadata["modelspec.trigger_phrase"] == "zibo"
    assert file.metadata["ss_steps"] == "4"
    assert isinstance(events[-1], Done)
    assert Path(events[-1].path).parts[-2:] == ("loras", "zibo.safetensors")


def test_blocks_are_not_compiled_where_it_makes_them_slower(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_state, "compile_blocks", None)  # which is not called
    details = only(Started, run("sd1", compile_blocks=True, steps=1)).details
    assert details["compile blocks"] == "left off: on a processor it makes steps slower"
    assert "compile blocks" not in only(Started, run("sd1", steps=1)).details


def test_the_loss_falls(run: Run) -> None:
    events = run(steps=60, batch_size=4, rank=8, alpha=8, targets=("attention", "conv"))
    losses = [event.loss for event in events if isinstance(event, Step) and event.loss]
    assert len(losses) == 13  # at step 1, and the mean of five at every fifth
    assert sum(losses[-4:]) / 4 < 0.8 * sum(losses[:3]) / 3


def test_two_runs_write_the_same_numbers_whatever_else_draws(run: Run, space: Workspace) -> None:
    """Chance is used wherever it can be; the second run samples, after other dice were thrown."""
    chance = {"dropout": 0.3, "flip": True, "caption_dropout": 0.3, "train_text_encoder": True}
    file = space.loras / "zibo.safetensors"
    first = learnt(run(**chance))
    written = read_hashes(file).body
    file.unlink()
    torch.manual_seed(99)
    dice = torch.get_rng_state()
    run(**chance, sample_every=3)
    assert read_hashes(file).body == written
    assert torch.equal(torch.get_rng_state(), dice), "the process's own dice were used"
    assert not torch.equal(numbers_of(learnt(run(**chance, seed=1))), numbers_of(first))


def test_stopping_keeps_what_the_last_step_learnt(run: Run) -> None:
    stopped = run(steps=50, schedule="constant", stop_at=3)
    assert stopped[-1] == Stopped(only(Saved, stopped).path, 3, at=stopped[-1].at)
    assert learnt(stopped).metadata["ss_steps"] == "3"
    whole = run(steps=3, schedule="constant")
    assert torch.equal(numbers_of(learnt(stopped)), numbers_of(learnt(whole)))


def test_stopping_before_the_first_step_leaves_no_file(run: Run, space: Workspace) -> None:
    events = run(stop_at=0)
    assert events == [Stopped(at=events[0].at)]
    assert list(space.loras.iterdir()) == []


def test_samples_show_what_was_learnt_so_far(run: Run, tmp_path: Path) -> None:
    events = run(sample_every=2, seed=5)
    samples = [event for event in events if isinstance(event, SampleReady)]
    folder = tmp_path / "run-1" / "samples"
    names = [f"step-00000{step}-{index}.png" for step in (2, 4) for index in (0, 1)]
    assert [sample.path for sample in samples] == [str(folder / name) for name in names]
    assert [(sample.step, sample.seed) for sample in samples] == [(2, 5), (2, 6), (4, 5), (4, 6)]
    assert [sample.prompt for sample in samples[:2]] == ["zibo, picture 0", "zibo, picture 3"]
    images = [Image.open(sample.path) for sample in samples]
    assert all(image.size == (64, 64) for image in images)
    assert images[0].tobytes() != images[2].tobytes(), "the sample does not see the adapter"
    own = run(sample_every=4, sample_prompts=("a house",))
    assert only(SampleReady, own).prompt == "a house"


def test_samples_begin_from_noise_alone_where_the_training_does(run: Run) -> None:
    """One step at next to no rate changes nothing: the picture is the base model's."""
    its = {"steps": 1, "sample_every": 1, "learning_rate": 1e-12, "sample_prompts": ("a cat",)}
    ready = only(SampleReady, run("sd2", zero_terminal_snr=True, **its))
    for asked in (True, False):
        request = {"prompt": "a cat", "seed": ready.seed, "zero_terminal_snr": asked}
        [expected], _ = render(open_tiny("sd2"), ImageRequest.from_values(request))
        with Image.open(ready.path) as sample:
            assert (ImageChops.difference(sample, expected).getbbox() is None) is asked


def test_a_failing_sample_is_said_and_the_run_goes_on(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(sdlora.training.sample_images, "render", no_memory)
    events = run(sample_every=2, sample_prompts=("a house",))
    warnings = [event.message for event in events if isinstance(event, Warned)]
    assert warnings == [f"no sample of 'a house' at step {n}: out of memory" for n in (2, 4)]
    assert isinstance(events[-1], Done)


def test_every_problem_of_the_folder_is_a_warning(run: Run, pictures: Path) -> None:
    (pictures / "1.txt").unlink()
    (pictures / "2.png").write_bytes(b"")
    draw(random_scene(random.Random(9))).resize((20, 20)).save(pictures / "5.png")
    events = run(steps=1)
    said = " ".join(event.message for event in events if isinstance(event, Warned))
    assert "1.png has no caption" in said
    assert "2.png is an empty file" in said
    assert "5.png is 20 x 20, scaled up" in said
    assert only(Started, events).details["pictures"].startswith("5 of")
    # the one without a caption is learnt by the word that the others share
    assert '"zibo": 5' in learnt(events).metadata["ss_tag_frequency"]


def test_a_trigger_of_the_users_own_joins_every_caption(run: Run) -> None:
    file = learnt(run(steps=1, trigger_word="zonk"))
    assert file.metadata["modelspec.trigger_phrase"] == "zonk"
    tags = json.loads(file.metadata["ss_tag_frequency"])["zibo"]
    assert (tags["zonk"], tags["zibo"]) == (6, 6)


@pytest.mark.parametrize(
    "split", [{"batch_size": 2, "gradient_accumulation": 2}, {"gradient_checkpointing": True}]
)
def test_saving_memory_changes_nothing(run: Run, split: dict[str, Any]) -> None:
    """Accumulated batches equal a big one, a recomputed step one that was kept."""
    same = {"steps": 5, "batch_size": 4, "train_text_encoder": True, "optimizer": "adafactor"}
    whole, parts = run(**same), run(**{**same, **split})
    losses = [[e.loss for e in events if isinstance(e, Step)] for events in (whole, parts)]
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-5)
    assert losses[0][4] == pytest.approx(losses[1][4], rel=1e-3)
    assert torch.allclose(numbers_of(learnt(whole)), numbers_of(learnt(parts)), atol=2e-3)


def test_the_text_encoder_learns_at_its_own_rate_and_only_if_asked(run: Run) -> None:
    without = learnt(run(steps=2))
    assert not any(name.startswith("lora_te") for name in without.layers)
    moved = []
    for rate in (1e-4, 1e-2):
        file = learnt(run(steps=2, train_text_encoder=True, text_encoder_learning_rate=rate))
        ups = [it.tensors["up"] for name, it in file.layers.items() if name.startswith("lora_te_")]
        assert all(up.any() for up in ups)
        moved.append(max(float(up.abs().max()) for up in ups))
    assert moved[1] > 30 * moved[0]


def test_half_the_bits_in_the_base_leave_the_adapter_exact(run: Run) -> None:
    file = learnt(run(precision="bf16", train_text_encoder=True))
    assert all(it.tensors["up"].any() for it in file.layers.values())


def test_nothing_is_overwritten(run: Run, space: Workspace) -> None:
    mine = space.loras / "zibo.safetensors"
    mine.write_bytes(b"mine")
    events = run(steps=1)
    assert mine.read_bytes() == b"mine"
    assert Path(only(Saved, events).path).name == "zibo-2.safetensors"
    assert "this one is zibo-2" in only(Warned, events).message
    assert learnt(events).metadata["ss_output_name"] == "zibo-2"


@pytest.mark.parametrize(
    ("wrong", "error", "sentence"),
    [
        ({"optimizer": "adamm"}, SettingsError, "Did you mean adamw"),
        ({"data": "nowhere"}, DataError, "there is no folder nowhere"),
        ({"model": "nothing/here"}, ModelError, "nothing/here"),
    ],
)
def test_what_is_wrong_is_said_before_the_long_work(
    run: Run, wrong: dict[str, str], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        run(**wrong)


def test_a_shipped_set_goes_by_its_name(run: Run) -> None:
    events = run(data="zibo", steps=1)
    assert only(Started, events).details["pictures"] == "20 of 64 x 64 pixels"
    assert events[0] == Progress("reading pictures", at=events[0].at)


def test_the_time_left_counts_samples_too(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    pace = Pace(steps=20, sample_every=10, _at=0.0)
    pace.stepped(1)  # the first is not counted: it warms up
    now[0] = 4.0
    pace.stepped(5)  # a second each
    assert pace.seconds_left(5) == pytest.approx(15)
    now[0] = 9.0
    pace.stepped(10)
    now[0] = 13.0
    pace.sampled()  # took 4 s, and will once more
    assert pace.seconds_left(10) == pytest.approx(10 + 4)
    now[0] = 28.0
    pace.stepped(15)  # slower: three seconds each
    assert pace.seconds_left(15) == pytest.approx(5 * (0.7 * 1 + 0.3 * 3) + 4)
    assert Pace(steps=20, sample_every=0).seconds_left(20) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the processor never waits for itself")
def test_a_step_never_waits_for_the_device(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    learn = TrainState.train_step

    def strict(self: TrainState, step: int) -> Any:
        torch.cuda.set_sync_debug_mode("error" if step > 1 else "default")
        try:
            return learn(self, step)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(TrainState, "train_step", strict)
    assert isinstance(run(precision="fp32")[-1], Done)


def test_a_file_says_how_it_was_made(run: Run, pictures: Path) -> None:
    path = Path(only(Saved, run(steps=1, seed=3)).path)
    recipe = read_training_metadata(path)
    assert recipe.settings["seed"] == 3 and recipe.settings["data"] == "pictures"
    assert str(pictures) not in str(read_lora(path).metadata)
    assert recipe.versions["torch"] == torch.__version__
    prints = read_training_metadata(Path(only(Saved, run(steps=1, seed=4)).path)).pictures
    assert prints == recipe.pictures
    (pictures / "1.txt").write_text("zibo, another", encoding="utf-8")
    assert read_training_metadata(Path(only(Saved, run(steps=1)).path)).pictures != prints


def test_captions_of_another_layer_are_not_taken_from_the_cache(run: Run) -> None:
    last, earlier = (numbers_of(learnt(run(clip_skip=skip))) for skip in (1, 2))
    assert not torch.equal(last, earlier)


def test_a_run_of_epochs_ends_with_a_sample_and_a_checkpoint(run: Run) -> None:
    events = run(epochs=2, batch_size=4, sample_every=3, sample_prompts=("a house",))
    steps = [event.step for event in events if isinstance(event, Step)]
    assert steps == [1, 2, 3, 4], "six pictures in batches of four are two steps an epoch"
    assert [event.step for event in events if isinstance(event, SampleReady)] == [3, 4]
    assert [event.step for event in events if isinstance(event, Checkpoint)][-1] == 4


def test_gradients_are_not_clipped_at_zero(run: Run) -> None:
    """Adafactor aside, Adam hides a factor: what is clipped hard changes by the first moments."""
    free = numbers_of(learnt(run(max_grad_norm=0)))
    assert torch.equal(free, numbers_of(learnt(run(max_grad_norm=1000))))
