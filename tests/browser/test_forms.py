"""The forms in a real browser: everything is reached, seen, changed and sent; nothing is lost.

Written over the settings themselves, so that a new field is covered by being there.
"""

import json
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from gradio.components import Component
from playwright.sync_api import Browser, Page, expect

from chromium_page import site, tab
from page_client import StudioWithoutWorker
from sdlora.jobs import run_folder
from sdlora.settings.image_request import ImageRequest
from sdlora.settings.presets import preset
from sdlora.settings.train import TrainSettings
from sdlora.workspace import STARTER_MODEL, Workspace
from setting_values import WORDS, another
from webui import fields
from webui.tabs import generate, train

pytestmark = pytest.mark.browser
# What the pictures suggest
SUGGESTED = {"data", "name", "trigger_word", "goal"}
# What presets go by is chosen first
FIRST = ("goal", "effort", "model")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, dict[str, Component]]:
    """The components of both forms by their settings' names, as the page has them."""
    studio = StudioWithoutWorker(Workspace.open(tmp_path_factory.mktemp("parts")))
    with gr.Blocks():
        making, training = generate.build(studio), train.build(studio)
    of_train = {**training.form.fields, **training.advanced.fields}
    return {ImageRequest: making.form.fields, TrainSettings: of_train}


def show_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def open_everything(page: Page) -> None:
    """Every accordion of the tab, those within it, and every group."""
    while (closed := page.locator(".gr-accordion > button:not(.open):visible")).count():
        closed.first.click()
    expect(page.locator(".find-setting:visible")).to_have_count(1)
    page.wait_for_timeout(500)  # for what was folded to be there as a whole
    page.evaluate(
        "document.querySelectorAll('[data-group][aria-expanded=false]').forEach("
        "(title) => title.offsetParent && title.click())"
    )


def open_menus(page: Page) -> None:
    """Every menu of the tab, opened and closed again with nothing chosen."""
    for menu in page.get_by_role("combobox").locator("visible=true").all():
        menu.click()
        expect(page.get_by_role("option").first).to_be_visible()
        menu.press("Escape")
        expect(page.get_by_role("option")).to_have_count(0)


CANNOT_BE_SEEN = """(ids) => ids.filter((id) => {
    const box = document.getElementById(id);
    const field = box?.querySelector("input, textarea");
    return !field || !box.checkVisibility({visibilityProperty: true}) || box.offsetWidth < 60
        || box.getBoundingClientRect().right > innerWidth
        || (field.matches("input[type=text]") && field.scrollWidth > field.clientWidth + 1);
})"""
WRITE = """(texts) => {
    for (const [id, text] of Object.entries(texts)) {
        const box = document.getElementById(id).querySelector("input, textarea");
        box.value = text;
        box.dispatchEvent(new Event("input", {bubbles: true}));
    }
}"""


def change(page: Page, parts: Mapping[str, Component], held: Mapping[str, Any]) -> None:
    """Bring values into the fields as somebody would: texts typed, boxes ticked, menus opened."""
    texts = {}
    for name, value in held.items():
        part = parts[name]
        box = page.locator(f"#{part.elem_id}")
        if isinstance(part, gr.Textbox):
            texts[part.elem_id] = value
        elif isinstance(part, gr.Checkbox):
            box.get_by_role("checkbox").set_checked(value)
        elif isinstance(part, gr.CheckboxGroup):
            for label, choice in part.choices:
                box.get_by_label(label, exact=True).set_checked(choice in value)
        elif isinstance(part, gr.Radio):
            box.locator(f'input[value="{value}"]').check()
        elif part.allow_custom_value:
            box.get_by_role("combobox").fill(value)
            box.get_by_role("combobox").press("Enter")
        else:
            box.get_by_role("combobox").click()
            label = next(label for label, choice in part.choices if choice == value)
            page.get_by_role("option", name=label, exact=True).click()
    page.evaluate(WRITE, texts)


def new_settings(workspace: Path, page: Page, button: str) -> dict[str, Any]:
    """The settings of the one job that the button starts."""
    before = set(workspace.rglob(run_folder.SETTINGS_FILE))
    page.locator(button).click()
    deadline = time.monotonic() + 60
    while not (new := set(workspace.rglob(run_folder.SETTINGS_FILE)) - before):
        said = page.locator(".notice.bad:visible").all_inner_texts()
        assert time.monotonic() < deadline and not said, f"no job was started: {said}"
        page.wait_for_timeout(50)
    (path,) = new
    return dict(json.loads(path.read_text(encoding="utf-8")))


def batch(settings: type[Any], names: Iterator[str], usual: Mapping[str, Any]) -> dict[str, Any]:
    """Another value of every one of these settings, all of them together accepted."""
    values: dict[str, Any] = {}
    for name in names:
        values[name] = another(settings, name, {**usual, **values}, usual.get(name))
    return values


