"""The first answer to a browser shows the training that goes on, before any JavaScript runs."""

import os
from pathlib import Path

from page_client import Browser, StudioWithoutWorker
from sdlora.events import Done, Started, Step
from sdlora.jobs import run_folder
from sdlora.jobs.processes import identity
from sdlora.settings.train import TrainSettings
from sdlora.workspace import Workspace


def test_the_training_that_goes_on_is_in_the_first_answer(workspace: Path) -> None:
    studio = StudioWithoutWorker(Workspace.open(workspace))
    browser = Browser(studio)
    assert 'id="opening"' in browser.http.get("/").text
    assert "data-run=" not in browser.http.get("/").text
    settings = TrainSettings(data="zibo", name="my robot")
    folder = run_folder.start(settings, studio.workspace, studio.queue)
    studio.queue.claim(identity(os.getpid()) or "")
    run_folder.append_event(folder, Started("training", 800))
    run_folder.append_event(folder, Step(120, 800, seconds_left=60.0))
    answer = browser.http.get("/")
    assert 'data-run="my robot"' in answer.text and "Step 120 of 800" in answer.text
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert answer.text.index("data-run") < answer.text.index("<gradio-app")
    run_folder.append_event(folder, Done("x.safetensors", 9.0))
    assert "data-run=" not in browser.http.get("/").text
    assert 'data-run="my robot"' in browser.http.get("/?run=my%20robot").text


def test_nothing_but_the_page_is_changed_and_nothing_asked_for_is_trusted(workspace: Path) -> None:
    browser = Browser(StudioWithoutWorker(Workspace.open(workspace)))
    assert "opening" not in browser.http.get("/theme.css").text
    evil = browser.http.get("/?run=%3Cscript%3Ealert(1)%3C/script%3E&run=..%2F..%2Fetc")
    assert evil.status_code == 200 and "alert(1)" not in evil.text.partition("<gradio-app")[0]
