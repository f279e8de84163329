"""The whole loop in a real browser: train, close the tab, come back, use it, generate.

With the stand-ins of `fakes` it is about the page alone; with the starter model everything is real.
Screenshots go to the test's own folder, or to $SDLORA_SCREENSHOTS.
"""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect
from safetensors.numpy import save_file

from chromium_page import PATIENT_MS, SCREENSHOTS, site, tab
from sdlora.workspace import STARTER_MODEL

pytestmark = pytest.mark.browser
HAS_MODEL = (STARTER_MODEL / "model_index.json").exists()


def card(page: Page, place: str, status: str) -> Locator:
    return page.locator(f"#{place} .pill.{status}")


def start_training(page: Page, name: str, steps: int, sample_every: int) -> None:
    page.get_by_role("tab", name="Train").click()
    page.locator("#pictures-choice input").click()
    page.get_by_role("option", name="neon_lighting").click()
    expect(page.locator("#trigger-word textarea, #trigger-word input")).to_have_value(
        "neon lighting"
    )
    expect(page.locator("#thumbs img")).to_have_count(20)
    page.locator("#lora-name textarea, #lora-name input").fill(name)
    page.get_by_role("button", name="Advanced").click()
    page.locator("#train-steps input").fill(str(steps))
    find = page.locator("#advanced").get_by_role("searchbox")
    find.fill("sample images none")
    expect(page.locator("#train-steps")).to_be_hidden()
    page.locator("#train-sample-every input").fill(str(sample_every))
    find.fill("")
    page.get_by_role("button", name="Start training").click()


def whole_loop(
    browser: Browser, address: str, steps: int, sample_every: int, picture_steps: int = 4
) -> None:
    with tab(browser, address) as page:
        start_training(page, "my neon", steps, sample_every)
        expect(card(page, "run-card", "running")).to_be_visible(timeout=PATIENT_MS)
        expect(page.locator("#run-card .line")).to_contain_text("Step", timeout=PATIENT_MS)
        expect(page).to_have_url(re.compile(r"\?run=my"))
        again = page.url
    with tab(browser, again) as page:
        expect(page.locator('#run-card [data-run="my neon"]')).to_be_visible()
        expect(card(page, "run-card", "done")).to_be_visible(timeout=PATIENT_MS)
        expect(page.locator("#samples img").first).to_be_visible()
        expect(page.locator("#curve polyline").first).to_be_attached()
        page.get_by_role("button", name="Use this LoRA").click()
        prompt = page.locator("#prompt textarea")
        expect(prompt).to_be_visible()
        expect(prompt).to_have_value("neon lighting, <lora:my neon:0.8>")
        prompt.fill("a red ball, neon lighting, <lora:my neon:0.8>")
        page.locator("#generate-steps input").fill(str(picture_steps))
        prompt.press("Control+Enter")
        expect(card(page, "generate-card", "done")).to_be_visible(timeout=PATIENT_MS)
        picture = page.locator("#pictures img")
        expect(picture).to_have_count(1)
        assert picture.evaluate("image => image.complete && image.naturalWidth > 0")


def test_whole_loop_with_stand_ins(browser: Browser, fake_site: str) -> None:
    whole_loop(browser, fake_site, steps=100, sample_every=25)


