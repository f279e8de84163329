"""Every setting has its place in a form, and comes back from it as it went in."""

import json
import re
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from page_client import Browser, StudioWithoutWorker
from sdlora.errors import SettingsError
from sdlora.messages import label
from sdlora.settings.image_request import ImageRequest
from sdlora.settings.presets import preset
from sdlora.settings.train import TrainSettings
from sdlora.workspace import Workspace
from setting_values import another
from webui import fields, theme
from webui.app_state import AppState
from webui.drafts import recall
from webui.form import Form, component, error_notice, widget_for
from webui.tabs import generate, train

BOTH = pytest.mark.parametrize("settings", [TrainSettings, ImageRequest])
# What capitalising a field's name alone makes of abbreviations
ABBREVIATED = re.compile(
    r"\b(?:[Uu]net|[Ee]ma|[Gg]ib|[Ss]nr|[Ll]ora|[Ll]okr|[Dd]ora|[Cc]lip (?=skip)|Most)\b"
)
# What Gradio's help texts (Info in its frontend) turn into code, links, bold and italic text; no
# backslash takes that from them
FORMATTED = re.compile(
    r"`[^`]+`|\[[^\]]+\]\([^)]+\)|\*\*.+?\*\*|__.+?__|\*.+?\*|(?<!\w)_.+?_(?!\w)", re.ASCII
)


@pytest.fixture
def studio(workspace: Path) -> AppState:
    return StudioWithoutWorker(Workspace.open(workspace))


def through_component(part: Any, value: Any) -> Any:
    """A value as a component of Gradio's hands it to the page, and takes it back from there."""
    sent = part.postprocess(value)
    return part.preprocess(json.loads(json.dumps(getattr(sent, "root", sent))))


@BOTH
def test_every_setting_has_a_component(settings: type[Any]) -> None:
    for name, field in settings.model_fields.items():
        part = component(settings, name)
        assert part.label == label(name) and part.label[0].isupper()
        assert not ABBREVIATED.search(part.label), "an abbreviation is written as the field does"
        assert part.info == field.description
        assert not FORMATTED.search(part.info), "Gradio would show something else"


@BOTH
def test_every_setting_comes_back_from_its_component_and_unset_stays_unset(
    settings: type[Any],
) -> None:
    form = Form(settings)
    form.add(*settings.model_fields)
    begun = {part: through_component(part, part.value) for part in form.fields.values()}
    assert form.read(begun) == {}, "what nobody set"
    for name, field in settings.model_fields.items():
        part = form.fields[name]
        value = another(settings, name)
        held = through_component(part, fields.to_component(field, value))
        assert fields.from_component(field, held) == value, name
        assert form.read({**begun, part: held}) == {name: value}
        unset = through_component(part, fields.to_component(field, fields.default_value(field)))
        assert form.read({**begun, part: unset}) == {}, name


NUMBERS = [
    (name, settings)
    for settings in (TrainSettings, ImageRequest)
    for name, field in settings.model_fields.items()
    if widget_for(field)[1] in (int, float)
]


@pytest.mark.parametrize(("name", "settings"), NUMBERS)
def test_a_number_is_used_as_it_is_typed_or_refused_by_its_name(
    name: str, settings: type[Any]
) -> None:
    form = Form(settings)
    form.add(name)
    (part,) = form.fields.values()
    required = {"data": "x", "name": "y"} if settings is TrainSettings else {}
    assert form.read({part: ""}) == form.read({part: "  "}) == form.read({part: None}) == {}
    typed = ["abc", "1,5", "nan", "1e999", "9" * 30, "-9" * 30, "0x10", "1 2"]
    typed += ["2.7", "1.00001"] if widget_for(settings.model_fields[name])[1] is int else []
    for text in typed:
        values = {**required, **form.read({part: text})}
        with pytest.raises(SettingsError) as caught:
            settings.from_values(values)
        assert name in caught.value.fields, text


@pytest.mark.parametrize("number", [0, 7, -1, 2**53 + 1, 2**64 - 1, 0.1, 5e-5, 1e-12, 1.5, 1e22])
def test_a_number_s_text_is_exact(number: float) -> None:
    text = fields.number_text(number)
    assert fields.parse_number(text) == number
    assert not text.endswith(".0") and "e-0" not in text


