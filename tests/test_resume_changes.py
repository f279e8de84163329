"""A run is resumed with more steps, or with its pictures in another place, and nothing else."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sdlora.errors import RunError, SettingsError
from sdlora.events import Done, Resumed, Saved, Step
from sdlora.jobs import run_folder
from sdlora.jobs.queue import Queue
from sdlora.jobs.resume import RESUME_FILE, apply_changes, write_changes
from sdlora.settings.train import TrainSettings
from sdlora.training.train import train
from sdlora.workspace import Workspace
from training_runs import Run, learnt, numbers_of, only


@pytest.fixture
def finished(run: Run) -> Path:
    """The folder of a finished run of 4 steps."""
    folder = run.space.runs / "zibo"
    settings = run.settings(schedule="constant", save_every=2)
    run_folder.reserve(folder)
    (folder / run_folder.SETTINGS_FILE).write_text(settings.to_json(), encoding="utf-8")
    list(run_folder.record(train(settings, run.space, folder), folder))
    (folder / run_folder.PID_FILE).unlink()
    return folder


def again(folder: Path, space: Workspace, **changes: Any) -> list[Any]:
    run_folder.reopen(folder, Queue(space.database), changes)
    settings = TrainSettings.load(folder / run_folder.SETTINGS_FILE)
    return list(train(settings, space, folder))


def test_a_finished_run_takes_more_steps_and_ends_as_one_of_that_length(
    finished: Path, run: Run
) -> None:
    whole = run(schedule="constant", save_every=2, steps=6, name="whole")
    events = again(finished, run.space, steps=6)
    assert only(Resumed, events).step == 4
    assert [event.step for event in events if isinstance(event, Step)] == [5, 6]
    assert numbers_of(learnt(events)).equal(numbers_of(learnt(whole)))


def test_a_finished_run_without_more_steps_says_how_to_ask_for_them(
    finished: Path, run: Run
) -> None:
    queue = Queue(run.space.database)
    with pytest.raises(RunError, match="is finished.*--steps"):
        run_folder.reopen(finished, queue)
    with pytest.raises(RunError, match="has taken 4 steps already"):
        run_folder.reopen(finished, queue, {"steps": 4})
    assert not (finished / RESUME_FILE).exists()


def test_pictures_that_were_moved_are_found_where_they_are_now(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    before, after = tmp_path / "before", tmp_path / "after"
    shutil.copytree(run.pictures, before)
    run(folder=folder, data=str(before), stop_at=2)
    before.rename(after)
    settings = run.settings(data=str(before))
    write_changes(folder, settings, {"data": str(after)})
    events = list(train(settings, run.space, folder))
    assert only(Resumed, events).step == 2
    assert any(isinstance(event, Done) for event in events)
    assert only(Saved, events).step == 4


@pytest.mark.parametrize("name", ["rank", "learning_rate", "seed", "resolution"])
def test_what_would_make_another_lora_cannot_change(name: str, run: Run, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=f"{name} cannot change") as caught:
        write_changes(tmp_path, run.settings(), {name: 1, "steps": 9})
    assert set(caught.value.fields) == {name}
    assert not (tmp_path / RESUME_FILE).exists()


def test_changes_add_up_and_the_newest_wins(run: Run, tmp_path: Path) -> None:
    settings = run.settings(epochs=3)
    write_changes(tmp_path, settings, {"steps": 9, "patience": 2})
    write_changes(tmp_path, settings, {"steps": 12})
    merged = apply_changes(settings.model_dump(mode="json"), tmp_path)
    assert (merged.steps, merged.patience, merged.epochs) == (12, 2, None)


@pytest.mark.parametrize("text", ["{", "[]", "7", "\ufeff{"])
def test_a_damaged_file_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / RESUME_FILE).write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match=RESUME_FILE):
        apply_changes({}, tmp_path)


def test_values_out_of_bounds_are_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="steps must be 1 or more"):
        write_changes(tmp_path, run.settings(), {"steps": 0})
    write_changes(tmp_path, run.settings(), {"steps": 10})
    assert json.loads((tmp_path / RESUME_FILE).read_text("utf-8")) == {"steps": 10}


def test_a_run_of_before_there_was_a_choice_keeps_its_axis(run: Run, tmp_path: Path) -> None:
    settings = run.settings(adapter="dora").model_dump(mode="json")
    del settings["dora_axis"]
    assert apply_changes(settings, tmp_path).dora_axis == "output"
