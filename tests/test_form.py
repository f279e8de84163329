"""Every setting has its place in a form, and comes back from it as it went in."""

from typing import Any

import pytest

from sdlora.settings import ImageRequest, TrainSettings
from webui.form import Form, component, widget


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
