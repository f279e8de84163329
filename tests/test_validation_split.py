"""What is validated with is not what is learnt, nor anything that looks like it."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from picture_files import scene
from sdlora.data.folder import Example, scan_folder
from sdlora.data.validation_split import Split, exclude_duplicates, hold_out
from sdlora.events import Started, Validated, Warned
from training_runs import Run, only

Make = Callable[..., list[Example]]
HERE = Path("set")


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Examples of a folder of scenes; `copies` of the first of them are the same file again, and
    `likes` the next, smaller and as JPEG."""

    def examples(count: int, copies: int = 0, likes: int = 0, name: str = "set") -> list[Example]:
        folder = tmp_path / name
        folder.mkdir()
        for number in range(count):
            scene(number).save(folder / f"{number:02}.png")
        for number in range(copies):
            shutil.copy(folder / f"{number:02}.png", folder / f"{number:02}-again.png")
        for number in range(copies, copies + likes):
            scene(number, (90, 60)).save(folder / f"{number:02}-like.jpg", quality=80)
        return scan_folder(folder)[0]

    return examples


def names(examples: list[Example]) -> set[str]:
    return {example.image.stem for example in examples}


def told(split: Split) -> str:
    return " | ".join(problem.message for problem in split.problems)


def test_a_share_is_held_out_by_the_seed_and_never_all(make: Make) -> None:
    examples = make(20)
    split = hold_out(examples, 0.1, 1, HERE)
    learnt, held = split.learnt, split.held_out
    assert len(held) == 2 and len(learnt) == 18 and not names(held) & names(learnt)
    assert learnt == [e for e in examples if e in learnt], "their order is kept"
    again = hold_out(examples, 0.1, 1, HERE)
    assert (again.learnt, again.held_out) == (learnt, held)
    assert hold_out(examples, 0.1, 2, HERE).held_out != held
    assert hold_out(examples, 0.0, 1, HERE) == Split(examples)
    assert not hold_out(examples, 0.2, 1, HERE).problems
    assert len(hold_out(examples[:2], 0.01, 1, HERE).learnt) == 1
    alone = hold_out(examples[:1], 0.5, 1, HERE)
    assert alone.learnt == examples[:1]
    assert "holds out none of 1, at validation_share = 0.5" in told(alone)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_twins_and_near_duplicates_lie_on_one_side(share: float, make: Make) -> None:
    examples = make(12, copies=3, likes=3)
    for seed in range(30):
        split = hold_out(examples, share, seed, HERE)
        held, learnt = names(split.held_out), names(split.learnt)
        assert len(held) + len(learnt) == 18 and 0 < len(held) <= round(share * 18)
        assert not {name[:2] for name in held} & {name[:2] for name in learnt}
        assert "has 12 pictures that are the same as others or look alike" in told(split)


def test_repeats_move_together_and_count_once_where_they_are_measured(make: Make) -> None:
    examples = [replace(example, repeats=5) for example in make(6)]
    split = hold_out(examples, 0.5, 0, HERE)
    assert {e.repeats for e in split.held_out} == {1} and {e.repeats for e in split.learnt} == {5}


def test_what_looks_like_a_regularisation_picture_is_never_held_out(make: Make) -> None:
    examples = make(4, copies=1, likes=1)
    kept = [replace(e, regularisation=e.image.stem in ("00-again", "01-like")) for e in examples]
    for seed in range(20):
        split = hold_out(kept, 0.5, seed, HERE)
        assert names(split.held_out) == {"02", "03"}, "of the others, half"
        assert "holds out 2 of 4 pictures" in told(split)


def test_too_few_and_all_alike_is_said(make: Make) -> None:
    assert "holds out 1 of 5 pictures: a loss on so few says little" in told(
        hold_out(make(5), 0.1, 0, HERE)
    )
    twins = make(1, copies=1, name="twins")
    split = hold_out(twins, 0.5, 0, HERE)
    assert not split.held_out and len(split.learnt) == 2
    assert "too few, or all alike" in told(split)
    pairs = make(2, copies=2, name="pairs")
    assert len(hold_out(pairs, 0.1, 0, HERE).held_out) == 2, "the smallest group that there is"


def test_a_folder_to_validate_with_is_freed_of_what_is_learnt(make: Make) -> None:
    learnt, others = make(4), make(9, likes=2, name="others")
    split = exclude_duplicates(learnt, others, HERE)
    assert names(split.held_out) == {f"{number:02}" for number in range(4, 9)}
    assert split.learnt == learnt
    assert "has 6 of its 11 pictures among those that are learnt" in told(split)
    assert "00-like.jpg" in told(split)
    assert not exclude_duplicates(learnt, split.held_out, HERE).problems


def test_a_training_validates_with_that_folder_alone(run: Run, tmp_path: Path) -> None:
    """Neither with further folders of what is learnt, nor with the pictures it learns from."""
    for name, seeds in (("others", range(100, 104)), ("more", range(200, 203))):
        (tmp_path / name).mkdir()
        for seed in seeds:
            scene(seed, (64, 64)).save(tmp_path / name / f"{seed}.png")
    asked: dict[str, Any] = {
        "validation_data": str(tmp_path / "others"), "more_data": (str(tmp_path / "more"),),
        "steps": 1, "validate_every": 1, "measure_drift": False,
    }  # fmt: skip
    details = only(Started, run(**asked)).details
    assert details["pictures"] == "9 of 64 x 64 pixels"
    assert details["validation pictures"] == "4 of 64 x 64 pixels"
    shutil.copytree(run.pictures, tmp_path / "others", dirs_exist_ok=True)
    events = run(**asked)
    assert only(Started, events).details["validation pictures"] == "4 of 64 x 64 pixels"
    warned = [event.message for event in events if isinstance(event, Warned)]
    assert any("others has 6 of its 10 pictures among those" in said for said in warned)


def test_a_figure_does_not_hang_on_how_many_stand_together(run: Run) -> None:
    same = {"steps": 1, "validation_share": 0.5, "validate_every": 1, "measure_drift": False}
    first = [
        next(e.loss for e in run(**same, batch_size=size) if isinstance(e, Validated))
        for size in (1, 2, 3)
    ]
    assert first == pytest.approx([first[0]] * 3, rel=1e-5)
