"""What LoRA files say of themselves, and others beside them: used, or left out by name."""

import json
from pathlib import Path

import pytest

from raw_lora import beside, lora, shapes_of
from sdlora.lora.library.file_info import MAX_SIDECAR, Facts
from sdlora.lora.library.library import Library, trigger_words


def only(folder: Path) -> Facts:
    """Those of the one file in a folder."""
    (entry,) = Library([folder]).list()
    return entry.facts


def test_what_a1111_keeps_beside_a_file(tmp_path: Path) -> None:
    said = {"activation text": "<lora:a:1> zibo, robot,, zibo", "preferred weight": 0.7,
            "negative text": "blurry", "sd version": "SD1", "notes": "x"}  # fmt: skip
    path = lora(tmp_path / "a.safetensors", **{"modelspec.trigger_phrase": "other"})
    beside(path, ".json", said)
    facts = only(tmp_path)
    assert facts.trigger_words == ["zibo", "robot"], "the user's own words come first"
    assert (facts.preferred_weight, facts.negative_text, facts.notes) == (0.7, "blurry", [])


def test_what_civitai_says_of_a_file(tmp_path: Path) -> None:
    path = lora(tmp_path / "a.safetensors", ss_tag_frequency='{"a": {"sea": 3}}')
    page = {"trainedWords": ["zibo, metal", "robot,"], "model": {"name": "Zibo!"}}
    beside(path, ".civitai.info", page)
    assert only(tmp_path).trigger_words == ["zibo, metal", "robot"]
    assert only(tmp_path).title == "Zibo!"
    lora(path, **{"modelspec.trigger_phrase": "said", "modelspec.title": "Its own"})
    assert (only(tmp_path).trigger_words, only(tmp_path).title) == (["said"], "Its own")


@pytest.mark.parametrize(
    ("ending", "said", "base"),
    [
        (".json", {"sd version": "SD2"}, "sd2"),
        (".json", {"sd version": "Unknown"}, ""),
        (".civitai.info", {"baseModel": "SD 1.5"}, "sd1"),
        (".civitai.info", {"baseModel": "SDXL 1.0"}, "sdxl"),
        (".civitai.info", {"baseModel": "Pony"}, "sdxl"),
        (".civitai.info", {"baseModel": "SD 3.5 Large"}, "sd3"),
        (".civitai.info", {"baseModel": "Flux.1 D"}, "flux"),
        (".civitai.info", {"baseModel": ["?"]}, ""),
    ],
)
def test_base_said_beside_counts_where_shapes_tell_nothing(
    ending: str, said: object, base: str, tmp_path: Path
) -> None:
    untold = lora(tmp_path / "a" / "untold.safetensors", shapes=shapes_of(64, 4, "lora_unet_x"))
    told = lora(tmp_path / "b" / "told.safetensors", 128)
    beside(untold, ending, said)
    beside(told, ending, said)
    assert (only(untold.parent).base, only(told.parent).base) == (base, "starter")


@pytest.mark.parametrize(
    "said", ["{damaged", "[1]", "[" * 100_000, '"x"', "\x00", f'{{"a": "{"x" * MAX_SIDECAR}"}}']
)
def test_a_damaged_sidecar_is_left_out_by_name(said: str, tmp_path: Path) -> None:
    path = lora(tmp_path / "a.safetensors")
    beside(path, ".json", said)
    beside(path, ".civitai.info", {"trainedWords": ["zibo"]})
    facts = only(tmp_path)
    assert facts.notes == ["a.json is not used: it is damaged or larger than 1 MiB"]
    assert facts.trigger_words == ["zibo"] and not facts.problem


@pytest.mark.parametrize("weight", ["NaN", "1e999", "-11", '"strong"', "[1]", "true", "9" * 400])
def test_a_weight_that_is_none_is_left_out(weight: str, tmp_path: Path) -> None:
    beside(lora(tmp_path / "a.safetensors"), ".json", f'{{"preferred weight": {weight}}}')
    assert only(tmp_path).preferred_weight is None
    assert "is not a number within ±10" in only(tmp_path).notes[0]


