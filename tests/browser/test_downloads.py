"""A model is downloaded from the page, stopped, gone on with, and chosen without a reload."""

import os
import threading
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

import tiny_checkpoints as tiny
from chromium_page import PATIENT_MS, site, tab
from model_server import ModelServer

pytestmark = pytest.mark.browser
SHOTS = os.environ.get("MODEL_SHOTS", "")
WIDTH = 390  # that of a phone, where long names have to fit
NAME = "a_checkpoint_with_a_very_long_name_" * 2 + "v2"


def shot(page: Page, name: str) -> None:
    if SHOTS:
        page.wait_for_timeout(600)
        page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)


def test_from_the_address_to_the_choice(
    browser: Browser, workspace: Path, server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    content = tiny.checkpoint("sd1").read_bytes()
    server.add_repository("me/ink", {f"{NAME}.safetensors": content})
    stopped = threading.Event()
    pause_s = 20 * 8192 / len(content)  # so slow that it comes in 20 s
    server.on_chunk = lambda at: None if stopped.wait(pause_s) else None
    with site(workspace) as address, tab(browser, address, width=WIDTH) as page:
        page.get_by_role("button", name="Download a model").first.click()
        source = page.locator("#generate-download-source :is(input, textarea)")
        source.fill("no such thing")
        page.locator("#generate-download-start").click()
        notice = page.locator("#generate-download-notice")
        expect(notice.get_by_role("alert")).to_contain_text("names nothing to download")
        source.fill("me/ink")
        source.press("Enter")
        card = page.locator("#generate-downloads .run")
        expect(card).to_contain_text("Downloading", timeout=PATIENT_MS)
        expect(notice.get_by_role("alert")).to_have_count(0)
        expect(source).to_have_value("")
        expect(card.locator(".line")).to_contain_text(" MiB of ")
        shot(page, "download-comes")
        card.get_by_role("button", name="Stop").click()
        expect(card.locator(".pill")).to_have_text("Stopped", timeout=PATIENT_MS)
        stopped.set()
        shot(page, "download-stopped")
        card.get_by_role("button", name="Go on").click()
        use = page.locator("#generate-downloads").get_by_role("button", name="Use it")
        use.click(timeout=PATIENT_MS)
        expect(page.locator("#generate-model input")).to_have_value(NAME)
        expect(page.locator("#generate-model-about")).to_contain_text("VAE inside")
        page.get_by_role("button", name="Choose a model by its picture").first.click()
        cards = page.locator("#generate-model-cards")
        expect(cards.get_by_role("button", name=NAME)).to_be_visible()
        shot(page, "download-done")
        page.get_by_role("tab", name="Train").click()
        page.locator("#train-model input").click()
        expect(page.get_by_role("option", name=NAME)).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= WIDTH