def test_a_form_reads_back_what_it_shows() -> None:
    form = Form(TrainSettings)
    form.add(*TrainSettings.model_fields)
    values = {
        "data": "x", "name": "y", "goal": "character", "targets": ("conv",), "rank": 3,
        "resolution": 128, "flip": True, "sample_prompts": ("a", "b"), "learning_rate": 2e-3,
    }  # fmt: skip
    shown = form.show(values)
    assert form.read(shown) == values
    assert TrainSettings.from_values(form.read(shown)) == TrainSettings.from_values(values)
    wiped = {**shown, form.fields["rank"]: "", form.fields["resolution"]: ""}
    assert form.read(wiped).keys() == values.keys() - {"rank", "resolution"}
    blank = {**shown, form.fields["sample_prompts"]: " \n b \n\n"}
    assert form.read(blank)["sample_prompts"] == ("b",)


def test_what_is_half_typed_counts_as_the_default_in_a_preview() -> None:
    form = Form(ImageRequest)
    form.add("steps", "seed", "prompt")
    sent = dict(zip(form.fields.values(), ("2.7", "5", "a cat"), strict=True))
    names = ("steps", "seed", "prompt")
    assert form.valid_values(sent, *names) == {"steps": 20, "seed": 5, "prompt": "a cat"}


def test_an_error_marks_the_fields_it_names() -> None:
    form = Form(ImageRequest, "generate", "more-settings")
    form.add("steps", "guidance", "width")
    with pytest.raises(SettingsError) as caught:
        ImageRequest.from_values({"steps": 2.7, "width": "<b>", "count": 0})
    said = error_notice(caught.value, form)
    assert 'data-fold="more-settings"' in said and "<b>" not in said
    assert "generate-steps" in said and "generate-width" in said
    assert "guidance" not in said, "of this form, and named"
    assert said.count("2.7") == 1 and "<p>2 fields need attention: Steps, Width.</p>" in said
    assert "<p>Count must be 1 or more; 0 was given.</p>" in said, "of no field of this form"
    other = error_notice(SettingsError("something else"), form)
    assert "<p>Something else.</p>" in other and "data-marks" not in other


def test_a_draft_comes_back_as_far_as_this_version_has_it() -> None:
    form = Form(TrainSettings, "train")
    form.add("rank", "adapter", "targets", "flip", "sample_prompts")
    draft = {
        "rank": 8, "adapter": "hada", "targets": ["conv", "gone"], "flip": True,
        "sample_prompts": "a\nb", "retired": "x" * 500, "pictures": "mine",
    }  # fmt: skip
    updates, problems = recall(draft, form, beside=["pictures"])
    held = {name: updates[part] for name, part in form.fields.items() if part in updates}
    assert held == {"rank": "8", "flip": True, "sample_prompts": "a\nb"}
    said = "\n".join(problems)
    assert "hada" in said and "gone" in said and "retired" in said
    assert len(problems) == 3


@BOTH
def test_every_setting_stands_in_one_group(settings: type[Any]) -> None:
    shown = [name for names in settings.groups().values() for name in names]
    assert sorted(shown) == sorted(settings.model_fields)


def test_every_setting_is_on_the_page_once_under_an_id_of_its_own(studio: AppState) -> None:
    with gr.Blocks():
        asked, making = train.build(studio), generate.build(studio)
    on_page = [*asked.form.fields, *asked.advanced.fields]
    assert sorted([*on_page, "data"]) == sorted(TrainSettings.model_fields), "data is the set's"
    assert making.form.fields.keys() == ImageRequest.model_fields.keys()
    parts = [*asked.held.values(), *making.form.fields.values()]
    assert len({part.elem_id for part in parts} - {None}) == len(parts)


def test_the_rest_of_a_form_comes_by_groups() -> None:
    class Odd(TrainSettings):
        brand_new: bool = False

    assert Odd.groups()["More"] == ("brand_new",)
    with gr.Blocks() as page:
        form = Form(Odd)
        form.add("name", "rank")
        form.add_rest(*Odd.groups()["Basics"])
    shown = [b.value for b in page.blocks.values() if isinstance(b, gr.HTML)]
    titles = [text for text in shown if "data-group" in text]
    assert 'aria-expanded="true"' in titles[0] and 'aria-expanded="false"' in titles[1]
    assert len(titles) == len(Odd.groups()) - 1, "nothing of the first group is left"
    assert "More" in titles[-1] and list(form.fields)[-1] == "brand_new"
    assert [*form.fields].count("rank") == 1


