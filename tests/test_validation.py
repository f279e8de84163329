"""What the figures of a training say: the best, the end of patience, the alarm."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdlora.data.folder import Example
from sdlora.events import (
    Saved,
    Started,
    Validated,
    Warned,
)
from sdlora.settings import TrainSettings
from sdlora.training.validation import Validation, difference, hold_out
from trainings import Run, only


def figures(losses: list[float], **settings: Any) -> tuple[Validation, list[str]]:
    """A validation that measured these, and what it warned of on the way."""
    said = TrainSettings.of({"data": "d", "name": "n", **settings})
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
    assert said.startswith("300: ") and "after step 100 (loss 0.5000)" in said
    assert "now (0.5400)" in said and "use the LoRA of step 100" in said
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


def test_a_share_is_held_out_by_the_seed_and_never_all() -> None:
    examples = [Example(str(n), str(n), (64, 64)) for n in range(20)]  # type: ignore[arg-type]
    learn, held = hold_out(examples, 0.1, seed=1)
    assert len(held) == 2 and len(learn) == 18 and not {*held} & {*learn}
    assert learn == [e for e in examples if e in learn], "their order is kept"
    assert hold_out(examples, 0.1, seed=1) == (learn, held)
    assert hold_out(examples, 0.1, seed=2)[1] != held
    assert hold_out(examples, 0.0, seed=1) == (examples, [])
    assert hold_out(examples[:2], 0.01, seed=1)[0]
    assert hold_out(examples[:1], 0.5, seed=1) == (examples[:1], [])


def test_what_it_knows_comes_back() -> None:
    found, _ = figures([0.9, 0.5, 0.52, 0.54])
    again, _ = figures([])
    again.restore(found.state())
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
        steps=40, validation_share=0.34, validate_every=2, patience=3, learning_rate=0.3,
        schedule="constant", drift_prompts=("a boat",), save_every=0, keep_checkpoints=1,
    )  # fmt: skip
    assert only(Started, events).details["held out"] == "2 of 64 x 64 pixels"
    assert only(Started, events).details["pictures"] == "4 of 64 x 64 pixels"
    figures = [event for event in events if isinstance(event, Validated)]
    assert figures[0].step == 0 and figures[0].drift == 0.0
    losses = [figure.loss for figure in figures]
    best = max(at for at, figure in enumerate(figures) if figure.best)
    assert losses[best] == min(losses) and len(figures) == best + 1 + 3
    assert all(figure.drift > 0.001 for figure in figures[2:])
    told = [event.message for event in events if isinstance(event, Warned)]
    assert any("3 validations without a new best" in said for said in told)
    kept = [p.name for p in (tmp_path / "run-1" / "state").glob("step-*")]
    assert kept == ([f"step-{figures[best].step:06}"] if best else [])
    assert only(Saved, events).step == (figures[best].step or figures[-1].step)


def test_a_loss_under_fixed_noise_is_the_same_however_often_it_is_measured(run: Run) -> None:
    same = {"steps": 2, "validation_share": 0.34, "validate_every": 1, "learning_rate": 1e-8}
    figures = [e.loss for e in run(**same, dropout=0.5) if isinstance(e, Validated)]
    assert figures[0] == pytest.approx(figures[2], rel=1e-4)
    others = [e.loss for e in run(**same, dropout=0.0) if isinstance(e, Validated)]
    assert figures[0] == others[0]


def test_a_folder_of_its_own_is_validated_with(run: Run, pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures, tmp_path / "others")
    events = run(steps=1, validation_data=str(tmp_path / "others"), validate_every=1)
    details = only(Started, events).details
    assert (details["pictures"], details["held out"]) == ("6 of 64 x 64 pixels",) * 2
