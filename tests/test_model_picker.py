"""The choice of a base model on the page: names, cards, and a line that says what it is."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

import tiny_checkpoints as tiny
from page_client import Browser, StudioWithoutWorker
from sdlora.workspace import Workspace
from webui.model_cards import model_cards
from webui.model_picker import described_model


@pytest.fixture
def studio(workspace: Path) -> StudioWithoutWorker:
    space = Workspace.open(workspace)
    shutil.copy(tiny.checkpoint("sdxl"), space.models / "pony <b>_vpred_lightning.safetensors")
    tensors = {k: v for k, v in tiny.tensors("sd1").items() if not k.startswith("first_stage")}
    tiny.write(space.models / "novae.safetensors", tensors)
    Image.new("RGB", (8, 8)).save(space.models / "novae.png")
    (space.models / "old.ckpt").write_bytes(b"PK\x03\x04")
    return StudioWithoutWorker(space)


def test_the_line_about_a_model(studio: StudioWithoutWorker) -> None:
    browser = Browser(studio)
    for name, *parts in (
        ("starter", "VAE inside", "the file says so"),
        ("pony <b>_vpred_lightning", "predicts v (by its name)", "for few steps", "pony &lt;b&gt;"),
        ("novae", "no VAE inside", "/small", "name a file or a model"),
        ("novea", "Did you mean novae?"),
        ("old", "is a pickle"),
        ("someone/model", "is taken from huggingface.co when used"),
    ):
        for place in ("generate", "train"):
            browser.set(f"{place}-model-clicked", f"1 {name}")
            browser.fire(browser.ids[f"{place}-model-clicked"], "change")
            assert browser.value(f"{place}-model") == name
        shown = described_model(studio, name)
        for part in parts:
            assert part in shown, shown


def test_cards_are_capped_and_the_rest_is_named(studio: StudioWithoutWorker) -> None:
    entries = studio.models.list()
    text = model_cards(entries, "novae", studio.media, 2)
    assert text.count('class="chip"') == 2 and "2 of 3 shown" in text
    assert "1 model cannot be used" in text and text.count('aria-pressed="true"') == 1
    assert "No model matches" in model_cards([], "", studio.media, 2)


def test_search_goes_over_name_and_family(studio: StudioWithoutWorker) -> None:
    browser = Browser(studio)
    browser.set("generate-model-search", "diffusion xl")
    browser.fire(browser.ids["generate-model-search"], "change")
    assert browser.value("generate-model-cards").count('class="chip"') == 1


def test_a_model_that_is_put_there_later_is_on_offer(studio: StudioWithoutWorker) -> None:
    browser = Browser(studio)
    shutil.copy(tiny.checkpoint("sd1"), studio.workspace.models / "later.safetensors")
    browser.open()
    choices = browser.parts[browser.ids["generate-model"]]["props"]["choices"]
    assert "later" in [value for _, value in choices]
    assert "starter" in browser.value("generate-model-about")


def test_what_cannot_be_used_is_on_its_card_alone(studio: StudioWithoutWorker) -> None:
    (studio.workspace.models / "damaged.safetensors").write_bytes(b"x" * 50)
    browser = Browser(studio)
    browser.open()
    for place in ("generate", "train"):
        offered = [value for _, value in browser.prop(f"{place}-model", "choices")]
        assert offered == ["starter", "novae", "pony <b>_vpred_lightning"]
    cards = model_cards(studio.models.list(), "starter", studio.media, 9)
    assert "<dt>damaged</dt>" in cards and "2 models cannot be used" in cards


def test_parts_are_offered_by_name_and_a_path_may_be_typed(studio: StudioWithoutWorker) -> None:
    space = studio.workspace
    for folder in (space.vaes, space.models / "vae"):
        folder.mkdir()
        shutil.copy(tiny.checkpoint("sd1"), folder / f"of_{folder.parent.name}.safetensors")
    browser = Browser(studio)
    browser.open()
    for place in ("generate", "train"):
        offered = {
            part: [value for _, value in browser.prop(f"{place}-{part}", "choices")]
            for part in ("vae", "text-encoder")
        }
        whole = ["starter", "pony <b>_vpred_lightning"]
        assert offered["vae"] == ["of_models", "of_workspace", *whole]
        assert offered["text-encoder"] == ["starter", "novae", whole[1]]
        assert browser.prop(f"{place}-vae", "allow_custom_value")
        assert browser.value(f"{place}-vae") in ("", None)