@pytest.mark.timeout(0 if SCREENSHOTS else 900)
@pytest.mark.skipif(not HAS_MODEL, reason="the starter model is not in this checkout")
def test_whole_loop_for_real(browser: Browser, workspace: Path, tmp_path: Path) -> None:
    """With $SDLORA_SCREENSHOTS the training is long enough to see, and the pictures are for docs/:
    `SDLORA_SCREENSHOTS=docs python -m pytest tests/browser -k for_real -n 0`."""
    steps, picture_steps = (180, 20) if SCREENSHOTS else (12, 4)
    with site(workspace) as address:
        whole_loop(browser, address, steps, steps // 2, picture_steps)
        screenshots(browser, address, Path(SCREENSHOTS) if SCREENSHOTS else tmp_path)
    assert (workspace / "loras" / "my neon.safetensors").exists()
    (picture,) = (workspace / "outputs").rglob("*.png")
    assert b"<lora:my neon:0.8>" in picture.read_bytes()


def screenshots(browser: Browser, address: str, folder: Path) -> None:
    for scheme in ("light", "dark"):
        with tab(browser, address, color_scheme=scheme) as page:
            for name in ("Generate", "Train"):
                page.get_by_role("tab", name=name).click()
                for use in page.locator("#pictures [data-use]:visible").all()[:1]:
                    use.click()
                    expect(page.locator("#counter p")).to_be_visible()
                expect(page.locator("img:visible").first).to_be_visible()
                page.wait_for_function(
                    "[...document.images].every((image) => image.complete)", timeout=PATIENT_MS
                )
                page.wait_for_timeout(500)  # what fades in
                path = folder / f"{name.lower()}-{scheme}.png"
                page.screenshot(path=path, full_page=True)
                assert path.stat().st_size > 10_000


def test_a_training_is_back_on_screen_at_once(browser: Browser, shared_site: str) -> None:
    with tab(browser, shared_site) as page:
        start_training(page, "long", steps=5000, sample_every=0)
        answer, start = page.locator("#train-notice .notice"), page.locator("#start")
        expect(answer).to_contain_text("Queued as long")
        below = (answer.bounding_box() or {})["y"] - (start.bounding_box() or {})["y"]
        assert 0 < below < 120, "beside the button"
        expect(card(page, "run-card", "running")).to_be_visible()
    # How fast it is back is measured by benchmarks/back_on_screen.py.
    with tab(browser, shared_site) as page:
        expect(page.locator('#run-card [data-run="long"]')).to_be_visible()
    with tab(browser, shared_site) as page:
        page.get_by_role("button", name="Stop and save").click()
        expect(card(page, "run-card", "stopped")).to_be_visible()


def test_a_training_is_measured_then_compared_and_taken(browser: Browser, shared_site: str) -> None:
    with tab(browser, shared_site) as page:
        page.get_by_role("tab", name="Train").click()
        page.get_by_role("button", name="Measure time and memory").click()
        expect(page.locator("#measure-card .notice")).to_contain_text(
            "1.2 GiB of 20.1 GiB free", timeout=PATIENT_MS
        )
        expect(page.locator("#summary")).to_contain_text(
            "1.2 GiB of 20.1 GiB free", timeout=PATIENT_MS
        )
        start_training(page, "my neon", steps=100, sample_every=50)
        page.get_by_role("button", name="Save now").click()
        expect(card(page, "run-card", "done")).to_be_visible(timeout=PATIENT_MS)
        page.get_by_role("button", name="Before and after").click()
        expect(page.locator("#grid-card .pair img")).to_have_count(2, timeout=PATIENT_MS)
        page.get_by_role("button", name="Compare checkpoints").click()
        expect(page.locator("#grid-card .cells img")).to_have_count(2 * 4, timeout=PATIENT_MS)
        page.locator("#grid-card .cells a").last.click()
        expect(page.get_by_role("dialog")).to_contain_text("step 100, weight 1")
        page.keyboard.press("Escape")
        page.locator("#take-step input").click()
        page.get_by_role("option").first.click()
        page.get_by_role("button", name="Use this checkpoint").click()
        tag = re.compile(r"^neon lighting, <lora:my neon-step-0000\d\d:0\.8>$")
        expect(page.locator("#prompt textarea")).to_have_value(tag)


def test_captions_that_change_are_looked_at_again(
    browser: Browser, shared_site: str, shared_workspace: Path
) -> None:
    mine = shared_workspace / "datasets" / "mine"
    mine.mkdir(parents=True)
    Image.new("RGB", (32, 32), "teal").save(mine / "a.png")
    (mine / "a.txt").write_text("moggy", encoding="utf-8")
    with tab(browser, shared_site) as page:
        page.get_by_role("tab", name="Train").click()
        page.locator("#pictures-choice input").click()
        page.get_by_role("option", name="mine").click()
        trigger = page.locator("#trigger-word textarea, #trigger-word input")
        expect(trigger).to_have_value("moggy")
        page.locator("#lora-name textarea, #lora-name input").fill("my own name")
        page.get_by_role("button", name="Edit captions").click()
        page.locator("#change-captions").get_by_label("Prefix").first.fill("zibo, ")
        page.get_by_role("button", name="Apply").click()
        expect(trigger).to_have_value("zibo")
        page.get_by_role("button", name="Undo", exact=True).first.click()
        expect(trigger).to_have_value("moggy")
        named = page.locator("#lora-name textarea, #lora-name input")
        expect(named).to_have_value("my own name")


def test_chips_put_tags_into_the_prompt(
    browser: Browser, shared_site: str, shared_workspace: Path
) -> None:
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    halves = {"lora_down": np.zeros((2, 8), "f2"), "lora_up": np.zeros((8, 2), "f2")}
    tensors = {f"{name}.{half}.weight": zeros for half, zeros in halves.items()}
    said = {"modelspec.trigger_phrase": "fine grain"}
    save_file(tensors, shared_workspace / "loras" / "film_grain.safetensors", said)
    with tab(browser, shared_site) as page:
        prompt, chip = page.locator("#prompt textarea"), page.locator('[data-tag="film_grain"]')
        prompt.fill("a cat")
        chip.click()
        expect(prompt).to_have_value("a cat, fine grain, <lora:film_grain:0.8>")
        expect(chip).to_have_attribute("aria-pressed", "true")
        chip.focus()
        page.keyboard.press("Enter")
        expect(prompt).to_have_value("a cat")
        expect(chip).to_have_attribute("aria-pressed", "false")
        prompt.fill("x <lora:film_grain:0.3>")
        expect(chip).to_have_attribute("aria-pressed", "true")
        prompt.fill("x <lora:film_grain:bad>")
        expect(chip).to_have_attribute("aria-pressed", "false")
        prompt.fill("a house # later")
        chip.click()
        expect(prompt).to_have_value("a house # later\nfine grain, <lora:film_grain:0.8>")
        expect(chip).to_have_attribute("aria-pressed", "true")
        prompt.press("Control+z")
        expect(prompt).to_have_value("a house # later")


def test_an_answer_stays_while_something_runs_and_goes_by_its_close_button(
    browser: Browser, shared_site: str, tmp_path: Path
) -> None:
    bare = tmp_path / "bare.png"
    Image.new("RGB", (8, 8)).save(bare)
    with tab(browser, shared_site) as page:
        page.locator("#prompt textarea").fill("slow")
        page.get_by_label("Steps", exact=True).first.fill("500")
        page.locator("#generate").click()
        expect(page.locator("#generate-card .line")).to_contain_text("Step", timeout=PATIENT_MS)
        page.locator("xpath=//*[@id='picture-file']/..//input[@type='file']").set_input_files(bare)
        answer = page.locator("#restored-notice .notice")
        expect(answer).to_contain_text("bare.png")
        page.wait_for_timeout(2200)  # two refreshes
        expect(answer).to_contain_text("bare.png")
        page.locator("#restored-notice-close").focus()
        page.keyboard.press("Enter")
        expect(answer).to_have_count(0)
        page.locator("#cancel").click()
        expect(card(page, "generate-card", "stopped")).to_be_visible()


def test_weights_and_names_by_key(browser: Browser, shared_site: str) -> None:
    with tab(browser, shared_site) as page:
        prompt = page.locator("#prompt textarea")
        prompt.fill("a cat, (red ball:1.2), ")
        prompt.press("End")
        prompt.press_sequentially("<lora:neon_l")
        offer = page.get_by_role("option", name="neon_lighting")
        expect(offer).to_have_attribute("aria-selected", "true")
        prompt.press("Enter")
        expect(prompt).to_have_value("a cat, (red ball:1.2), <lora:neon_lighting:0.8>")
        expect(offer).to_be_hidden()
        prompt.press("Control+ArrowDown")
        expect(prompt).to_have_value("a cat, (red ball:1.2), <lora:neon_lighting:0.75>")
        prompt.evaluate("box => box.setSelectionRange(3, 3)")
        prompt.press("Control+ArrowUp")
        prompt.press("Control+ArrowUp")
        expect(prompt).to_have_value("a (cat:1.2), (red ball:1.2), <lora:neon_lighting:0.75>")
        prompt.press("Control+ArrowDown")
        prompt.press("Control+ArrowDown")
        expect(prompt).to_have_value("a cat, (red ball:1.2), <lora:neon_lighting:0.75>")
        prompt.evaluate("box => box.setSelectionRange(9, 9)")
        prompt.press("Control+ArrowUp")
        expect(prompt).to_have_value("a cat, (red ball:1.3), <lora:neon_lighting:0.75>")
        prompt.press("Control+z")
        expect(prompt).to_have_value("a cat, (red ball:1.2), <lora:neon_lighting:0.75>")
        expect(page.locator("#counter")).to_contain_text("1 LoRA")


DROP = """async () => {
    const answer = await fetch(document.querySelector("#pictures a.picture").href);
    const files = new DataTransfer();
    files.items.add(new File([await answer.blob()], "dropped.png", {type: "image/png"}));
    const drop = {dataTransfer: files, bubbles: true, cancelable: true};
    document.querySelector("#loras").dispatchEvent(new DragEvent("dragover", drop));
    document.querySelector("#loras").dispatchEvent(new DragEvent("drop", drop));
}"""


def test_pictures_are_seen_large_and_give_their_settings(
    browser: Browser, shared_site: str
) -> None:
    with tab(browser, shared_site) as page:
        prompt = page.locator("#prompt textarea")
        prompt.fill("a red ball")
        page.locator("#generate-count input").fill("2")
        prompt.press("Control+Enter")
        expect(page.locator("#pictures img")).to_have_count(2, timeout=PATIENT_MS)
        page.locator("#pictures a.picture").first.click()
        large = page.get_by_role("dialog").locator("img")
        first = large.get_attribute("src")
        page.keyboard.press("ArrowRight")
        assert large.get_attribute("src") != first
        page.keyboard.press("ArrowRight")
        assert large.get_attribute("src") == first
        prompt.evaluate("box => { box.value = 'b'; box.dispatchEvent(new Event('input')) }")
        page.get_by_role("dialog").get_by_role("button", name="Use these settings").click()
        expect(prompt).to_have_value("a red ball")
        expect(large).to_be_hidden()
        prompt.fill("something else")
        page.evaluate(DROP)
        expect(prompt).to_have_value("a red ball")
        expect(page.locator("#restored-notice")).to_contain_text("dropped.png")


def test_keys_and_theme(browser: Browser, shared_site: str) -> None:
    with tab(browser, shared_site) as page:
        prompt = page.locator("#prompt textarea")
        prompt.fill("slow")
        page.locator("#generate-steps input").fill("500")
        prompt.press("Control+Enter")
        expect(page.locator("#generate-card .line")).to_contain_text("Step")
        page.keyboard.press("Escape")
        expect(prompt).not_to_be_focused()
        expect(card(page, "generate-card", "running")).to_be_visible()
        page.keyboard.press("Escape")
        expect(card(page, "generate-card", "stopped")).to_be_visible()
        page.locator("#theme-switch").click()
        expect(page.locator("body.dark")).to_have_count(1)
        page.reload()
        expect(page.locator("#prompt textarea")).to_be_visible()
        expect(page.locator("body.dark")).to_have_count(1)


def test_both_tabs_in_both_themes(browser: Browser, shared_site: str, tmp_path: Path) -> None:
    screenshots(browser, shared_site, tmp_path)
