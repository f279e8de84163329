"""Beside Resume: more steps for a finished training, other pictures for one whose own are gone."""

from pathlib import Path

import pytest

from page_client import Browser, StudioWithoutWorker
from sdlora.jobs import run_folder
from sdlora.jobs.resume import read_changes
from sdlora.settings.train import TrainSettings
from sdlora.workspace import Workspace
from test_page_http import trained_with_checkpoints
from webui.app_state import AppState


@pytest.fixture
def studio(workspace: Path) -> AppState:
    return StudioWithoutWorker(Workspace.open(workspace))


def test_a_finished_training_takes_more_steps_where_its_pictures_are_now(
    studio: AppState, browser: Browser, pictures: Path
) -> None:
    folder = trained_with_checkpoints(studio, browser)
    assert not browser.prop("resume", "visible") and browser.value("steps-in-all") == "120"
    assert browser.prop("resume-pictures", "visible"), "its pictures, x, are gone"
    for typed, answer in (("", "a whole number"), ("6.5", "6.5"), ("60", "60 steps already")):
        browser.set("steps-in-all", typed)
        browser.click("more-steps")
        assert answer in browser.value("run-notice")
    browser.set("steps-in-all", "70")
    browser.set("resume-pictures", "zibo")
    browser.click("more-steps")
    assert "Waiting" in browser.value("run-card")
    changes = read_changes(folder)
    assert changes["steps"] == 70 and Path(changes["data"]).name == "zibo"
    assert not browser.prop("resume-pictures", "visible") and browser.value("steps-in-all") == ""


def test_a_training_that_lost_its_pictures_resumes_with_a_set_that_is_there(
    studio: AppState, browser: Browser, pictures: Path
) -> None:
    gone = studio.start(TrainSettings.from_values({"name": "gone", "data": "x", "steps": 9}))
    whole = studio.start(
        TrainSettings.from_values({"name": "whole", "data": str(pictures), "steps": 9})
    )
    for run in (gone, whole):
        run_folder.cancel(run.folder, studio.queue)
    browser.open("?run=whole")
    assert browser.prop("resume", "visible") and not browser.prop("resume-pictures", "visible")
    browser.open("?run=gone")
    assert browser.prop("resume-pictures", "visible")
    assert browser.prop("resume-pictures", "info") == (
        "x is not there any more; choose where its pictures are now."
    )
    browser.set("resume-pictures", "neon_lighting")
    browser.click("resume")
    assert Path(read_changes(gone.folder)["data"]).name == "neon_lighting"
