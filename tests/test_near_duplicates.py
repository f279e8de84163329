"""What looks the same and what does not, on pictures with the spectrum of photographs."""

import io
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from sdlora.data.near_duplicates import (
    BLURRED_PX,
    DuplicateMatch,
    edge_width,
    fingerprint,
    near_duplicates,
)

COUNT, SIDE = 30, 256


def natural(seed: int) -> Image.Image:
    """Clouds whose spectrum falls as that of photographs does, 1/f (Field 1987, Relations between
    the statistics of natural images), with some edges in them."""
    rng = np.random.default_rng(seed)
    waves = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.fftfreq(SIDE)[None])
    waves[0, 0] = 1
    noise = np.fft.fft2(rng.standard_normal((SIDE, SIDE))) / waves
    clouds = np.fft.ifft2(noise).real
    clouds = (clouds - clouds.mean()) / clouds.std()
    picture = np.stack([clouds * rng.uniform(30, 60) + rng.uniform(80, 170) for _ in range(3)], -1)
    for _ in range(5):
        left, top = rng.integers(0, SIDE, 2)
        wide, high = rng.integers(20, 100, 2)
        picture[top : top + high, left : left + wide] += rng.uniform(-70, 70, 3)
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return [natural(seed) for seed in range(COUNT)]


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def cut(image: Image.Image, share: float) -> Image.Image:
    edge = round(share * SIDE)
    return image.crop((edge, edge, SIDE - edge, SIDE - edge))


def bright(image: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(1.1)


@pytest.mark.parametrize(
    ("copied", "least"),
    [
        (lambda image: jpeg(image, 30), 1.0),
        (lambda image: jpeg(image.resize((90, 90)), 60), 1.0),
        (bright, 0.9),
        (lambda image: cut(image, 0.01), 0.9),
        (lambda image: cut(image, 0.02), 0.6),
    ],
)
def test_a_copy_looks_the_same(
    copied: Callable[[Image.Image], Image.Image], least: float, pictures: list[Image.Image]
) -> None:
    prints = [fingerprint(image) for image in pictures]
    for turned in (False, True):
        copies = [copied(ImageOps.mirror(image) if turned else image) for image in pictures]
        found = near_duplicates([*prints, *map(fingerprint, copies)])
        right = [found.get(COUNT + n) == DuplicateMatch(n, turned) for n in range(COUNT)]
        assert sum(right) >= least * COUNT
        assert all(found[place].other == place - COUNT for place in found), "and nothing else does"


def test_different_pictures_are_different(pictures: list[Image.Image]) -> None:
    assert near_duplicates([fingerprint(image) for image in pictures]) == {}
    assert near_duplicates([]) == near_duplicates([fingerprint(pictures[0])]) == {}
    plain = [Image.new("RGB", (SIDE, SIDE), colour) for colour in ("red", "blue", "white")]
    for one, other in combinations(plain, 2):
        assert near_duplicates([fingerprint(one), fingerprint(other)]) == {}


@pytest.mark.parametrize(("spread", "blurred"), [(0, 0.0), (0.7, 0.0), (3, 1.0), (5, 1.0)])
def test_what_is_blurred_has_wide_edges(
    spread: float, blurred: float, pictures: list[Image.Image]
) -> None:
    seen = [image.filter(ImageFilter.GaussianBlur(spread)) for image in pictures[:10]]
    told = [edge_width(image) > BLURRED_PX for image in seen]
    assert sum(told) / len(told) == blurred
