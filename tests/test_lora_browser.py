"""The LoRA browser: found, filtered, sorted and capped, whatever the number of files."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from page_client import Browser, StudioWithoutWorker
from raw_lora import beside, lora, shapes_of
from sdlora.lora.library.index import LoraEntry
from sdlora.lora.library.library import Library
from sdlora.lora.library.scan import ScannedFile as SearchableLora
from sdlora.workspace import Workspace
from webui import lora_browser, lora_details, markup
from webui.app_state import AppState
from webui.lora_details import ANY_BASE, FITTING, LoraFilter, LoraSearch, prompt_trigger_words


@pytest.fixture
def folder(workspace: Path) -> Path:
    root = workspace / "loras"
    lora(root / "night" / "neon_Sign.safetensors", 768, ss_output_name="Blinker")
    lora(root / "zz.safetensors", shapes=shapes_of(768, rank=2))
    lora(root / "b" / "fog.safetensors", 2048, **{"modelspec.trigger_phrase": "neon fog"})
    lora(root / "no_base.safetensors", 11)
    (root / "broken.safetensors").write_bytes(b"no")
    return root


@pytest.fixture
def studio(folder: Path) -> AppState:
    return StudioWithoutWorker(Workspace.open(folder.parent))


def names(found: lora_details.LoraMatches) -> list[str]:
    return [entry.name for entry in found.usable]


@pytest.mark.parametrize(
    ("words", "hits"),
    [
        ("neon", ["neon_Sign", "fog"]),  # in the name before in the trigger words
        ("NEON sign", ["neon_Sign"]),
        ("neon-sign", ["neon_Sign"]),
        ("blink", ["neon_Sign"]),  # the name it was trained under
        ("night/", ["neon_Sign"]),
        ("sign fog", []),
    ],
)
def test_files_are_found_by_all_they_are_called(folder: Path, words: str, hits: list[str]) -> None:
    assert names(LoraSearch(Library([folder])).search(LoraFilter(words, ANY_BASE))) == hits


def test_what_is_for_another_base_is_counted_and_what_is_broken_listed(folder: Path) -> None:
    library = LoraSearch(Library([folder]))
    found = library.search(LoraFilter(model_base="sdxl"))
    assert names(found) == ["fog", "no_base"], "a file that tells no base may fit"
    assert (found.other_base, found.total, [e.name for e in found.broken]) == (2, 5, ["broken"])
    assert names(library.search(LoraFilter(base="sd1", model_base="sdxl"))) == [
        "neon_Sign", "no_base", "zz",
    ]  # fmt: skip
    assert len(library.search(LoraFilter(base=FITTING)).usable) == 4, "the model tells no base"


def test_orders(folder: Path) -> None:
    os.utime(folder / "b" / "fog.safetensors", (2e9, 2e9))
    library = LoraSearch(Library([folder]))
    order = {
        name: names(library.search(LoraFilter("", ANY_BASE, name))) for name in lora_details.ORDERS
    }
    assert order["name"] == ["fog", "neon_Sign", "no_base", "zz"]
    assert order["newest"][0] == "fog"
    assert order["folder"][-2:] == ["fog", "neon_Sign"]
    assert order["rank"][-1] != "zz"


def test_names_are_completed_nearest_first(folder: Path) -> None:
    library = LoraSearch(Library([folder]))
    assert [e.name for e in library.complete_name("ne", 9)] == ["neon_Sign", "fog"]
    assert len(library.complete_name("", 2)) == 2
    assert library.complete_name("broken", 9) == []


def test_a_first_listing_that_takes_long_is_not_waited_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()

    class Slow(Library):
        def list(self) -> list[LoraEntry]:
            go_on.wait(20)
            return super().list()

    monkeypatch.setattr(lora_details, "FIRST_PATIENCE_S", 0.01)
    monkeypatch.setattr(lora_details, "PATIENCE_S", 0.01)
    library = LoraSearch(Slow([folder]))
    assert library.search(LoraFilter()).reading and library.names() == set()
    go_on.set()
    monkeypatch.setattr(lora_details, "FIRST_PATIENCE_S", 20.0)
    assert not library.search(LoraFilter()).reading
    go_on.clear()
    lora(folder / "new.safetensors")
    assert "new" not in names(library.search(LoraFilter(), fresh=True)), "the old answers meanwhile"
    go_on.set()
    monkeypatch.setattr(lora_details, "PATIENCE_S", 20.0)
    assert "new" in names(library.search(LoraFilter(), fresh=True)) and "new" in library.names()


def test_the_page_filters_and_shows_more(
    studio: AppState, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora_browser, "PAGE_SIZE", 2)
    browser = Browser(studio)
    browser.open()
    cards = browser.value("loras")
    assert 'data-tag="impressionist_style"' in cards and "neon_Sign" not in cards, (
        "the starter model is chosen"
    )
    assert "3 more are for other base models" in cards
    assert "1 file cannot be used" in cards and "broken" in cards
    assert browser.prop("lora-filters", "visible")
    browser.set("lora-base", ANY_BASE)
    browser.fire(browser.ids["lora-base"], "change")
    assert browser.value("loras").count("data-tag") == 2
    browser.set("lora-search", "neon")
    browser.fire(browser.ids["lora-search"], "change")
    assert browser.value("loras").count("data-tag") == 2 and browser.prop("more-loras", "visible")
    assert "2 of 3 shown" in browser.value("loras")
    browser.click("more-loras")
    assert browser.value("loras").count("data-tag") == 3
    assert not browser.prop("more-loras", "visible")
    browser.set("lora-typed", "ne")
    browser.fire(browser.ids["lora-typed"], "change")
    assert 'data-name="neon_lighting"' in browser.value("lora-offers")


def test_a_card_says_what_there_is_to_know(studio: AppState, folder: Path) -> None:
    path = lora(folder / "glow.safetensors", 768)
    beside(path, ".json", {"preferred weight": 0.55, "activation text": "glow, red"})
    beside(path, ".civitai.info", "{")
    other = lora(studio.workspace.root / "elsewhere" / "glow.safetensors", 768)
    (studio.workspace.root / "lora_folders.txt").write_text(str(other.parent), "utf-8")
    entry = next(e for e in studio.library.list() if e.full_name == "glow")
    card = markup.lora_card(entry, "")
    assert 'data-weight="0.55"' in card and 'data-words="glow, red"' in card
    assert "weight 0.55" in card and "Stable Diffusion 1" in card
    assert "glow.civitai.info is not used" in card
    assert "elsewhere/glow.safetensors has the same name" in card and str(other) not in card


def test_words_from_captions_mean_themselves_in_a_prompt(studio: AppState, folder: Path) -> None:
    captions = {"modelspec.trigger_phrase": "saber (fate), a [b]"}
    path = lora(folder / "saber.safetensors", 768, **captions)
    entry = studio.library.find("saber")
    card = markup.lora_card(entry, "")
    assert 'data-words="saber \\(fate\\), a \\[b\\]"' in card
    assert "<small>saber (fate), a [b]</small>" in card, "shown as they are"
    beside(path, ".json", {"activation text": "(saber:1.2), {red|blue}"})
    entry = next(e for e in studio.library.list() if e.name == "saber")
    assert prompt_trigger_words(entry) == ("(saber:1.2)", "{red|blue}")


def test_a_training_lends_its_lora_its_last_sample(studio: AppState, folder: Path) -> None:
    samples = studio.workspace.runs / "zz" / "samples"
    samples.mkdir(parents=True)
    for number, name in enumerate(("b.png", "a.png")):
        Image.new("RGB", (9, 9)).save(samples / name)
        os.utime(samples / name, (1e9 + number, 1e9 + number))
    browser = Browser(studio)
    browser.open()
    browser.set("lora-base", ANY_BASE)
    browser.fire(browser.ids["lora-base"], "change")
    link = studio.media.link(samples / "a.png")
    assert f'<img src="{link}/small"' in browser.value("loras")


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", '"><img src=x onerror=y>', "&'{{"])
def test_no_text_of_a_file_becomes_markup(folder: Path, text: str) -> None:
    lora(folder / "a.safetensors", **{"modelspec.trigger_phrase": text})
    [entry] = [e for e in Library([folder]).list() if e.name == "a"]
    odd = entry.__class__(
        SearchableLora(*entry.scanned)._replace(name=text, folder=text), entry.row, text
    )
    found = lora_details.LoraMatches([odd], [odd], 1, 2, [text])
    shown: Any = markup.lora_card(odd, "") + markup.offers(text, [odd])
    shown += markup.lora_cards(found, [], LoraFilter(text))
    assert text not in shown and markup.esc(text) in shown
