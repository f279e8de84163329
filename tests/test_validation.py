"""What the figures of a training say: the best, the end of patience, the alarm."""

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import launch
from sdlora.events import (
    Done,
    Saved,
    Started,
    Validated,
    Warned,
)
from sdlora.settings.presets import preset_drift_prompts
from sdlora.settings.train import TrainSettings
from sdlora.starter.draw import caption, random_scene
from sdlora.training import validation
from sdlora.training.validation import MOST_UNRELATED, Validation, difference, unrelated_prompts
from training_runs import Run, only


def figures(losses: list[float], **settings: Any) -> tuple[Validation, list[str]]:
    """A validation that measured these, and what it warned of on the way."""
    said = TrainSettings.from_values({"data": "d", "name": "n", **settings})
    found, told = Validation(None, said, None), []  # type: ignore[arg-type]
    for number, loss in enumerate(losses):
        found.note(Validated(100 * number, loss))
        if alarm := found.alarm():
            told.append(f"{100 * number}: {alarm.message} {alarm.advice}")
    return found, told


def test_the_best_is_the_lowest_so_far() -> None:
    found, _ = figures([0.9, 0.5, 0.6, 0.5, 0.4])
    assert [one.best for one in found.figures] == [True, True, False, False, True]
    assert found.best and found.best.step == 400


def test_the_alarm_is_sounded_once_when_it_gets_worse_and_stays_so() -> None:
    _, told = figures([0.9, 0.5, 0.52, 0.54, 0.6, 0.7])
    (said,) = told
    assert said.startswith("300: ") and "after step 100 (0.5000)" in said
    assert "now (0.5400)" in said and "use the LoRA of step 100" in said
    (said,) = figures([0.5, 0.6, 0.7, 0.8])[1]
    assert (
        said.startswith("200: ") and "of the base model was better" in said and "step 0" not in said
    )
    for quiet in ([0.9, 0.5, 0.6, 0.45, 0.6], [0.9, 0.5, 0.501, 0.502, 0.503], [0.9, 0.8], [0.5]):
        assert not figures(quiet)[1]


@pytest.mark.parametrize(("patience", "over_at"), [(0, None), (1, 2), (3, 4)])
def test_patience_counts_validations_without_a_new_best(patience: int, over_at: int | None) -> None:
    losses = [0.9, 0.5, 0.6, 0.7, 0.6, 0.8]
    ends = [
        figures(losses[:count], patience=patience)[0].patience_is_over
        for count in range(1, len(losses) + 1)
    ]
    assert ends == [over_at is not None and at >= over_at for at in range(len(losses))]


def test_what_it_knows_comes_back() -> None:
    found, _ = figures([0.9, 0.5, 0.52, 0.54])
    again, _ = figures([])
    again.load_state_dict(found.state_dict())
    assert [(f.step, f.loss, f.best) for f in again.figures] == [
        (f.step, f.loss, f.best) for f in found.figures
    ]
    assert again.alarmed


def test_a_difference_of_pictures_is_a_share_of_white() -> None:
    black, white = (Image.new("RGB", (4, 4), colour) for colour in ("black", "white"))
    assert (difference(black, black), difference(black, white)) == (0.0, 1.0)
    assert difference(black, Image.new("RGB", (4, 4), (255, 0, 0))) == pytest.approx(1 / 3)


def test_what_is_held_out_is_measured_and_the_best_is_kept(run: Run, tmp_path: Path) -> None:
    events = run(
        steps=40, validation_share=0.34, validate_every=2, patience=3, learning_rate=0.3, seed=1,
        schedule="constant", drift_prompts=("a boat",), save_every=0, keep_checkpoints=1,
    )  # fmt: skip
    assert only(Started, events).details["validation pictures"] == "2 of 64 x 64 pixels"
    assert only(Started, events).details["pictures"] == "4 of 64 x 64 pixels"
    figures = [event for event in events if isinstance(event, Validated)]
    assert figures[0].step == 0 and figures[0].drift == 0.0
    losses = [figure.loss for figure in figures]
    best = max(at for at, figure in enumerate(figures) if figure.best)
    assert losses[best] == min(losses) and len(figures) == best + 1 + 3
    assert len(figures) < 21 and all(figure.drift > 0.001 for figure in figures[2:])
    told = [event.message for event in events if isinstance(event, Warned)]
    assert any("3 validations without a new best" in said for said in told)
    kept = [p.name for p in (tmp_path / "run-1" / "state").glob("step-*")]
    assert kept == ([f"step-{figures[best].step:06}"] if best else [])
    assert only(Saved, events).step == (figures[best].step or figures[-1].step)


