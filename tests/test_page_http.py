"""The page over HTTP: what its handlers answer, and that it never works itself."""

import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from page_client import Browser, StudioWithoutWorker, working
from sdlora.events import Measured, RunState, Started
from sdlora.jobs import control_files, run_folder
from sdlora.jobs.kinds import MeasureSettings
from sdlora.settings.grid import GridSettings
from sdlora.settings.image_request import ImageRequest
from sdlora.settings.presets import preset, with_preset
from sdlora.settings.train import TrainSettings
from sdlora.workspace import Workspace
from webui import dataset_report, markup, server
from webui.app_state import AppState, Run
from webui.estimates import Cost, known_cost
from webui.guards import HEADERS
from webui.prompt_tags import with_tag

STEPS = preset("starter", "style")["steps"]


@pytest.fixture
def studio(workspace: Path) -> AppState:
    return StudioWithoutWorker(Workspace.open(workspace))


def test_generate_shows_the_pictures_and_what_was_not_used(
    studio: AppState, browser: Browser
) -> None:
    browser.set("prompt", "a red ball <lora:nobody:0.8>")
    browser.set_labelled("Count", 2)
    browser.set("seed", 7)
    browser.click("generate")
    assert "Waiting" in browser.value("generate-card")
    assert browser.prop("cancel", "interactive")
    with working(studio):
        pass
    browser.tick()
    card = browser.value("generate-card")
    assert "Done" in card and "There is no LoRA named &lt;nobody&gt;." in card
    assert not browser.prop("cancel", "interactive")
    shown = browser.value("pictures")
    assert shown.count("<img") == 2 and "seed 8" in shown
    link = shown.split('href="')[1].split('"')[0]
    answer = browser.http.get(link)
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert answer.headers["x-content-type-options"] == "nosniff"
    (path, _) = sorted(studio.workspace.outputs.rglob("*.png"))
    assert answer.content == path.read_bytes(), "the very file, with all its text"
    assert browser.http.get(f"{link}/small").headers["content-type"] == "image/webp"


