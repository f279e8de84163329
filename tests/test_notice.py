"""Answers to actions: one owner each, at their place, until the next action or their own ×."""

from pathlib import Path

import gradio as gr
import pytest
from PIL import Image

from page_client import Browser, StudioWithoutWorker
from sdlora.errors import SettingsError
from sdlora.jobs import run_folder
from sdlora.messages import Message, Setting
from sdlora.settings.image_request import ImageRequest
from sdlora.workspace import Workspace
from webui.app_state import AppState
from webui.notice import NOTICE_CLASS, Notice, Reply

DRAFT_ACTS = ("collect", "reset", "undo")  # whose answer is the form itself


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> AppState:
    return StudioWithoutWorker(Workspace.open(tmp_path_factory.mktemp("notice")))


@pytest.fixture(scope="module")
def page(studio: AppState) -> Browser:
    return Browser(studio)


def places(page: Browser) -> dict[int, str]:
    """Every notice of the page: the component, and the name of its place."""
    layout = [page.config["layout"]]
    found: dict[int, str] = {}
    while layout:
        node = layout.pop()
        layout += node.get("children", [])
        props = page.parts[node["id"]]["props"] if node["id"] in page.parts else {}
        if NOTICE_CLASS in (props.get("elem_classes") or []):
            place, close = (child["id"] for child in node["children"][:2])
            found[place] = page.parts[place]["props"]["elem_id"]
            assert page.parts[close]["type"] == "button"
    return found


def test_no_refresh_writes_a_notice(page: Browser) -> None:
    notices, asked = places(page), {"click", "upload", "input", "submit"}
    assert len(notices) >= 11
    timers = {i for i, part in page.parts.items() if part["type"] == "timer"}
    for row in page.config["dependencies"]:
        written = [notices[output] for output in row["outputs"] if output in notices]
        for target, event in row["targets"]:
            by_script = page.parts.get(target, {}).get("props", {}).get("elem_classes") == [
                "unseen"
            ]
            if written:
                assert target not in timers and (event in asked or by_script), (written, event)
        assert len(written) <= 1, "an action answers at one place"


def test_every_button_answers_at_a_place(page: Browser) -> None:
    """A button that does work can say what became of it."""
    notices = places(page)
    silent = {"dice", "same-seed", "more-loras", "theme-switch"}
    silent |= {f"{tab}-{act}" for tab in ("generate", "train") for act in DRAFT_ACTS}
    for row in page.config["dependencies"]:
        for target, event in row["targets"]:
            part = page.parts.get(target)
            if part and part["type"] == "button" and event == "click":
                assert set(row["outputs"]) & set(notices) or part["props"]["elem_id"] in silent


def test_an_answer_outlasts_refreshes_and_goes_by_its_close_button(
    studio: AppState, page: Browser, tmp_path: Path
) -> None:
    bare = tmp_path / "bare.png"
    Image.new("RGB", (8, 8)).save(bare)
    page.upload("picture-file", bare)
    answer = page.value("restored-notice")
    assert "bare.png" in answer and 'role="alert"' in answer
    page.set("prompt", "a house")
    page.click("generate")
    for _ in range(3):
        page.tick()
    run_folder.cancel(studio.latest("generate")[0].folder, studio.queue)
    page.tick()
    assert page.value("restored-notice") == answer
    page.click("restored-notice-close")
    assert page.value("restored-notice") == ""


def test_start_answers_beside_the_button_and_a_second_click_queues_nothing(
    studio: AppState, page: Browser
) -> None:
    page.set("pictures-choice", "zibo")
    page.fire(page.ids["pictures-choice"], "change")
    page.set("lora-name", "fin")
    page.click("start")
    assert "Queued as fin." in page.value("train-notice")
    assert 'data-show="run-card"' in page.value("train-notice")
    page.click("start")
    assert "exists as &#x27;fin&#x27; and waits in the queue already" in page.value("train-notice")
    assert [run.name for run in studio.trainings()] == ["fin"]
    page.set("trigger-word", "another word")
    page.click("start")
    answer = page.value("train-notice")
    assert "Queued as fin-2, because fin exists." in answer and "1 job comes first." in answer
    for run in studio.trainings():
        run_folder.cancel(run.folder, studio.queue)


def test_the_same_seed_twice_is_one_request_and_a_drawn_seed_two(
    studio: AppState, page: Browser
) -> None:
    before = len(studio.requests())
    for seed, queued in ((5, 1), (5, 1), (-1, 2), (-1, 3)):
        page.set("seed", seed)
        page.click("generate")
        assert len(studio.requests()) == before + queued
    for run in studio.requests():
        run_folder.cancel(run.folder, studio.queue)


@pytest.mark.parametrize(
    ("button", "notice", "steps", "shown"),
    [
        ("generate", "generate-notice", 0, "Queued."),
        ("start", "train-notice", 1, "Queued as"),
        ("measure", "measure-notice", 1, ""),  # the card says the rest
    ],
)
def test_a_start_takes_away_the_problem_of_the_start_before(
    studio: AppState, button: str, notice: str, steps: int, shown: str
) -> None:
    """An error stands until the next start, and no longer: it was about something else."""
    page = Browser(studio)
    page.set("pictures-choice", "zibo")
    page.fire(page.ids["pictures-choice"], "change")
    field = [i for i, p in page.parts.items() if p["props"].get("label") == "Steps"][steps]
    good = page.values[field]
    page.values[field] = "0"
    page.click(button)
    assert 'role="alert"' in page.value(notice) and "Steps" in page.value(notice)
    page.values[field] = good
    page.click(button)
    answer = page.value(notice)
    assert "alert" not in answer and shown in answer and bool(answer) == bool(shown)
    for kind in ("generate", "train", "measure"):
        for run in studio.latest(kind):
            if run.live:
                run_folder.cancel(run.folder, studio.queue)


def test_a_form_says_how_its_errors_are_shown() -> None:
    wrong = Message("{setting} is too low", setting=Setting("steps"))
    acts = iter([SettingsError(wrong, fields={"steps": wrong}), None])

    def act() -> Reply:
        if error := next(acts):
            raise error
        return Reply()

    def error_html(error: object) -> str:
        assert isinstance(error, SettingsError)
        return f"<i>{' '.join(error.fields)}</i>"

    with gr.Blocks() as blocks:
        button, notice = gr.Button(), Notice("n")
        notice.answer(button.click, act, None, [], error_html=error_html)
    acted = next(f.fn for f in blocks.fns.values() if f.targets[0][0] == button._id)
    [shown] = acted().values()  # type: ignore[misc]
    assert shown == "<i>steps</i>"
    [shown] = acted().values()  # type: ignore[misc]
    assert shown == ""


@pytest.mark.parametrize(
    ("values", "sentence"),
    [({"model": "no such model"}, "There is no model &#x27;no such model&#x27;"),
     ({"steps": 0}, "Steps must be 1 or more; 0 was given.")],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_it_is_queued(
    studio: AppState, values: dict[str, object], sentence: str
) -> None:
    page, before = Browser(studio), len(studio.requests())
    for name, value in values.items():
        page.set_labelled(name.capitalize(), value)
    page.click("generate")
    assert sentence in page.value("generate-notice")
    assert len(studio.requests()) == before
    assert ImageRequest.from_values({}).model == "starter"
