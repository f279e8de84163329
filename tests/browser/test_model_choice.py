"""A base model is chosen by picture and name, seen for what it is, and draws."""

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

import tiny_checkpoints as tiny
from chromium_page import PATIENT_MS, site, tab

pytestmark = pytest.mark.browser
SHOTS = os.environ.get("MODEL_SHOTS", "")


@pytest.fixture
def models(workspace: Path) -> Path:
    folder = workspace / "models"
    folder.mkdir(parents=True)
    whole = tiny.checkpoint("sd1", vocabulary=49408)
    shutil.copy(whole, folder / "animerge.safetensors")
    Image.new("RGB", (64, 64), (220, 120, 60)).save(folder / "animerge.preview.png")
    shutil.copy(tiny.checkpoint("sdxl"), folder / "pony_vpred.safetensors")
    (folder / "old.ckpt").write_bytes(b"PK\x03\x04")
    return folder


def shot(page: Page, name: str) -> None:
    if SHOTS:
        page.wait_for_timeout(600)
        page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)


def test_a_checkpoint_is_chosen_and_draws(browser: Browser, workspace: Path, models: Path) -> None:
    with site(workspace) as address, tab(browser, address) as page:
        about = page.locator("#generate-model-about")
        expect(about).to_contain_text("starter")
        page.get_by_role("button", name="Choose a model by its picture").first.click()
        cards = page.locator("#generate-model-cards")
        card = cards.get_by_role("button", name="animerge")
        expect(card.locator("img")).to_be_visible()
        expect(cards.locator("summary")).to_have_text("1 model cannot be used")
        cards.locator("summary").click()
        expect(cards.locator("dd")).to_contain_text("is a pickle")
        card.focus()
        page.keyboard.press("Enter")
        expect(page.locator("#generate-model input")).to_have_value("animerge")
        expect(about).to_contain_text("predicts noise (epsilon) (usual for its family)")
        expect(about).to_contain_text("VAE inside")
        expect(about.locator("img")).to_be_visible()
        expect(card).to_have_attribute("aria-pressed", "true")
        shot(page, "chosen")
        box = page.locator("#generate-model input")
        box.click()
        expect(page.get_by_role("option", name="old")).to_have_count(0)
        box.press("Control+a")
        box.press_sequentially("pon")
        box.press("Escape")
        expect(box).to_have_value("animerge")
        expect(about).to_contain_text("animerge")
        page.locator("#prompt textarea").fill("a red house")
        page.get_by_role("button", name="More settings").click()
        for name, value in (("steps", "2"), ("width", "64"), ("height", "64"), ("seed", "1")):
            place = "#seed" if name == "seed" else f"#generate-{name}"
            page.locator(f"{place} :is(input, textarea)").fill(value)
        page.locator("#generate").click()
        notice = page.locator("#generate-notice .notice")
        expect(notice).to_contain_text("Queued")
        expect(page.locator("#pictures img").first).to_be_visible(timeout=PATIENT_MS)
        expect(page.locator("#generate-card .pill")).to_have_text("Done")
        expect(notice).to_have_count(0)
        page.locator("#seed :is(input, textarea)").fill("some")
        page.locator("#generate").click()
        expect(page.locator("#seed")).to_have_attribute("data-wrong", "")
        expect(notice).to_contain_text("1 field needs attention")
        page.locator("#generate-reset").click()
        expect(notice).to_have_count(0)
        expect(page.locator("[data-wrong]")).to_have_count(0)
    (picture,) = (workspace / "outputs").rglob("*.png")
    with Image.open(picture) as image:
        assert image.size == (64, 64) and "Model: animerge" in image.info["parameters"]


def test_on_a_phone_by_name_and_for_training(
    browser: Browser, workspace: Path, models: Path
) -> None:
    with site(workspace) as address, tab(browser, address, width=390) as page:
        box = page.locator("#generate-model input")
        box.fill("pony_vprd")
        box.press("Enter")
        about = page.locator("#generate-model-about")
        expect(about.get_by_role("alert")).to_contain_text("Did you mean pony_vpred?")
        box.fill("old")
        box.press("Enter")
        expect(about.get_by_role("alert")).to_contain_text("is a pickle")
        page.get_by_role("tab", name="Train").click()
        page.get_by_role("button", name="Choose a model by its picture").last.click()
        cards = page.locator("#train-model-cards")
        page.locator("#train-model-search :is(input, textarea)").fill("xl")
        expect(cards.locator(".chip")).to_have_count(1)
        cards.get_by_role("button", name="pony_vpred").click()
        expect(page.locator("#train-model input")).to_have_value("pony_vpred")
        about = page.locator("#train-model-about")
        expect(about).to_contain_text("predicts v (by its name)")
        width = page.evaluate("document.documentElement.scrollWidth")
        shot(page, "phone")
        assert width <= 390