@pytest.mark.parametrize("trouble", ["full", "gone"])
@pytest.mark.parametrize("button", ["generate", "start"])
def test_work_that_the_disk_does_not_take_is_said_on_its_tab(
    studio: AppState, browser: Browser, monkeypatch: pytest.MonkeyPatch, trouble: str, button: str
) -> None:
    browser.open()
    browser.set("prompt", "a red ball")
    if trouble == "gone":
        studio.workspace.root.rename(studio.workspace.root.with_name("moved"))
    else:

        def full(path: Path, *_: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

        monkeypatch.setattr(run_folder, "write_atomically", full)
    browser.click(button)
    notice = browser.value({"generate": "generate-notice", "start": "train-notice"}[button])
    words = "No space left on device" if trouble == "full" else "is not there any more"
    assert words in notice and 'role="alert"' in notice
    assert trouble == "full" or not studio.workspace.root.exists(), "nothing is made anew"


def test_pages_that_are_opened_are_not_remembered_without_end(browser: Browser) -> None:
    blocks = next(r.app for r in browser.http.app.routes if hasattr(r, "app")).get_blocks()
    (one,) = [d for d in browser.config["dependencies"] if d["targets"][0][1] == "load"]
    for number in range(70):
        body = {"fn_index": one["id"], "data": ["", ""], "session_hash": f"page-{number}"}
        assert browser.http.post("/gradio_api/run/predict", json=body).status_code == 200
    assert len(blocks.state_holder.session_data) <= server.MAX_SESSIONS == 64


def test_a_setting_out_of_bounds_is_one_sentence_and_no_job(
    studio: AppState, browser: Browser
) -> None:
    browser.set_labelled("Guidance", 1000)
    browser.click("generate")
    said = browser.value("generate-notice")
    assert "Guidance must be 50 or less" in said and "generate-guidance" in said, "and is marked"
    assert not studio.queue.busy()
    browser.set_labelled("Guidance", 5)
    browser.click("generate")
    assert "Queued." in browser.value("generate-notice")


def test_cancel_takes_the_request_out_of_the_queue(studio: AppState, browser: Browser) -> None:
    browser.click("generate")
    browser.click("cancel")
    assert "Stopped" in browser.value("generate-card")
    assert not studio.queue.busy()


def test_train_from_the_first_click_to_the_prompt(studio: AppState, browser: Browser) -> None:
    browser.set("pictures-choice", "neon_lighting")
    browser.fire(browser.ids["pictures-choice"], "change")
    assert browser.value("lora-name").startswith("neon_lighting")
    assert browser.value("trigger-word") == "neon lighting"
    assert browser.value("thumbs").count("<img") == 20
    assert f"20 pictures, {STEPS} steps" in browser.value("summary")
    browser.set("lora-name", "my neon")
    browser.set_labelled("Sample every N steps", 10)
    (steps,) = [
        i
        for i, p in browser.parts.items()
        if p["props"].get("label") == "Steps" and browser.values[i] == str(STEPS)
    ]
    browser.values[steps] = "20"
    browser.click("start")
    assert 'data-run="my neon"' in browser.value("run-card")
    assert browser.prop("stop", "visible")
    with working(studio):
        pass
    browser.tick()
    assert "Done" in browser.value("run-card")
    assert browser.value("samples").count("<img") == 2
    assert "<polyline" in browser.value("curve")
    assert browser.prop("use", "visible") and not browser.prop("stop", "visible")
    settings = TrainSettings.load(studio.workspace.runs / "my neon" / run_folder.SETTINGS_FILE)
    said = {"data", "name", "trigger_word", "steps", "sample_every"}
    assert settings.given().keys() == said, "what the preset says is left to the training"
    browser.set("prompt", "a red house")
    browser.click("use")
    assert browser.value("prompt") == "a red house, neon lighting, <lora:my neon:0.8>"


def test_a_page_opened_again_shows_the_run_its_address_names(studio: AppState) -> None:
    settings = {"data": "x", "steps": 3, "sample_every": 0}
    for name in ("older", "newer"):
        studio.start(TrainSettings.from_values({"name": name, **settings}))
    browser = Browser(studio)
    browser.open("?run=older")
    assert 'data-run="older"' in browser.value("run-card")
    browser.open("?run=../../etc")
    assert 'data-run="newer"' in browser.value("run-card"), "a name, never a path"
    with working(studio):
        pass
    browser.open()
    assert 'data-run="newer"' in browser.value("run-card")
    assert [name for name, _ in browser.prop("history", "choices")] == [
        "newer · done",
        "older · done",
    ]


def test_the_last_of_what_is_typed_is_always_sent(browser: Browser) -> None:
    """Not only the first letter, while the page still answers to it."""
    typed = [
        dependency
        for dependency in browser.config["dependencies"]
        if any(event in ("input", "change") for _, event in dependency["targets"])
    ]
    assert len(typed) > 5
    assert {dependency["trigger_mode"] for dependency in typed} == {"always_last"}


def test_stop_keeps_and_a_second_stop_does_not_wait(studio: AppState, browser: Browser) -> None:
    run = studio.start(TrainSettings.from_values({"name": "long", "data": "x", "steps": 5000}))
    studio.queue.claim("somebody")
    browser.open()
    assert browser.prop("stop", "value") == "Cancel", "nothing is there yet to keep"
    run_folder.append_event(run.folder, Started("training", 5000))
    browser.open()
    assert browser.prop("stop", "value") == "Stop and save"
    browser.click("stop")
    assert run_folder.stop_asked(run.folder) and not run_folder.stop_asked_now(run.folder)
    assert browser.prop("stop", "value") == "Stop now, without the last steps"
    browser.click("stop")
    # the request is taken away at the end, so that is looked for after it
    assert run_folder.stop_asked_now(run.folder) or run_folder.read(run.folder).ended


def test_a_training_is_paused_saved_and_resumed(studio: AppState, browser: Browser) -> None:
    settings = {"name": "long", "data": "x", "steps": 100_000, "sample_every": 0}
    run = studio.start(TrainSettings.from_values(settings))
    browser.open()
    assert not browser.prop("pause", "visible"), "it waits in the queue"

    def until(said: str) -> None:
        for _ in range(600):
            browser.tick()
            if said in browser.value("run-card") + browser.value("checkpoints"):
                return
            time.sleep(0.02)
        raise AssertionError(browser.value("run-card"))

    with working(studio):
        until("Step")
        assert browser.prop("pause", "visible") and not browser.prop("resume", "visible")
        browser.click("save-now")
        until("1 checkpoint")
        browser.click("pause")
        until("Paused")
    assert browser.prop("resume", "visible") and browser.prop("resume", "value") == "Resume"
    assert not browser.prop("pause", "visible") and not browser.prop("stop", "visible")
    browser.click("save-now")  # from a tab that has not seen it end
    assert "it cannot write a checkpoint now" in browser.value("run-notice")
    browser.click("resume")
    assert "Waiting" in browser.value("run-card") and not run_folder.is_requested(
        run.folder, "pause"
    )
    browser.click("stop")
    assert browser.prop("resume", "visible"), "it was taken out of the queue; no dead end"


def trained_with_checkpoints(studio: AppState, browser: Browser) -> Path:
    """A training that was asked for two checkpoints, and has ended."""
    settings = {"name": "my neon", "data": "x", "steps": 60, "sample_every": 0}
    run = studio.start(TrainSettings.from_values({**settings, "trigger_word": "neon lighting"}))
    with working(studio):
        for _ in range(2):
            while not run_folder.read(run.folder).step:
                time.sleep(0.01)
            control_files.write_request(run.folder, "save")
            while control_files.is_requested(run.folder, "save"):
                time.sleep(0.01)
    browser.open()
    return run.folder


def test_checkpoints_are_compared_and_one_is_kept(studio: AppState, browser: Browser) -> None:
    assert not browser.prop("finish", "visible")
    folder = trained_with_checkpoints(studio, browser)
    assert browser.prop("finish", "visible")
    steps = [step for _, step in browser.prop("take-step", "choices")]
    assert len(steps) == 3 and steps[-1] == 60
    assert browser.value("take-step") == 60, "nothing was held out, so it is the last"
    browser.set("take-step", steps[0])
    browser.click("before-after")
    assert "The run has drawn no samples" in browser.value("grid-notice")
    assert "name some in Prompts." in browser.value("grid-notice")
    assert not studio.queue.busy(), "refused before the work"
    browser.set_labelled("Prompts", "a house")
    browser.click("before-after")
    assert "Generating the comparison" in browser.value("grid-card")
    with working(studio):
        pass
    browser.tick()
    shown = browser.value("grid-card")
    assert shown.count("<img") == 2 and "the base model" in shown
    assert f"step {steps[0]}, weight 0.8" in shown and "Save as one picture" in shown
    browser.set_labelled("Prompts", "a red ball\na house")
    browser.set_labelled("Strengths", "0.5, 1")
    browser.click("compare")
    again = Browser(studio)
    again.open("?run=my+neon")
    assert "Waiting" in again.value("grid-card"), "it goes on without the tab"
    with working(studio):
        pass
    browser.tick()
    shown = browser.value("grid-card")
    assert shown.count("<table") == 2 and shown.count("<img") == 2 * 3 * 3
    (newest, _) = run_folder.run_folders(folder / "grids")
    assert GridSettings.load(newest / run_folder.SETTINGS_FILE).strengths == (0.5, 1)
    assert browser.http.get(shown.split('href="')[1].split('"')[0]).status_code == 200
    browser.set_labelled("Strengths", "much")
    browser.click("compare")
    assert "Strengths, entry 1, must be a number; &#x27;much&#x27; was given." in browser.value(
        "grid-notice"
    )
    browser.click("keep")
    tag = f"my neon-step-{steps[0]:06}"
    assert f"&lt;lora:{tag}:0.8&gt;" in browser.value("kept")
    kept = studio.workspace.loras / f"{tag}.safetensors"
    (source,) = (folder / "state" / f"step-{steps[0]}").glob("*.safetensors")
    assert kept.read_bytes() == source.read_bytes()
    browser.set("take-step", 60)
    browser.set("prompt", "a red house")
    browser.click("use-step")
    assert browser.value("prompt") == "a red house, neon lighting, <lora:my neon-step-000060:0.8>"
    browser.set("take-step", steps[1])
    shutil.rmtree(folder / "state" / f"step-{steps[1]}")
    browser.click("use-step")
    assert f"There is no LoRA of step {steps[1]}" in browser.value("kept")


def test_a_run_that_fell_out_of_the_queue_is_not_waited_for(studio: AppState) -> None:
    run = studio.start(ImageRequest.from_values({}))
    studio.queue.database.unlink()
    fresh = StudioWithoutWorker(studio.workspace)
    assert "not in the queue" in fresh.run(run.folder).state.error


def test_the_time_of_a_plan_is_that_of_the_last_training_like_it(studio: AppState) -> None:
    given = TrainSettings.from_values({"name": "a", "data": "x", "steps": 10, "sample_every": 0})
    settings = with_preset(given, "starter")
    assert known_cost(studio, settings) is None
    studio.start(given)
    with working(studio):
        pass
    assert known_cost(studio, settings) == Cost(pytest.approx(0.02))
    studio.start(MeasureSettings.from_values({**given.given(), "name": "m"}))
    with working(studio):
        pass
    assert known_cost(studio, settings) == Cost(0.5, (1.25, 20.125)), "it was measured since"
    for other in ({"rank": 99}, {"optimizer": "lion"}, {"offload": True}):
        assert known_cost(studio, settings.model_copy(update=other)) is None
    assert "About 2 s for 100 steps." in dataset_report.plan(
        settings.model_copy(update={"steps": 100}), 20, Cost(0.02)
    )


def test_time_and_memory_are_measured_on_the_page_and_known_from_then_on(
    studio: AppState, browser: Browser
) -> None:
    browser.set("pictures-choice", "zibo")
    browser.fire(browser.ids["pictures-choice"], "change")
    assert "time left is shown once" in browser.value("summary")
    browser.click("measure")
    assert "Measuring time and memory" in browser.value("measure-card")
    assert browser.prop("measure-cancel", "visible")
    again = Browser(studio)
    again.open()
    assert "Waiting" in again.value("measure-card"), "it goes on without the tab"
    with working(studio):
        pass
    browser.tick()
    steps = preset("starter", "style")["steps"]
    said = f"About {markup.duration(0.5 * steps)} for {steps} steps; "
    said += "peak memory 1.2 GiB of 20.1 GiB free."
    assert said in browser.value("measure-card") and not browser.prop("measure-cancel", "visible")
    browser.click("check-pictures")
    assert said in browser.value("preflight"), "known without measuring"
    browser.fire(browser.ids["pictures-choice"], "change")
    assert said in browser.value("summary")
    (run,) = studio.latest("measure")
    settings = MeasureSettings.load(run.folder / run_folder.SETTINGS_FILE)
    assert settings.data.endswith("zibo") and not run_folder.run_folders(studio.workspace.runs)
    assert browser.value("measure-card") == "", "it was of the choice before"
    browser.click("measure")
    browser.click("measure")
    assert "The same waits in the queue already." in browser.value("measure-notice")
    browser.set("trigger-word", "another word")
    browser.click("measure")
    assert browser.value("measure-notice") == "", "a start takes away what was wrong before"
    waiting = [run.state.status for run in studio.latest("measure")]
    assert waiting == ["queued", "stopped", "done"], "one at a time"
    browser.click("measure-cancel")
    assert "Stopped" in browser.value("measure-card") and not studio.queue.busy()


def test_what_does_not_fit_is_said_with_what_to_change(studio: AppState) -> None:
    folder = run_folder.new_folder(
        MeasureSettings.from_values({"name": "a", "data": "x"}), studio.workspace
    )
    run_folder.append_event(folder, Measured("cuda", 1.0, 100.0, 100, 7.6, 8.0))
    said = markup.measurement_notice(Run(folder, run_folder.read(folder)))
    assert "nearly all of the memory" in said and "gradient checkpointing" in said
    run_folder.append_event(folder, Measured("cuda", 1.0, 100.0, 100, 3.0, 8.0))
    assert "nearly" not in markup.measurement_notice(Run(folder, run_folder.read(folder)))
    killed = Run(folder, RunState(status="failed", error="the process died (signal 9)"))
    assert "when the memory is full" in markup.measurement_notice(killed)


def test_the_page_itself(studio: AppState) -> None:
    browser = Browser(studio)
    answer = browser.http.get("/")
    assert answer.status_code == 200 and HEADERS.items() <= dict(answer.headers).items()
    assert "googleapis" not in answer.text and "cdn" not in answer.text.lower()
    config = browser.config
    assert all(one["api_visibility"] == "private" for one in config["dependencies"])
    assert not any(one["queue"] for one in config["dependencies"]), "our queue, not Gradio's"
    labelled = ("textbox", "number", "slider", "dropdown", "radio", "checkbox", "file")
    for part in config["components"]:
        assert part["type"] not in labelled or part["props"]["label"], part


def test_a_dead_workers_job_wakes_another(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    def start(arguments: list[str], log: Path) -> Any:
        started.append(arguments)
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.5)"])

    monkeypatch.setattr("sdlora.jobs.supervise.start_detached", start)
    studio = AppState(Workspace.open(workspace))
    run = studio.start(ImageRequest.from_values({}))
    studio.run(run.folder)
    assert started == [["-m", "sdlora.worker.worker", "--workspace", str(workspace)]], (
        "one is starting"
    )
    deadline = time.monotonic() + 20
    while len(started) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
        studio.run(run.folder)
    assert len(started) == 2, "it died, so the next look starts another"


def test_tag_goes_into_a_prompt_once() -> None:
    assert with_tag("", "neon", ("neon lighting",), 0.8) == "neon lighting, <lora:neon:0.8>"
    once = with_tag("A cat,", "neon", ("Cat",), 0.55)
    assert once == "A cat, <lora:neon:0.55>"
    assert with_tag(once, "neon", ("cat",), 0.8) == once
    there = r"saber \(fate\), <lora:s:1>"
    assert with_tag(there, "s", (r"saber \(fate\)",), 1) == there
    assert with_tag("saber (fate), <lora:s:1>", "s", (r"saber \(fate\)",), 1).startswith("saber (f")
