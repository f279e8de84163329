"""Downloads on the page: asked for, shown in every tab, stopped, gone on with and used."""

import shutil
from pathlib import Path

import pytest

import tiny_checkpoints as tiny
from downloader import CONTENT
from model_server import ModelServer, safetensors_bytes
from page_client import Browser, StudioWithoutWorker
from sdlora.jobs import run_folder
from sdlora.jobs.kinds import WorkerRole
from sdlora.worker.worker import Worker
from sdlora.workspace import Workspace


class StudioWithoutDownloader(StudioWithoutWorker):
    def _wake_role(self, role: WorkerRole) -> None:
        """The test runs the downloader."""


@pytest.fixture
def studio(
    workspace: Path, server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> StudioWithoutWorker:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    return StudioWithoutDownloader(Workspace.open(workspace))


def ask(browser: Browser, source: str) -> str:
    """The notice after a download is asked for in the Generate tab."""
    browser.set("generate-download-source", source)
    browser.click("generate-download-start")
    return str(browser.value("generate-download-notice"))


def press(browser: Browser, place: str, value: str) -> None:
    """What the page's script does when a button of a card is pressed."""
    browser.set(f"{place}-download-asked", f"1 {value}")
    browser.fire(browser.ids[f"{place}-download-asked"], "change")


def work(studio: StudioWithoutWorker) -> None:
    assert Worker(studio.workspace, idle_s=0.1, poll_s=0.02, role="downloader").run()


def test_what_is_no_source_is_told_at_once(studio: StudioWithoutWorker) -> None:
    browser = Browser(studio)
    for source, sentence in (
        ("  ", "Name what to download"),
        ("no such thing", "names nothing to download"),
        ("https://example.org/old.ckpt", "is no model that can be downloaded"),
        ("https://me:secret@example.org/a.safetensors", "a password"),
    ):
        assert sentence in ask(browser, source)
    assert not studio.latest("download") and "run" not in browser.value("generate-downloads")


def test_a_model_comes_and_is_on_offer(studio: StudioWithoutWorker, server: ModelServer) -> None:
    content = tiny.checkpoint("sd1").read_bytes()
    server.add_repository("me/ink", {"ink.safetensors": content})
    browser = Browser(studio)
    assert ask(browser, "me/ink") == "" and browser.value("generate-download-source") == ""
    for place in ("generate", "train"):
        assert 'data-live="true"' in browser.value(f"{place}-downloads"), "in every tab"
    assert "waits in the queue" in ask(browser, "me/ink"), "the second click is no second download"
    work(studio)
    browser.tick()
    for place in ("generate", "train"):
        cards = browser.value(f"{place}-downloads")
        assert f'data-send="{place}-model-clicked" data-value="ink"' in cards and "Use it" in cards
    assert browser.value("downloads-done"), "whose change lists the models anew"
    reopened = Browser(studio)
    reopened.open()
    assert "Use it" in reopened.value("generate-downloads"), "after a reload, too"
    shutil.rmtree(studio.workspace.models)
    reopened.open()
    assert "not there any more" in reopened.value("generate-downloads")


def test_a_download_is_stopped_and_goes_on(
    studio: StudioWithoutWorker, server: ModelServer
) -> None:
    server.add_repository("me/ink", {"ink.safetensors": CONTENT})
    browser = Browser(studio)
    ask(browser, "me/ink")
    (run,) = studio.latest("download")
    press(browser, "train", f"stop {studio.key(run)}")
    cards = browser.value("generate-downloads")
    assert "Stopped" in cards and "What has come stays" in cards and "Go on" in cards
    press(browser, "train", f"again {studio.key(run)}")
    assert len(studio.latest("download")) == 2
    work(studio)
    browser.tick()
    cards = browser.value("train-downloads")
    assert "Saved as ink.safetensors" in cards and "Use it" not in cards
    assert "model-problem" in cards, "it is whole, and no model: said where it was asked for"
    press(browser, "train", "again nothing")
    assert "not there any more" in browser.value("train-download-notice")


def test_a_failed_one_says_why(studio: StudioWithoutWorker, server: ModelServer) -> None:
    server.add_civitai(5, safetensors_bytes(seed=2))  # a LoRA
    browser = Browser(studio)
    ask(browser, "me/none")
    ask(browser, "civitai:5")
    work(studio)
    browser.tick()
    cards = browser.value("generate-downloads")
    assert "there is no me/none" in cards.lower() and "Try again" in cards
    assert "Saved as ink.safetensors in loras/" in cards
    run = studio.latest("download")[0]
    (run.folder / run_folder.SETTINGS_FILE).write_text("{")
    browser.open()
    assert run.name in browser.value("generate-downloads")
