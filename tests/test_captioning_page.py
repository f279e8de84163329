"""Captions by a model on the page: asked for, seen, written, taken back; the model is real."""

from html import escape
from pathlib import Path

import pytest

import tiny_captioners
from page_client import Browser, StudioWithoutWorker
from picture_files import scene
from sdlora.jobs import run_folder
from sdlora.settings.captioning import DescribeSettings
from sdlora.worker import tasks
from sdlora.workspace import Workspace
from webui.app_state import AppState


@pytest.fixture
def studio(workspace: Path) -> AppState:
    return StudioWithoutWorker(Workspace.open(workspace))


@pytest.fixture
def mine(studio: AppState) -> Path:
    """An own set: two pictures without a caption, one with."""
    folder = studio.workspace.datasets / "mine"
    folder.mkdir(parents=True)
    for number, name in ((0, "a"), (5, "b"), (3, "c")):  # of which it says something
        scene(number).save(folder / f"{name}.png")
    (folder / "c.txt").write_text("by <b>hand</b>")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BLIP, which knows few words and says them at random."""
    folder = tmp_path_factory.mktemp("blip")
    tiny_captioners.blip(folder)
    return folder


def do_the_work(studio: AppState) -> None:
    job = studio.queue.claim("me")
    assert job and job.kind == "describe"
    studio.queue.finish(job, tasks.run_task(job.kind, job.folder, studio.workspace).status)


def ask(browser: Browser, model: Path, every: bool = False) -> None:
    browser.set("pictures-choice", "mine")
    (by_label,) = [
        i
        for i, part in browser.parts.items()
        if (part["props"].get("info") or "").startswith("Folder or Hugging Face id of the model")
    ]
    browser.values[by_label] = str(model)
    (prefix,) = [
        i
        for i, part in browser.parts.items()
        if (part["props"].get("info") or "").startswith("Text before every caption, such as")
    ]
    browser.values[prefix] = "zibo, "
    browser.set_labelled("Also for pictures that have a caption", every)
    browser.click("describe")


def texts(studio: AppState) -> dict[str, str]:
    """What the model has said, by the file it is for."""
    (newest, *_) = studio.latest("describe")
    return {Path(one.path).name: one.after for one in newest.state.captions}


def captions(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text().strip() for path in sorted(folder.glob("*.txt"))}


def test_captions_are_told_then_written_then_taken_back(
    studio: AppState, mine: Path, browser: Browser, model: Path
) -> None:
    ask(browser, model)
    assert "Waiting" in browser.value("describe-card") and browser.prop(
        "describe-cancel", "visible"
    )
    do_the_work(studio)
    browser.tick()
    said, told = browser.value("describe-card"), texts(studio)
    assert [*told] == ["a.txt", "b.txt"] and all(one.startswith("zibo, ") for one in told.values())
    assert all(escape(one) in said for one in told.values()) and "2 not written yet" in said
    assert "hand" not in said and said.count("<img") == 2
    assert captions(mine) == {"c.txt": "by <b>hand</b>"}, "nothing is written yet"
    again = Browser(studio)
    again.open()
    assert "2 not written yet" in again.value("describe-card"), "a closed tab loses nothing"
    (mine / "b.txt").write_text("meanwhile, by hand")
    browser.click("describe-write")
    assert captions(mine) == {
        "a.txt": told["a.txt"],
        "b.txt": "meanwhile, by hand",
        "c.txt": "by <b>hand</b>",
    }
    assert "1 written" in browser.value("describe-card")
    assert "1 left out" in browser.value("describe-card")
    assert not browser.prop("describe-write", "visible")
    browser.click("describe-undo")
    assert "a.txt" not in captions(mine) and browser.prop("describe-write", "visible")
    settings = DescribeSettings.load(studio.latest("describe")[0].folder / run_folder.SETTINGS_FILE)
    assert settings.data == "mine" and not settings.write


def test_a_set_of_ones_own_in_training_data_is_written_where_it_lies(
    studio: AppState, mine: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = tmp_path / "training_data"
    shelf.mkdir()
    mine = mine.rename(shelf / "mine")
    monkeypatch.setattr("sdlora.workspace.TRAINING_DATA", shelf)
    browser = Browser(studio)
    browser.open()
    ask(browser, model)
    do_the_work(studio)
    browser.tick()
    browser.click("describe-write")
    assert captions(mine) == {"c.txt": "by <b>hand</b>", **texts(studio)}


def test_what_a_model_says_is_text_and_captions_that_are_there_may_change(
    studio: AppState, mine: Path, browser: Browser, model: Path
) -> None:
    ask(browser, model, every=True)
    do_the_work(studio)
    browser.tick()
    said = browser.value("describe-card")
    after = texts(studio)["c.txt"]
    assert f"<del>by &lt;b&gt;hand&lt;/b&gt;</del> <ins>{escape(after)}</ins>" in said
    browser.click("describe-write")
    assert captions(mine)["c.txt"] == after
    browser.click("describe-undo")
    assert captions(mine) == {"c.txt": "by <b>hand</b>"}


def test_a_model_that_is_none_and_a_set_that_ships_are_told(
    studio: AppState, mine: Path, browser: Browser, model: Path
) -> None:
    ask(browser, mine / "nothing")
    assert "is neither a folder here nor a hub id" in browser.value("describe-notice")
    assert not studio.queue.busy(), "refused before the work"
    assert not browser.prop("describe-write", "visible")
    browser.set("pictures-choice", "zibo")
    browser.click("describe")
    assert "Choose a set of your own" in browser.value("describe-notice")
    assert not studio.queue.busy()
