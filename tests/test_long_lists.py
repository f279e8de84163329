"""A long list is cut, and says how many entries were left out; a list that fits says nothing."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from page_client import Browser, StudioWithoutWorker
from picture_files import scene
from sdlora.data.caption_editing import CaptionSettings
from sdlora.data.report import check_dataset
from sdlora.events import Captioned, Done
from sdlora.image_metadata.reader import parse_infotext
from sdlora.inference.plan import listed
from sdlora.jobs import run_folder
from sdlora.lora.library.library import Library
from sdlora.settings.captioning import DescribeSettings
from sdlora.settings.train import TrainSettings
from sdlora.training.dataset_fingerprint import changes
from sdlora.workspace import Workspace
from webui import caption_editor, dataset_report, markup
from webui.lora_details import LoraFilter, LoraMatches
from webui.media import Media
from webui.prompt_preview import PreviewRequest, parse_prompts, preview_html


@pytest.mark.parametrize(("count", "end"), [(12, "l11"), (13, "l11 and 1 more"), (20, " 8 more")])
def test_layers_that_are_not_used(count: int, end: str) -> None:
    sentence = listed([f"l{number}" for number in range(count)])
    assert sentence.endswith(end) and ("more" in sentence) == (count > 12)
    assert sentence.count(",") == 11


@pytest.mark.parametrize(("count", "end"), [(8, "7.png"), (9, "7.png and 1 more")])
def test_pictures_that_have_changed(count: int, end: str) -> None:
    before = {f"{number}.png": "hash" for number in range(count)}
    assert changes(before, {}) == f"missing: {', '.join(list(before)[:7])}, {end}"


@pytest.mark.parametrize(("count", "end"), [(30, ""), (31, " and 1 more"), (99, " and 69 more")])
def test_fields_of_other_programs(count: int, end: str) -> None:
    known = '"positive_prompt": "a house", "seed": 1, "steps": 3, "width": 64, "height": 64'
    unknown = ", ".join(f'"field_{number:02}": 1' for number in range(count))
    version = '"app_version": "5.0", "generation_mode": "txt2img"'
    [problem] = parse_infotext(f"{{{version}, {known}, {unknown}}}").problems
    assert problem.startswith("not taken over from what InvokeAI wrote: field_00: 1, ")
    assert problem.endswith(f"field_{min(count, 30) - 1:02}: 1{end}")


@pytest.mark.parametrize(("steps", "more"), [(24, ""), (26, " and 1 more"), (40, " and 8 more")])
def test_steps_of_a_text_that_alternates(workspace: Path, steps: int, more: str) -> None:
    studio = StudioWithoutWorker(Workspace.open(workspace))
    asked = PreviewRequest("[a cat|a dog]", "", "starter", steps, seed=0)
    html = preview_html(parse_prompts(studio, asked), asked)
    assert f'<p class="when">Steps 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23{more}</p>' in html
    assert f'<p class="when">Steps 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24{more}</p>' in html


@pytest.mark.parametrize("count", [50, 51, 1061])
def test_lora_files_that_cannot_be_used(tmp_path: Path, count: int) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"nonsense, and quite a lot of it")
    broken = Library([tmp_path]).list() * count
    html = markup.lora_cards(LoraMatches(broken=broken, total=count), [], LoraFilter())
    assert html.count("<dt>") == 50
    assert ("more</p>" in html) == (count > 50)
    assert count == 50 or f"<p>and {count - 50:,} more</p>" in html


@pytest.mark.parametrize("count", [30, 31])
def test_captions_that_change(tmp_path: Path, count: int) -> None:
    scene(1).save(tmp_path / "0.png")
    for number in range(count):
        shutil.copy(tmp_path / "0.png", tmp_path / f"{number}.png") if number else None
        (tmp_path / f"{number}.txt").write_text("a red ball", encoding="utf-8")
    settings = CaptionSettings.from_values(
        {"data": str(tmp_path), "find": "red", "replace": "blue"}
    )
    html = caption_editor.preview(tmp_path, settings)
    assert html.count("<ins>") == 30 and f"{count} captions would change" in html
    assert ("<li>And 1 more.</li>" in html) == (count == 31)


@pytest.mark.parametrize("count", [60, 61])
def test_pictures_of_a_dataset_report(tmp_path: Path, workspace: Path, count: int) -> None:
    for number in range(2):
        scene(number).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("zibo", encoding="utf-8")
    settings = TrainSettings.from_values({"data": str(tmp_path), "name": "n"})
    found = check_dataset(settings, Workspace.open(workspace))
    rows = (*found.rows, *found.rows[:1] * (count - 2))
    html = dataset_report.report(replace(found, rows=rows), Media((tmp_path,)), None)
    assert html.count("<figure") == 60
    assert ("And 1 more like the last ones." in html) == (count == 61)


@pytest.mark.parametrize("count", [200, 201])
def test_captions_of_a_model(workspace: Path, count: int) -> None:
    studio = StudioWithoutWorker(Workspace.open(workspace))
    folder = studio.workspace.datasets / "mine"
    folder.mkdir(parents=True)
    scene(1).resize((8, 8)).save(folder / "0.png")
    for number in range(1, count):
        shutil.copy(folder / "0.png", folder / f"{number}.png")
    run = run_folder.start(
        DescribeSettings.from_values({"data": "mine"}), studio.workspace, studio.queue
    )
    answers = [Captioned(str(folder / f"{n}.txt"), "", f"answer {n}") for n in range(count)]
    list(run_folder.record(iter([*answers, Done("mine")]), run))
    page = Browser(studio)
    page.open()
    html = page.value("describe-card")
    assert html.count("<ins>answer") == 200 and f"{count} not written yet" in html
    assert ("And 1 more." in html) == (count == 201)
