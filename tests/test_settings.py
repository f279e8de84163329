"""Every setting is checked, says what is wrong with it, and comes back from its file."""

from pathlib import Path
from typing import Any

import pytest

from sdlora.errors import SettingsError
from sdlora.settings import PRESETS, ImageRequest, TrainSettings, preset, with_preset

LEAST = {"data": "pictures", "name": "neon"}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"stepz": 5}, "there is no setting 'stepz'. Did you mean steps"),
        ({"steps": 0}, "steps = 0: "),
        ({"steps": "many"}, "steps = 'many': "),
        ({"learning_rate": float("nan")}, "learning_rate = nan: "),
        ({"learning_rate": 0}, "learning_rate = 0: "),
        ({"dropout": 1}, "dropout = 1: "),
        ({"targets": ()}, "targets = (): "),
        ({"targets": ("atention",)}, "targets.0 = 'atention': "),
        ({"goal": "person"}, "goal = 'person': "),
        ({"name": "../x"}, "'../x' cannot be a name"),
        ({"name": "a" * 81}, "cannot be a name"),
        ({"seed": 2**32}, "seed = 4294967296: "),
        ({"steps": 10, "warmup_steps": 20}, "warmup_steps = 20 is more than steps = 10"),
    ],
)
def test_a_wrong_setting_is_named(values: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        TrainSettings.of({**LEAST, **values})
    assert said in str(caught.value)


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        ImageRequest.of({"steps": 0, "guidance": -1, "width": 100})
    assert len(str(caught.value).splitlines()) == 3


def test_what_is_missing_is_named() -> None:
    with pytest.raises(SettingsError, match="data: "):
        TrainSettings.of({"name": "x"})


def test_there_and_back(tmp_path: Path) -> None:
    settings = TrainSettings.of({**LEAST, "targets": ("conv",), "sample_prompts": ("a ü",)})
    file = tmp_path / "settings.json"
    file.write_text(settings.to_json(), encoding="utf-8")
    again = TrainSettings.load(file)
    assert again == settings and again.given() == settings.given()
    file.write_text("[1]", encoding="utf-8")
    with pytest.raises(SettingsError):
        TrainSettings.load(file)
    with pytest.raises(SettingsError, match="cannot be read as settings"):
        TrainSettings.load(tmp_path / "nothing.json")


def test_a_short_run_warms_up_less() -> None:
    assert TrainSettings.of({**LEAST, "steps": 5}).warmup_steps == 5
    assert TrainSettings.of(LEAST).warmup_steps == 20
    short = with_preset(TrainSettings.of({**LEAST, "steps": 5}), "starter")
    assert TrainSettings.of(short.given()).warmup_steps == 5


@pytest.mark.parametrize(("family", "goal"), PRESETS)
def test_every_preset_is_valid_and_yields_to_the_user(family: str, goal: Any) -> None:
    chosen = with_preset(TrainSettings.of({**LEAST, "goal": goal}), family)
    wanted = preset(family, goal)
    assert {name: getattr(chosen, name) for name in wanted} == wanted
    mine = TrainSettings.of({**LEAST, "goal": goal, "rank": 3, "steps": 1000})
    assert (with_preset(mine, family).rank, with_preset(mine, family).steps) == (3, 1000)


def test_every_field_has_its_sentence() -> None:
    for settings in (TrainSettings, ImageRequest):
        for name, field in settings.model_fields.items():
            assert field.description and field.description[0].isupper(), name
