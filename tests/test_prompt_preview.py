"""What the page tells of a prompt while it is typed, and a picture's settings taken over."""

import html
import json
import time
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from page_client import Browser, StudioWithoutWorker, working
from raw_lora import lora
from sdlora.errors import SettingsError
from sdlora.image_metadata.infotext import infotext, write_png
from sdlora.prompt import parse_prompt
from sdlora.settings.image_request import ImageRequest
from sdlora.settings.train import TrainSettings
from sdlora.workspace import STARTER_MODEL, Workspace
from webui import prompt_preview
from webui.app_state import AppState
from webui.form import Form
from webui.prompt_preview import PreviewRequest

needs_words = pytest.mark.skipif(
    not (STARTER_MODEL / "tokenizer").exists(), reason="the starter model is not in this checkout"
)


@pytest.fixture
def studio(workspace: Path) -> AppState:
    lora(workspace / "loras" / "big.safetensors", 2048)
    return StudioWithoutWorker(Workspace.open(workspace))


def asked(prompt: str, **more: Any) -> PreviewRequest:
    usual = {"negative_prompt": "", "model": "starter", "steps": 10, "seed": 3, "styles": ()}
    return PreviewRequest(prompt, **{**usual, **more})


def shown(studio: AppState, what: PreviewRequest) -> tuple[str, str]:
    seen = prompt_preview.parse_prompts(studio, what)
    return prompt_preview.counter_line(seen, what) + prompt_preview.unused_notice(
        seen
    ), prompt_preview.preview_html(seen, what)


@needs_words
def test_tokens_are_counted_by_chunk_and_texts_shown_by_step(studio: AppState) -> None:
    count, parsed = shown(studio, asked("a [red:blue:0.5] (ball:1.3) BREAK sea, <lora:zibo:0.5>"))
    assert "3/75 + 2/75 tokens · 1 LoRA" in count and "notice" not in count
    assert "Steps 1 to 5" in parsed and "Steps 6 to 10" in parsed
    assert "<mark>ball<sub>1.3</sub></mark>" in parsed.replace("> ball", ">ball")
    assert "weight 0.5 · zibo" in parsed
    assert shown(studio, asked(""))[0] == ""


@needs_words
def test_both_prompts_and_and_are_told(studio: AppState) -> None:
    count, parsed = shown(studio, asked("a cat AND a dog:0.5", negative_prompt="a fish"))
    assert "2/75 + 2/75 tokens · negative 2/75" in count
    assert "AND, weight 0.5" in parsed and "Negative prompt" in parsed


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
@pytest.mark.parametrize("text", ["a red house, ", "[a:b:3] ", "(", "<lora:x:1> ", "{a|b} "])
def test_a_long_prompt_is_answered_at_once_and_the_limit_is_said(
    studio: AppState, field: str, text: str
) -> None:
    for letters, said in (
        (100_000, "has 100,000 letters; beyond 20,000 it is read only when the picture is made"),
        (1_000_000, "has 1,000,000 letters; 100,000 at most are taken: shorten it"),
    ):
        long = (text * letters)[:letters]
        began = time.process_time()
        count, _ = shown(studio, asked(**{"prompt": "a", field: long}))
        assert said in count
        assert time.process_time() - began < 5
        try:
            ImageRequest.from_values({field: long})
        except SettingsError as error:
            assert letters > 100_000 and f"{field} {said}" in str(error) and len(str(error)) < 200
        else:
            assert letters == 100_000


def test_no_setting_takes_a_text_without_end() -> None:
    training = {"data": "x", "name": "n"}
    for settings, field, values in (
        (TrainSettings, "trigger_word", {**training, "trigger_word": "x" * 200_000}),
        (TrainSettings, "sample_prompts", {**training, "sample_prompts": ["x" * 200_000]}),
        (ImageRequest, "styles", {"styles": ["x" * 200_000]}),
    ):
        with pytest.raises(SettingsError, match=f"{field}.* has 200,000 letters; 100,000 at most"):
            settings.from_values(values)


def test_tags_that_cannot_be_used_are_told_with_near_names(studio: AppState) -> None:
    count, parsed = shown(studio, asked("x <lora:zibbo:1> <lora:big:1> <lora:a:b:c"))
    assert "Did you mean zibo?" in count and "Did you mean zibo?" in parsed
    assert "big is for Stable Diffusion XL, not for this model" in count
    assert "is not closed" in count


def test_files_are_named_without_their_folders(studio: AppState) -> None:
    lists, styles = studio.workspace.wildcards, studio.workspace.styles
    lists.mkdir()
    (lists / "x.txt").write_bytes(b"\x00\x01\x02\x03\x00\x00\xff")
    styles.write_text("a,b\n1,2\n")
    (studio.workspace.loras / "up").symlink_to(studio.workspace.root.parent)
    count, parsed = shown(studio, asked("a __x__ <lora:gone:1>", styles=("oil",)))
    for name in ("x.txt is not used", "styles.csv has no columns", "The link up is not followed"):
        assert name in html.unescape(count)
    assert str(studio.workspace.root) not in html.unescape(count + parsed)