@pytest.mark.parametrize("weight", ["0.7", '"0.7"', '" +.70 "'])
def test_a_weight_may_be_written_as_text(weight: str, tmp_path: Path) -> None:
    beside(lora(tmp_path / "a.safetensors"), ".json", f'{{"preferred weight": {weight}}}')
    assert (only(tmp_path).preferred_weight, only(tmp_path).notes) == (0.7, [])


@pytest.mark.parametrize(
    "said", [{"preferred weight": 0}, {"preferred weight": "0"}, {"preferred weight": None}, {}]
)
def test_no_weight_is_no_mistake(said: object, tmp_path: Path) -> None:
    beside(lora(tmp_path / "a.safetensors"), ".json", said)
    assert (only(tmp_path).preferred_weight, only(tmp_path).notes) == (None, [])


@pytest.mark.parametrize(
    "odd",
    [
        {"activation text": 7, "negative text": ["x"]},
        {"trainedWords": {"a": 1}, "model": [], "baseModel": None},
        {"trainedWords": [1, None, {"a": "b"}], "model": {"name": 3}},
    ],
)
def test_odd_values_do_no_harm(odd: object, tmp_path: Path) -> None:
    path = lora(tmp_path / "a.safetensors")
    beside(path, ".json", odd)
    beside(path, ".civitai.info", odd)
    assert not only(tmp_path).trigger_words and not only(tmp_path).title


def test_texts_of_strangers_are_made_plain_and_short(tmp_path: Path) -> None:
    nasty = "a\nb\x00\u202e\ud800<b>" + "x" * 10_000
    tags = json.dumps({"a": {nasty: 9, "sea": 2}})
    lora(tmp_path / "a.safetensors", ss_output_name=nasty, ss_tag_frequency=tags)
    facts = only(tmp_path)
    for text in (facts.alias, *facts.top_tags):
        assert text.isprintable() and len(text) <= 2000
    assert list(facts.top_tags.values()) == [9, 2]


def test_the_preview_is_the_picture_of_its_name(tmp_path: Path) -> None:
    lora(tmp_path / "a.v1.safetensors")
    library = Library([tmp_path])
    assert library.list()[0].preview is None
    # from the last that is taken to the first
    for name in ("a.v1.webp", "a.v1.jpeg", "a.v1.JPG", "a.v1.preview.jpg", "a.v1.png",
                 "A.v1.Preview.PNG"):  # fmt: skip
        (tmp_path / name).touch()
        assert library.list()[0].preview == tmp_path / name
    (tmp_path / "b.png").touch()
    assert library.list()[0].preview == tmp_path / "A.v1.Preview.PNG"


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"modelspec.trigger_phrase": "neon lighting"}, ("neon lighting",)),
        ({"modelspec.trigger_phrase": "1.10"}, ("1.10",)),
        ({"trained_words": '["zibo", "robot"]'}, ("zibo", "robot")),
        ({"trained_words": "zibo, robot"}, ("zibo", "robot")),
        ({"ss_tag_frequency": json.dumps({"10_a": {"zibo": 20, "sea": 3}})}, ("zibo",)),
        ({"ss_tag_frequency": json.dumps({"a": {"x": 2, "y": 3}, "b": {"x": 2}})}, ("x",)),
        ({"ss_tag_frequency": json.dumps({"a": {c: 1 for c in "abcdefgh"}})}, ()),
        ({"ss_tag_frequency": json.dumps({"a": {"x": "7", "y": -1, "z": None}})}, ()),
        ({"ss_tag_frequency": "{broken"}, ()),
        ({"ss_tag_frequency": "[1]"}, ()),
        ({}, ()),
    ],
)
def test_trigger_words(metadata: dict[str, str], words: tuple[str, ...]) -> None:
    assert trigger_words(metadata) == words
