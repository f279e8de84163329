"""Every setting has its place in a form, and comes back from it as it went in."""

from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from sdlora.settings import ImageRequest, TrainSettings
from sdlora.workspace import Workspace
from surfing import StudioWithoutWorker
from webui.form import Form, component, widget
from webui.tabs import generate, train


@pytest.mark.parametrize("settings", [TrainSettings, ImageRequest])
def test_every_setting_has_a_component(settings: type[Any]) -> None:
    for name, field in settings.model_fields.items():
        part = component(settings, name)
        assert part.label.lower() == name.replace("_", " ")
        assert part.info == field.description
        row, _ = widget(field)
        if not field.is_required() and field.default is not None:
            assert row.parse(part.value) == field.default, name


def test_a_form_reads_back_what_it_shows() -> None:
    form = Form(TrainSettings)
    form.add(*TrainSettings.model_fields)
    values = {
        "data": "x", "name": "y", "goal": "character", "targets": ("conv",), "rank": 3,
        "resolution": 128, "flip": True, "sample_prompts": ("a", "b"), "learning_rate": 2e-3,
    }  # fmt: skip
    shown = form.show(values)
    assert form.read(shown) == values
    assert TrainSettings.of(form.read(shown)) == TrainSettings.of(values)
    wiped = {**shown, form.fields["rank"]: None, form.fields["resolution"]: None}
    assert form.read(wiped).keys() == values.keys() - {"rank", "resolution"}
    blank = {**shown, form.fields["sample_prompts"]: " \n b \n\n"}
    assert form.read(blank)["sample_prompts"] == ("b",)


@pytest.mark.parametrize("settings", [TrainSettings, ImageRequest])
def test_every_setting_stands_in_one_group(settings: type[Any]) -> None:
    shown = [name for names in settings.groups().values() for name in names]
    assert sorted(shown) == sorted(settings.model_fields)


def test_every_setting_is_on_the_page_once(workspace: Path) -> None:
    studio = StudioWithoutWorker(Workspace.open(workspace))
    with gr.Blocks():
        asked, making = train.build(studio), generate.build(studio)
    on_page = [*asked.form.fields, *asked.advanced.fields]
    assert sorted([*on_page, "data"]) == sorted(TrainSettings.model_fields), "data is the set's"
    assert making.form.fields.keys() == ImageRequest.model_fields.keys()


def test_the_rest_of_a_form_comes_by_groups() -> None:
    class Odd(TrainSettings):
        brand_new: bool = False

    assert Odd.groups()["More"] == ("brand_new",)
    with gr.Blocks() as page:
        form = Form(Odd)
        form.add("name", "rank")
        form.add_rest(*Odd.groups()["What to learn"])
    shown = [b.value for b in page.blocks.values() if isinstance(b, gr.HTML)]
    titles = [text for text in shown if "data-group" in text]
    assert 'aria-expanded="true"' in titles[0] and 'aria-expanded="false"' in titles[1]
    assert len(titles) == len(Odd.groups()) - 1, "nothing of the first group is left"
    assert "More" in titles[-1] and list(form.fields)[-1] == "brand_new"
    assert [*form.fields].count("rank") == 1