def test_a_loss_under_fixed_noise_is_the_same_however_often_it_is_measured(run: Run) -> None:
    same = {
        "steps": 2, "validation_share": 0.34, "validate_every": 1, "learning_rate": 1e-8,
        "measure_drift": False,
    }  # fmt: skip
    figures = [e.loss for e in run(**same, dropout=0.5) if isinstance(e, Validated)]
    assert figures[0] == pytest.approx(figures[2], rel=1e-4)
    others = [e.loss for e in run(**same, dropout=0.0) if isinstance(e, Validated)]
    assert figures[0] == others[0]


def test_drift_is_measured_where_pictures_are_held_out_unless_it_is_not_wanted(run: Run) -> None:
    held = {"validation_share": 0.34, "validate_every": 2, "steps": 2, "learning_rate": 0.3}
    before, after = (e.drift for e in run(**held) if isinstance(e, Validated))
    assert before == 0.0 and after is not None and after > 0.001
    assert {e.drift for e in run(**held, measure_drift=False) if isinstance(e, Validated)} == {None}
    alone = {**held, "validation_share": 0.0}
    assert not [e for e in run(**alone) if isinstance(e, Validated)], "nothing is validated"
    asked = [e for e in run(**alone, drift_prompts=("a boat",)) if isinstance(e, Validated)]
    assert [e.loss for e in asked] == [None, None] and asked[1].drift


def test_unrelated_prompts_are_the_families_own_and_none_that_calls_the_lora() -> None:
    def prompts(family: str, trigger: str = "", validates: bool = True, **values: Any) -> Any:
        settings = TrainSettings.from_values({"data": "d", "name": "n", **values})
        return unrelated_prompts(settings, family, trigger, validates)

    for family in ("starter", "sd1", "sd2", "sdxl"):
        assert len(prompts(family)) == len({*prompts(family)}) == MOST_UNRELATED
    assert prompts("sd1")[0] == "a photo of a cat on a sofa"
    assert not any("cat" in text for text in prompts("sd1", "my cat"))
    assert not any("ball" in text for text in prompts("starter", "Ball"))
    assert prompts("sd1", validates=False) == prompts("sd1", measure_drift=False) == ()
    mine: dict[str, Any] = {"drift_prompts": ("a cat",)}
    assert prompts("sd1", "cat", validates=False, **mine) == ("a cat",)
    assert prompts("sd1", measure_drift=False, **mine) == ()


def test_the_starters_unrelated_prompts_are_of_its_world() -> None:
    rng, words = random.Random(0), set[str]()
    for _ in range(3000):
        words.update(caption(random_scene(rng), rng).replace(",", "").split())
    for text in preset_drift_prompts("starter"):
        assert {*text.replace(",", "").split()} <= words


def test_a_drift_that_cannot_be_measured_ends_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []

    def draw(family: Any, prompt: str, seed: int) -> Image.Image:
        drawn.append(prompt)
        if len(drawn) > MOST_UNRELATED:
            raise RuntimeError("no memory for that")
        return Image.new("RGB", (8, 8))

    monkeypatch.setattr(validation, "draw_plain", draw)
    events = run(steps=2, validation_share=0.34, validate_every=1)
    assert isinstance(events[-1], Done)
    assert [e.drift for e in events if isinstance(e, Validated)] == [0.0, None, None]
    told = [e.message for e in events if isinstance(e, Warned) and "drift" in e.message]
    assert told == ["how far unrelated pictures drift is not measured: no memory for that"]


@pytest.mark.parametrize(("few", "by_heart"), [(2, True), (15, False)])
def test_a_training_that_learns_by_heart_is_told_and_one_that_learns_is_not(
    few: int, by_heart: bool, run: Run, tmp_path: Path
) -> None:
    """The starter model learns a style from two pictures, and from fifteen, at a high rate."""
    pictures = sorted((launch.ROOT / "training_data" / "neon_lighting").glob("*.png"))
    for name, some in (("few", pictures[:few]), ("others", pictures[15:])):
        (tmp_path / name).mkdir()
        for file in [*some, *(picture.with_suffix(".txt") for picture in some)]:
            shutil.copy(file, tmp_path / name)
    events = run(
        model="starter", data=str(tmp_path / "few"), validation_data=str(tmp_path / "others"),
        steps=40, validate_every=10, resolution=64, rank=8, alpha=8, conv_rank=8,
        targets=("attention", "feed_forward", "conv"), learning_rate=5e-3, schedule="constant",
        loss_weighting="flat", save_every=0, measure_drift=False,
    )  # fmt: skip
    losses = [event.loss for event in events if isinstance(event, Validated)]
    assert min(losses) < 0.7 * losses[0], "the style is learnt either way"
    told = [e.message for e in events if isinstance(e, Warned) and "overfitting" in e.message]
    assert len(told) == by_heart and (losses[-1] > 1.1 * min(losses)) == by_heart