def test_style_asks_only_our_own_elements_for_their_state() -> None:
    """Gradio's parts have states too: a rule for `[aria-expanded]` alone meets every dropdown."""
    states = r"\[aria-(?:expanded|selected|pressed|checked|hidden|disabled|invalid)[^\]]*\]"
    ours = re.compile(r"[.#][\w-]+$|\[data-[\w-]+(?:=[^\]]*)?\]$")
    for text in (theme.CSS, *theme.SCRIPTS):
        for found in re.finditer(states, text):
            before = re.split(r"[\s>+~,(:\"'`]", text[: found.start()])[-1]
            assert ours.search(before), f"{before}{found[0]} may be a part of Gradio's"


def test_what_the_user_set_outlives_another_goal_and_other_pictures(
    studio: AppState, browser: Browser
) -> None:
    usual = browser.value("train-steps")
    for name, value in {"train-rank": "77", "lora-name": "mine", "train-effort": "fast"}.items():
        browser.set(name, value)
    browser.fire(browser.ids["train-effort"], "input")
    assert browser.value("train-rank") == "77" and browser.value("train-steps") != usual
    browser.set("pictures-choice", "zibo")
    browser.fire(browser.ids["pictures-choice"], "change")
    assert browser.value("lora-name") == "mine" and browser.value("trigger-word") == "zibo"


def test_a_set_that_ships_sets_its_goal_unless_the_user_has(
    studio: AppState, browser: Browser
) -> None:
    def choose(name: str) -> tuple[str, str]:
        browser.set("pictures-choice", name)
        browser.fire(browser.ids["pictures-choice"], "change")
        return browser.value("train-goal"), browser.value("train-steps")

    aims = {"zibo": "character", "cyberpunk_architecture": "object", "neon_lighting": "style"}
    assert browser.value("train-goal") == "object", "of the set that is chosen first"
    for name, aim in aims.items():
        assert choose(name) == (aim, str(preset("starter", aim)["steps"]))
    browser.set("train-goal", "object")
    assert choose("zibo")[0] == "object"
    browser.set("train-draft", json.dumps({"pictures": "zibo", "goal": "style"}))
    browser.open()
    assert browser.value("train-goal") == "style"
    browser.click("train-reset")
    assert browser.value("train-goal") == "object"


def test_a_page_opens_with_its_drafts_and_a_reset_gives_the_defaults(
    studio: AppState, browser: Browser
) -> None:
    draft = {"rank": "9", "effort": "fast", "pictures": "zibo", "name": "mine", "old": 1}
    browser.set("generate-draft", json.dumps({"prompt": "a cat", "seed": str(2**64 - 1)}))
    browser.set("train-draft", json.dumps(draft))
    browser.open()
    assert (browser.value("prompt"), browser.value("seed")) == ("a cat", str(2**64 - 1))
    assert browser.value("generate-steps") == "20"
    assert browser.value("train-rank") == "9" and browser.value("lora-name") == "mine"
    assert browser.value("pictures-choice") == "zibo" and browser.value("trigger-word") == "zibo"
    assert "old" in browser.value("train-lost")
    fast = browser.value("train-steps")
    for tab in ("generate", "train"):
        browser.click(f"{tab}-reset")
    assert (browser.value("prompt"), browser.value("seed")) == ("", "-1")
    assert browser.value("train-rank") != "9" and browser.value("train-effort") == "balanced"
    assert browser.value("lora-name") != "mine" and browser.value("train-steps") != fast
    browser.set("train-draft", json.dumps(draft))
    browser.click("train-undo")
    assert browser.value("train-rank") == "9" and browser.value("lora-name") == "mine"


def test_a_pasted_text_with_settings_offers_to_take_them(browser: Browser) -> None:
    prompt = browser.ids["prompt"]
    browser.values[prompt] = "a cat, masterpiece: yes"
    browser.fire(prompt, "change")
    assert not browser.prop("take-settings", "visible")
    text = "a cat\nNegative prompt: fog\nSteps: 33, Sampler: Euler a, CFG scale: 4, Seed: 5"
    browser.values[prompt] = text
    browser.fire(prompt, "change")
    assert browser.prop("take-settings", "visible")
    browser.click("take-settings")
    assert browser.value("prompt") == "a cat" and browser.value("negative-prompt") == "fog"
    assert (browser.value("generate-steps"), browser.value("seed")) == ("33", "5")
    assert "are set" in browser.value("restored-notice")