@pytest.mark.parametrize("width", [1440, 390])
def test_every_setting_is_seen_changed_and_sent(
    browser: Browser,
    fake_site: str,
    workspace: Path,
    parts: dict[Any, dict[str, Component]],
    width: int,
) -> None:
    (workspace / "models" / WORDS["model"]).symlink_to(STARTER_MODEL)
    with tab(browser, fake_site, width) as page:
        for settings, name, button in (
            (ImageRequest, "Generate", "#generate"),
            (TrainSettings, "Train", "#start"),
        ):
            form = parts[settings]
            show_tab(page, name)
            open_everything(page)
            hidden = page.evaluate(CANNOT_BE_SEEN, [part.elem_id for part in form.values()])
            assert not hidden
            open_menus(page)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            untouched = new_settings(workspace, page, button)
            assert untouched.keys() <= SUGGESTED, "opening sets nothing"
            first = batch(settings, (n for n in FIRST if n in form), {})
            change(page, form, first)
            usual = preset("starter", first["goal"], first["effort"]) if "goal" in first else {}
            if usual:
                expect(page.locator("#train-steps input")).to_have_value(str(usual["steps"]))
                page.wait_for_timeout(700)  # for what the model changes
            rest = batch(settings, (n for n in form if n not in first), {**first, **usual})
            held = {n: fields.to_component(settings.model_fields[n], v) for n, v in rest.items()}
            change(page, form, held)
            page.wait_for_timeout(200)
            sent = new_settings(workspace, page, button)
            wanted = settings.from_values({**untouched, **first, **rest}).given()
            for name in train.SETS & rest.keys():
                sent[name] = json.loads(json.dumps(sent[name]).replace(_folder(sent[name]), ""))
            assert {n: sent.get(n) for n in form} == {n: wanted[n] for n in form}


def _folder(value: Any) -> str:
    """Where the sets lie, before the set's name in a path of it."""
    path = value if isinstance(value, str) else value[0]
    return str(Path(path).parent) + "/"


def test_what_is_wrong_is_marked_and_found(browser: Browser, fake_site: str) -> None:
    with tab(browser, fake_site) as page:
        page.evaluate(WRITE, {"prompt": "a cat", "generate-steps": "2.7"})
        top = page.locator("#generate").bounding_box()
        page.locator("#prompt textarea").press("End")
        page.locator("#prompt textarea").press_sequentially(", <lora:nobod")
        expect(page.locator("#unused")).to_contain_text("nobod")
        assert page.locator("#generate").bounding_box() == top, "what is told pushes nothing away"
        page.locator("#prompt textarea").fill("a cat")
        open_everything(page)
        page.locator("#generate-hires-scale input").fill("99")
        page.wait_for_function("sessionStorage['sdlora-draft-generate']?.includes('99')")
        page.reload()
        expect(page.locator("#generate-steps input")).to_have_value("2.7")
        page.locator("#generate").click()
        steps, scale = page.locator("#generate-steps"), page.locator("#generate-hires-scale")
        expect(steps.locator(".wrong")).to_contain_text("2.7")
        answer = page.locator("#generate-notice .notice")
        expect(answer).to_have_text("2 fields need attention: Steps, Hires fix scale.")
        expect(scale.locator(".wrong")).to_be_visible()
        expect(scale.locator("input")).to_have_attribute("aria-invalid", "true")
        expect(steps.locator("input")).to_be_focused()
        steps.locator("input").fill("3")
        expect(steps.locator(".wrong")).to_have_count(0)
        expect(scale.locator(".wrong")).to_have_count(1)
        find = page.locator("#more-settings").get_by_role("searchbox")
        find.fill("no such thing")
        expect(page.locator("#more-settings [data-found]")).to_contain_text("No setting matches")
        find.fill("clip layer")
        expect(page.locator("#generate-clip-skip")).to_be_visible()
        expect(scale).to_be_hidden()
        find.fill("guidance")
        page.locator("#more-settings [data-found] button").click()
        expect(page.locator("#generate-guidance input")).to_be_focused()


def test_what_is_typed_outlives_a_reload_and_a_new_server(
    browser: Browser, workspace: Path
) -> None:
    with socket.socket() as probe:  # drafts belong to an address, so both servers have one port
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    seed = str(2**64 - 1)
    where = {"prompt": "a cat", "seed": seed, "lora-name": "mine", "train-rank": "9"}

    def held(page: Page) -> dict[str, str]:
        boxes = {id: page.locator(f"#{id} :is(input, textarea)") for id in where}
        show_tab(page, "Train")
        advanced = page.locator("#train-rank")
        if not advanced.count():
            page.get_by_role("button", name="Advanced").click()
        return {id: box.input_value() for id, box in boxes.items()}

    context = browser.new_context()
    page = context.new_page()
    with site(workspace, "--port", port) as address:
        page.goto(address)
        expect(page.locator("#loras :is(button, p)").first).to_be_attached()
        untouched = held(page)
        usual = page.locator("#train-steps input").input_value()
        page.locator("#train-steps input").fill("")
        expect(page.locator("#train-steps input")).to_have_attribute("placeholder", usual)
        page.evaluate(WRITE, where)
        page.wait_for_function("sessionStorage['sdlora-draft-train']?.includes('rank')")
        page.reload()
        show_tab(page, "Train")
        expect(page.locator("#lora-name :is(input, textarea)")).to_have_value("mine")
        assert held(page) == where
        other = context.new_page()
        other.goto(address)
        expect(other.locator("#prompt textarea")).to_have_value("a cat")
        other.evaluate(WRITE, {"prompt": "a dog"})
        other.wait_for_function("localStorage['sdlora-draft-generate'].includes('dog')")
    with site(workspace, "--port", port) as address:
        page.goto(address)
        show_tab(page, "Train")
        expect(page.locator("#lora-name :is(input, textarea)")).to_have_value("mine")
        assert held(page) == where, "this tab's own, not the other's"
        page.locator("#train-reset").click()
        show_tab(page, "Generate")
        page.locator("#generate-reset").click()
        expect(page.locator("#prompt textarea")).to_have_value("")
        assert held(page) == untouched
        page.wait_for_function("sessionStorage['sdlora-draft-train'] === '{}'")
    context.close()
