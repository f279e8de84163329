"""The text in a picture, as A1111 writes it, and read back by A1111's own rule."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from sdlora.image_metadata.infotext import infotext, lora_hashes, write_png

# AUTOMATIC1111/stable-diffusion-webui, modules/infotext_utils.py: re_param_code
A1111 = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def read_back(line: str) -> dict[str, str]:
    pairs = A1111.findall(line)
    return {key: json.loads(value) if value[:1] == '"' else value for key, value in pairs}


def test_whole_text() -> None:
    fields = {"Steps": 20, "Sampler": "Euler a", "Seed": 1, "Model": None, "Size": "64x64"}
    assert infotext("a cat <lora:neon:0.8>", "dull", fields) == (
        "a cat <lora:neon:0.8>\nNegative prompt: dull\n"
        "Steps: 20, Sampler: Euler a, Seed: 1, Size: 64x64"
    )


def test_empty_negative_has_no_line() -> None:
    assert infotext("a", "", {"Steps": 1}) == "a\nSteps: 1"
    assert infotext("", "", {"Steps": 1}) == "Steps: 1"


def test_fields_stand_in_a1111s_order() -> None:
    fields = {
        "Version": "x", "Hires upscale": 2, "Lora hashes": "a: 1", "TI hashes": "b: 2",
        "Clip skip": 2, "Model": "m", "Size": "8x8", "Seed": 1, "Steps": 9, "Tiling": "Tiling",
    }  # fmt: skip
    assert infotext("p", "", fields).split("\n")[1] == (
        "Steps: 9, Seed: 1, Size: 8x8, Model: m, Clip skip: 2, Tiling, Hires upscale: 2, "
        'Lora hashes: "a: 1", TI hashes: "b: 2", Version: x'
    )


@pytest.mark.parametrize(
    "value", ["plain", "a, b", "a: b", 'say "x", y', "two\nlines", "a\\b, c", "猫, 犬", "", " a "]
)
def test_fields_survive(value: str) -> None:
    line = infotext("p", "", {"Steps": 3, "Odd": value, "Seed": 9}).split("\n")[1]
    expected = {"Steps": "3", "Seed": "9", "Odd": value}
    assert read_back(line) == {key: text for key, text in expected.items() if text}


def test_lora_hashes() -> None:
    hashes = lora_hashes({"neon": "1a2b3c4d5e6f", "a:b,c": "0f"})
    assert hashes == "neon: 1a2b3c4d5e6f, abc: 0f"
    line = infotext("p", "", {"Steps": 1, "Lora hashes": hashes, "Version": "x"}).split("\n")[1]
    assert read_back(line)["Lora hashes"] == hashes


def test_png_keeps_the_text(tmp_path: Path) -> None:
    text = infotext("猫 <lora:neon:0.8>", "", {"Steps": 20, "Seed": 1, "Size": "8x8"})
    path = write_png(Image.new("RGB", (8, 8), "red"), tmp_path / "day" / "a.png", text)
    with Image.open(path) as image:
        assert image.text == {"parameters": text}  # type: ignore[attr-defined]
        assert image.getpixel((0, 0)) == (255, 0, 0)
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]
