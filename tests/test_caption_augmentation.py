"""Captions as they are worded: what stays, what is drawn, and from what it is drawn."""

from collections import Counter
from typing import Any

import pytest

from sdlora.data.caption_augmentation import CaptionAugmenter, find_wildcard_lists
from sdlora.data.image_augmentation import image_views, seeded_random
from sdlora.settings.train import TrainSettings

CAPTION = "zibo, sea, night, moon, boat"


def settings(**values: Any) -> TrainSettings:
    return TrainSettings.from_values({"data": "d", "name": "n", **values})


def worded(caption: str, times: int = 200, **values: Any) -> list[str]:
    wording = CaptionAugmenter(settings(**values))
    return [wording.drawn(caption, seeded_random(0, number)) for number in range(times)]


def test_nothing_changes_unless_asked() -> None:
    wording = CaptionAugmenter(settings())
    assert not wording.varies(CAPTION)
    assert set(worded(CAPTION)) == {CAPTION} == set(wording.variants(CAPTION, "p"))


@pytest.mark.parametrize(
    ("prefix", "suffix", "said"),
    [
        ("a photo of", "", "a photo of red ball"),
        ("photo,", ", sharp", "photo, red ball, sharp"),
        ("", "at night", "red ball at night"),
    ],
)
def test_prefix_and_suffix_are_for_own_pictures(prefix: str, suffix: str, said: str) -> None:
    wording = CaptionAugmenter(settings(caption_prefix=prefix, caption_suffix=suffix))
    assert wording.plain("red ball") == wording.drawn("red ball", seeded_random(1)) == said
    assert wording.plain("red ball", own=False) == "red ball"


def test_tags_are_shuffled_behind_those_that_are_kept() -> None:
    drawn = worded(CAPTION, shuffle_tags=True, keep_tags=2)
    assert all(caption.startswith("zibo, sea, ") for caption in drawn)
    assert all(sorted(caption.split(", ")) == sorted(CAPTION.split(", ")) for caption in drawn)
    orders = Counter(drawn)
    assert len(orders) == 6 and min(orders.values()) > 15  # all orders of three, about as often


def test_tags_are_left_out_one_by_one_in_their_order() -> None:
    drawn = [caption.split(", ") for caption in worded(CAPTION, tag_dropout=0.5)]
    assert all(tags[0] == "zibo" for tags in drawn)
    assert all(tags == [tag for tag in CAPTION.split(", ") if tag in tags] for tags in drawn)
    assert 1.7 < sum(len(tags) - 1 for tags in drawn) / len(drawn) < 2.3
    assert worded(CAPTION, 1, tag_dropout=1.0) == ["zibo"]


def test_lines_and_wildcards_are_drawn() -> None:
    assert set(worded("one\ntwo", 50)) == {"one", "two"}
    assert CaptionAugmenter(settings()).plain("one\ntwo") == "one"
    drawn = set(worded("a {red|blue} ball", 50, caption_wildcards=True))
    assert drawn == {"a red ball", "a blue ball"}
    assert worded("a {red|blue} ball", 1) == ["a {red|blue} ball"]


PETS = {"pet": ("cat", "__big__ dog"), "big": ("large", "huge")}


def test_a_list_is_drawn_from_and_what_its_lines_name_in_turn() -> None:
    wording = CaptionAugmenter(settings(caption_wildcards=True), PETS)
    caption = "zibo, a __pet__ and a __Pet__"
    drawn = {wording.drawn(caption, seeded_random(0, number)) for number in range(80)}
    pets = ("cat", "large dog", "huge dog")
    assert drawn == {f"zibo, a {one} and a {other}" for one in pets for other in pets}
    assert wording.varies(caption) and not wording.varies("a cat")
    assert wording.plain(caption) in drawn and wording.plain(caption) == wording.plain(caption)
    assert CaptionAugmenter(settings(), PETS).drawn(caption, seeded_random(0)) == caption, (
        "only where it is wanted"
    )
    assert wording.drawn("a __bird__", seeded_random(0)) == "a __bird__"


def test_lists_are_gathered_with_those_that_they_name() -> None:
    shelf = {**PETS, "other": ("x",)}
    found = find_wildcard_lists(["a __PET__", "__bird__ in a tree"], shelf.get)
    assert found == {**PETS, "bird": ()}
    circle = {"a": ("__b__",), "b": ("__a__",)}
    assert find_wildcard_lists(["__a__"], circle.get) == circle


def test_variants_are_so_many_and_depend_on_seed_and_picture() -> None:
    def of(seed: int, picture: str) -> tuple[str, ...]:
        return CaptionAugmenter(
            settings(shuffle_tags=True, seed=seed, caption_variants=5)
        ).variants(CAPTION, picture)

    assert len(of(1, "a")) == 5
    assert of(1, "a") == of(1, "a") != of(2, "a")
    assert of(1, "a") != of(1, "b")


def test_views_begin_with_the_middle_as_it_is_and_vary_within_bounds() -> None:
    plain = image_views(settings(), "p")
    assert [tuple(view) for view in plain] == [((0.5, 0.5), False, (1.0, 1.0, 1.0), "white")]
    views = image_views(
        settings(crop_jitter=0.5, colour_jitter=0.2, flip=True, picture_variants=40), "p"
    )
    assert len(views) == 80 and views[0] == plain[0]
    assert all(b == a._replace(mirrored=True) for a, b in zip(views[::2], views[1::2], strict=True))
    centres = [place for view in views for place in view.centre]
    factors = [factor for view in views for factor in view.colours]
    assert 0.25 <= min(centres) < 0.3 and 0.7 < max(centres) <= 0.75
    assert 1 / 1.2 <= min(factors) < 0.87 and 1.15 < max(factors) <= 1.2
    assert len(set(views)) == 80
    assert image_views(settings(crop_jitter=1.0), "p") != image_views(
        settings(crop_jitter=1.0), "q"
    )
