"""Every setting is checked, says what is wrong with it, and comes back from its file."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from sdlora.errors import SettingsError, near
from sdlora.messages import PAGE
from sdlora.settings.image_request import ImageRequest
from sdlora.settings.presets import EFFORTS, GOALS, families, preset, with_preset
from sdlora.settings.train import TrainSettings

LEAST = {"data": "pictures", "name": "neon"}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"stepz": 5}, "there is no setting 'stepz'. Did you mean steps"),
        ({"steps": 0}, "steps must be 1 or more; 0 was given"),
        ({"steps": "many"}, "steps must be a whole number; 'many' was given"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number; nan was given"),
        ({"learning_rate": 0}, "learning_rate must be more than 0; 0 was given"),
        ({"dropout": 1}, "dropout must be less than 1; 1 was given"),
        ({"targets": ()}, "targets must have 1 or more entries"),
        (
            {"targets": ("atention",)},
            "targets, entry 1, must be one of 'attention', 'self_attention'",
        ),
        ({"group_rank": ("convs=3",)}, "'convs=3' is not GROUP=VALUE"),
        ({"group_rank": ("convs=3",)}, "Did you mean conv?"),
        ({"group_rank": ("conv=0",)}, "group_rank: '0' must be 1 or more"),
        ({"group_rank": ("conv=2", "conv=3")}, "conv is given twice"),
        ({"group_learning_rate": ("conv",)}, "such as conv=4"),
        ({"adapter": "oft", "group_dropout": ("conv=0.1",)}, "set dropout and max_norm to 0"),
        (
            {"goal": "person"},
            "goal must be one of 'style', 'character' or 'object'; 'person' was given",
        ),
        ({"name": "../x"}, "'../x' cannot be a name"),
        ({"name": "a" * 81}, "cannot be a name"),
        ({"seed": 2**32}, "seed must be less than 4294967296; 4294967296 was given"),
        ({"steps": 10, "warmup_steps": 20}, "warmup_steps = 20 is more than steps = 10"),
    ],
)
def test_a_wrong_setting_is_named(values: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        TrainSettings.from_values({**LEAST, **values})
    assert said in str(caught.value)


def test_a_picture_may_have_any_seed_that_torch_takes() -> None:
    largest = 2**64 - 1
    for values in ({"seed": largest}, {"seed": largest - 63, "count": 64}):
        assert ImageRequest.from_values(values).seed == values["seed"]
    with pytest.raises(SettingsError, match=f"image 2 would need a seed above {largest}"):
        ImageRequest.from_values({"seed": largest, "count": 2})
    with pytest.raises(SettingsError, match="seed must be less than 18446744073709551616"):
        ImageRequest.from_values({"seed": 2**64})


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        ImageRequest.from_values({"steps": 0, "guidance": -1, "width": 100})
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("values", "sentence", "fields"),
    [
        ({"steps": -5}, "Steps must be 1 or more; -5 was given.", {"steps"}),
        (
            {"resolution": 65.5},
            "Resolution must be a whole number; 65.5 was given.",
            {"resolution"},
        ),
        ({"name": "a/b"}, "'a/b' cannot be a name; use 1 to 80 letters, ", {"name"}),
        (
            {"group_rank": ("conv=x",)},
            "Rank per layer group: 'x' must be a whole number.",
            {"group_rank"},
        ),
        (
            {"steps": 10, "warmup_steps": 20},
            "Warmup steps = 20 is more than Steps = 10.",
            {"steps", "warmup_steps"},
        ),
        ({"adapter": "pissa", "max_norm": 1}, "Max weight norm is not for pissa", {"max_norm"}),
    ],
)
def test_on_the_page_a_mistake_names_fields_as_the_form_does(
    values: dict[str, Any], sentence: str, fields: set[str]
) -> None:
    with pytest.raises(SettingsError) as caught:
        TrainSettings.from_values({**LEAST, **values})
    assert caught.value.message.sentences(PAGE)[0].startswith(sentence)
    assert caught.value.fields.keys() == fields


def test_a_bad_name_hides_no_other_mistake() -> None:
    with pytest.raises(SettingsError) as caught:
        TrainSettings.from_values({**LEAST, "name": "../x", "steps": 0, "rank": 0})
    assert caught.value.fields.keys() == {"name", "steps", "rank"}


def _texts_of_pydantic(values: dict[str, Any]) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        TrainSettings.from_values({**LEAST, **values})
    return [text for text in caught.value.message.sentences(PAGE) if "Input should" in text]


def test_no_field_speaks_in_the_words_of_the_library() -> None:
    for name in TrainSettings.model_fields:
        for wrong in ("\udc80", -1e9, 1e9, [object()], None, {"a": 1}, "x", "", [], True, 0.3):
            try:
                TrainSettings.from_values({**LEAST, name: wrong})
            except SettingsError:
                assert _texts_of_pydantic({name: wrong}) == [], (name, wrong)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(SettingsError, match="data must be given"):
        TrainSettings.from_values({"name": "x"})


def test_there_and_back(tmp_path: Path) -> None:
    settings = TrainSettings.from_values(
        {**LEAST, "targets": ("conv",), "sample_prompts": ("a ü",)}
    )
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
    assert TrainSettings.from_values({**LEAST, "steps": 5}).warmup_steps == 5
    assert TrainSettings.from_values(LEAST).warmup_steps == 20
    short = with_preset(TrainSettings.from_values({**LEAST, "steps": 5}), "starter")
    assert TrainSettings.from_values(short.given()).warmup_steps == 5


EVERY_PRESET = list(itertools.product((*families(), "unheard of"), GOALS, EFFORTS))


@pytest.mark.parametrize(("family", "goal", "effort"), EVERY_PRESET)
def test_every_preset_is_valid_and_yields_to_the_user(family: str, goal: Any, effort: Any) -> None:
    asked = {**LEAST, "goal": goal, "effort": effort}
    chosen = with_preset(TrainSettings.from_values(asked), family)
    wanted = preset(family, goal, effort)
    assert {name: getattr(chosen, name) for name in wanted} == wanted
    mine = with_preset(TrainSettings.from_values({**asked, "rank": 3, "steps": 1000}), family)
    assert (mine.rank, mine.steps) == (3, 1000)
    left = {"base_precision", "gradient_checkpointing", "stream_blocks"}  # to the memory plan
    assert mine.given().keys() - {"optimizer"} == (
        TrainSettings.model_fields.keys() - left - {"optimizer"}
    ), "a run keeps all it was"


def test_presets_go_from_the_general_to_the_particular() -> None:
    steps = [preset("starter", "style", effort)["steps"] for effort in EFFORTS]
    assert steps == sorted(steps) and len(set(steps)) == 3
    assert preset("starter", "style") == preset("starter", "character")
    assert preset("sdxl", "object") == {**preset("any", "object"), "rank": 32, "alpha": 16}
    assert preset("sdxl", "style", "fast")["steps"] == preset("any", "style", "fast")["steps"]
    assert preset("unheard of", "object", "quality") == preset("any", "object", "quality")
    assert preset("sd1", "character", "quality")["train_text_encoder"]
    assert "train_text_encoder" not in preset("sd1", "style", "quality")


def test_every_field_has_its_sentence() -> None:
    for settings in (TrainSettings, ImageRequest):
        for name, field in settings.model_fields.items():
            assert field.description and field.description[0].isupper(), name


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("neon_lightning", ["neon_lighting"]),
        ("neon", ["neon_lighting"]),
        ("NEPN", ["neon_lighting"]),
        ("zib", ["Zibo"]),
        ("xy", []),
        ("quite another", []),
        ("", []),
    ],
)
def test_a_word_suggests_those_it_looks_like_or_begins_like(given: str, meant: list[str]) -> None:
    assert near(given, ["neon_lighting", "Zibo", "impressionist_style"]) == meant