def test_tokens_of_a_model_that_is_not_here_are_not_made_up(studio: AppState) -> None:
    count, parsed = shown(studio, asked("a cat <lora:zibo>", model="someone/else"))
    assert "tokens" not in count and "1 LoRA" in count
    assert "once the model is on this machine" in parsed and "a cat" in parsed


@pytest.mark.parametrize(
    ("tag", "words"),
    [
        ("<lora:a:0.5>", "weight 0.5"),
        ("<lora:a:0.5:1>", "weight 1, text encoder 0.5"),
        ("<lora:a:0@0,1@1>", "weight 0 at first, 0.9 at last"),
        ("<lora:a:0@0,2@0.5,1@1>", "weight 0 at first, 1.2 at last, 2 at most"),
        ("<lora:a:unet=1:hr=0.2>", "weight 1, 0.2 in the hires fix pass"),
    ],
)
def test_weights_in_words(tag: str, words: str) -> None:
    assert prompt_preview.weights(parse_prompt(tag).loras[0], 10) == words


def test_no_text_becomes_markup(studio: AppState) -> None:
    nasty = "<b>x</b> (<i>y:1.2) <lora:<u>:1> {'\"><script>|b}"
    for text in shown(studio, asked(nasty, negative_prompt=nasty, styles=("<s>",), seed=-1)):
        assert not any(bad in text for bad in ("<b>", "<u>", "<script", "<s>"))


def test_the_page_reads_while_it_is_typed(browser: Browser) -> None:
    browser.set("prompt", "a cat <lora:nobody:1>")
    browser.fire(browser.ids["prompt"], "change")
    assert "There is no LoRA" in browser.value("unused")
    assert "a cat" in browser.value("parsed")


def test_a_card_asks_what_the_prompt_becomes(browser: Browser) -> None:
    name = "neon_lighting"
    asked = {"prompt": "a house # later", "name": name, "number": 3}
    browser.set("lora-clicked", json.dumps(asked))
    browser.fire(browser.ids["lora-clicked"], "change")
    answer = html.unescape(browser.value("lora-edited"))
    assert 'data-number="3"' in answer and "a house # later\n" in answer
    prompts = {f"a <lora:{name}:1>": [name], f"a <lora:{name}:x>": [], f"# <lora:{name}:1>": []}
    for prompt, chosen in prompts.items():
        browser.set("prompt", prompt)
        browser.fire(browser.ids["prompt"], "change")
        assert f'data-chosen="{html.escape(json.dumps(chosen))}"' in browser.value("counter")
    browser.set("lora-clicked", json.dumps({**asked, "name": "gone"}))
    browser.fire(browser.ids["lora-clicked"], "change")
    assert "There is no LoRA &#x27;gone&#x27;" in browser.value("lora-notice")


def test_a_shown_picture_gives_its_settings_back(studio: AppState, browser: Browser) -> None:
    browser.set("prompt", "a red ball")
    browser.set("seed", 7)
    browser.set_labelled("Guidance", 3.5)
    browser.set_labelled("Count", 2)
    browser.click("generate")
    with working(studio):
        pass
    browser.tick()
    token = browser.value("pictures").split('data-use="')[2].split('"')[0]
    browser.set("prompt", "something else")
    browser.set("seed", -1)
    browser.set_labelled("Guidance", 9)
    browser.set("picture-token", f"{token} 1")
    browser.fire(browser.ids["picture-token"], "change")
    assert (browser.value("prompt"), browser.value("seed")) == ("a red ball", "8"), "its own seed"
    assert browser.labelled("Guidance") == "3.5" and browser.labelled("Count") == "1"
    assert "are set." in browser.value("restored-notice")
    browser.set("picture-token", "no-such-token 2")
    browser.fire(browser.ids["picture-token"], "change")
    assert "not there any more" in browser.value("restored-notice")


def test_a_dropped_picture_tells_what_is_missing(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    fields = {"Steps": 33, "Sampler": "Euler a", "CFG scale": 4, "Seed": 5, "Model": "dreamy"}
    text = infotext(
        "a cat <lora:nobody:1>", "fog", {**fields, "Lora hashes": "nobody: abcdef012345"}
    )
    write_png(Image.new("RGB", (8, 8)), path, text)
    browser.upload("picture-file", path)
    assert browser.value("prompt") == "a cat <lora:nobody:1>"
    assert browser.value("negative-prompt") == "fog" and browser.labelled("Sampler") == "euler_a"
    said = browser.value("restored-notice")
    assert "abcdef012345" in said and "dreamy" in said
    assert browser.labelled("Model") == "starter", "a picture never chooses what is opened"
    Image.new("RGB", (8, 8)).save(path)
    browser.upload("picture-file", path)
    assert "says nothing of how it was made" in browser.value("restored-notice")


def test_a_form_changes_only_what_it_is_told() -> None:
    with gr.Blocks():
        form = Form(ImageRequest)
        form.add("steps", "seed", "width")
    assert form.change({"steps": 3, "prompt": "x", "width": None}) == {
        form.fields["steps"]: "3",
        form.fields["width"]: "",
    }
