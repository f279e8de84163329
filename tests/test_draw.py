"""The drawn world and the four training sets that ship with the program."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdlora.starter.draw import (
    BACKGROUNDS,
    COLOURS,
    PLACES,
    SIZES,
    STYLES,
    THINGS,
    Scene,
    caption,
    draw,
    random_scene,
)
from sdlora.starter.sets import PICTURES, SETS, draw_zibo, pictures, write_sets

TRAINING_DATA = Path(__file__).parents[1] / "training_data"


DISTINCT = ("red", "yellow", "green", "blue", "purple")


def _nearest_names(pixels: np.ndarray) -> list[str]:
    """Which of the distinct colours has the hue nearest to that of each pixel (n, 3)."""
    # Without its grey part a shaded or a lit colour points the same way as the plain one.
    named = np.array([COLOURS[name] for name in DISTINCT], float)
    named -= named.mean(1, keepdims=True)
    named /= np.linalg.norm(named, axis=1, keepdims=True)
    return [DISTINCT[i] for i in (pixels @ named.T).argmax(1)]


def test_same_scene_same_picture_and_another_seed_another():
    rng = random.Random(3)
    for scene in (random_scene(rng) for _ in range(8)):
        first = draw(scene)
        assert first.size == (128, 128) and first.mode == "RGB"
        assert first.tobytes() == draw(scene).tobytes()
        assert first.tobytes() != draw(replace(scene, seed=scene.seed + 1)).tobytes()


def test_a_scene_is_the_same_picture_at_other_sizes():
    scene = Scene("car", "red", "snow", "big", "middle", 5)
    large, small = draw(scene, 256).reduce(2), draw(scene, 128)
    assert np.abs(np.asarray(large, float) - np.asarray(small, float)).mean() < 3


@pytest.mark.parametrize("thing", THINGS)
def test_a_things_body_has_the_named_colour(thing: str):
    for number, colour in enumerate(DISTINCT):
        picture = np.asarray(draw(Scene(thing, colour, "snow", "big", "middle", number)), int)
        white = np.asarray(draw(Scene(thing, "white", "snow", "big", "middle", number)), int)
        # What differs from the white one is the coloured part: no background, no fixed accents.
        body = picture[np.abs(picture - white).sum(2) > 60]
        assert len(body) > 0.08 * 128 * 128
        assert _nearest_names(body).count(colour) > 0.6 * len(body), colour


def test_size_and_place_move_the_thing():
    def spot(size: str, place: str) -> tuple[float, float, float]:
        pair = (draw(Scene("ball", c, "meadow", size, place, 1)) for c in ("red", "blue"))
        y, x = np.nonzero(np.abs(np.subtract(*(np.asarray(p, int) for p in pair))).sum(2) > 60)
        return x.mean() / 128, y.mean() / 128, float(np.ptp(x)) / 128

    assert spot("small", "left")[0] < 0.35 < 0.65 < spot("small", "right")[0]
    assert spot("small", "top")[1] < 0.4 < 0.65 < spot("small", "bottom")[1]
    widths = [spot(size, "middle")[2] for size in SIZES]
    assert widths == sorted(widths) and widths[2] > 1.6 * widths[0]


def test_captions_name_what_is_there():
    rng = random.Random(1)
    scenes = [random_scene(rng) for _ in range(2000)]
    texts = [caption(scene, rng) for scene in scenes]
    for scene, text in zip(scenes, texts, strict=True):
        words = text.replace(",", "").split()
        assert scene.colour in words and scene.thing in words
        assert not set(words) & (set(COLOURS) - {scene.colour} | set(SIZES) - {scene.size})
    named = sum(scene.background in text for scene, text in zip(scenes, texts, strict=True))
    assert 0.8 < named / len(texts) < 0.9


def test_captions_include_what_users_write():
    rng = random.Random(1)
    house = Scene("house", "blue", "night", "big", "left")
    ball = Scene("ball", "red", "snow", "small", "top")
    assert "a big blue house, night background" in {caption(house, rng) for _ in range(500)}
    assert {"a red ball", "a red ball in the snow"} <= {caption(ball, rng) for _ in range(3000)}


@pytest.mark.parametrize("name", STYLES)
def test_a_style_changes_the_picture_but_not_its_shape(name: str):
    image = draw(Scene("cat", "orange", "night"))
    rng = random.Random(2)
    styled = [STYLES[name](image, rng) for _ in range(4)]
    assert all((s.size, s.mode) == (image.size, image.mode) for s in styled)
    assert image.tobytes() not in {s.tobytes() for s in styled}
    assert len({s.tobytes() for s in styled}) > 1
    assert styled[0].tobytes() == STYLES[name](image, random.Random(2)).tobytes()


@pytest.mark.parametrize("name", ["plain", *STYLES, *SETS])
def test_a_look_is_the_same_picture_at_twice_the_size(name: str):
    scene = Scene("cat", "orange", "meadow", seed=3)

    def drawn(pixels: int) -> np.ndarray:
        image = SETS[name].draw(scene, pixels) if name in SETS else draw(scene, pixels)
        image = STYLES[name](image, random.Random(2)) if name in STYLES else image
        assert image.size == (pixels, pixels)
        return np.asarray(image.reduce(pixels // 128), float) / 255

    error = ((drawn(128) - drawn(256)) ** 2).mean()
    assert -10 * np.log10(error) > 22  # few tones, or strokes, lie a little otherwise


@pytest.mark.parametrize("name", SETS)
def test_the_shipped_set_is_what_the_script_makes(name: str):
    expected = list(pictures(name))
    files = sorted(path.name for path in (TRAINING_DATA / name).iterdir())
    assert files == sorted(f"{stem}{end}" for stem, _, _ in expected for end in (".png", ".txt"))
    for stem, text, scene in expected:
        with Image.open(TRAINING_DATA / name / f"{stem}.png") as picture:
            assert picture.mode == "RGB"
            assert picture.tobytes() == SETS[name].draw(scene).tobytes(), stem
        written = (TRAINING_DATA / name / f"{stem}.txt").read_text(encoding="utf-8").strip()
        assert written == text and text.startswith(SETS[name].trigger + ", ")


@pytest.mark.parametrize("name", SETS)
def test_a_set_shows_everything_evenly(name: str):
    scenes = [scene for _, _, scene in pictures(name)]
    assert len(scenes) == PICTURES
    assert {s.background for s in scenes} == set(BACKGROUNDS)
    assert all(sum(s.background == b for s in scenes) == 4 for b in BACKGROUNDS)
    assert {s.place for s in scenes} == set(PLACES) and {s.size for s in scenes} == set(SIZES)
    if name in ("impressionist_style", "neon_lighting"):
        assert {s.thing for s in scenes} == set(THINGS)
        assert {s.colour for s in scenes} == set(COLOURS)


def test_zibo_always_looks_the_same():
    red, blue = (draw_zibo(Scene("zibo", colour, "sea", seed=4)) for colour in ("red", "blue"))
    assert red.tobytes() == blue.tobytes()


def test_writing_sets_keeps_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sdlora.starter.sets.SETS", {"zibo": SETS["zibo"]})
    assert write_sets(tmp_path) == PICTURES
    mine = next((tmp_path / "zibo").glob("*.txt"))
    mine.write_text("my own words", encoding="utf-8")
    assert write_sets(tmp_path) == 0
    assert mine.read_text(encoding="utf-8") == "my own words"
