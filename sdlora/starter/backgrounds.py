"""The five places of the drawn world: soft layered backdrops a small VAE can hold on to."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from sdlora.starter.shapes import RGB, WHITE, box, cloud, mix, oval, poly


@dataclass(frozen=True)
class Canvas:
    """A square canvas addressed in shares of its side (0..1), y down."""

    image: Image.Image
    pen: ImageDraw.ImageDraw

    def fill(self, points: np.ndarray, colour: RGB) -> None:
        """Fill the closed polygon (n, 2)."""
        self.pen.polygon((points * self.image.width).ravel().tolist(), fill=colour)

    def dot(self, x: float, y: float, radius: float, colour: RGB) -> None:
        """Fill a circle."""
        self.fill(oval(x, y, radius, radius, corners=20), colour)

    def hill(self, height: float, swing: float, waves: float, phase: float, colour: RGB) -> None:
        """Fill everything below a soft wave at `height`."""
        x = np.linspace(0, 1, 28)
        y = height + swing * np.sin(2 * np.pi * (waves * x + phase))
        self.fill(np.concatenate([np.stack([x, y], 1), [[1.01, 1.01], [0, 1.01]]]), colour)


@lru_cache(maxsize=32)
def _sky(top: RGB, bottom: RGB, reach: float, side: int) -> Image.Image:
    """(side, side) vertical gradient, complete at `reach` of the height."""
    t = np.clip(np.linspace(0, 1 / reach, side), 0, 1)[:, None]
    column = np.asarray(top) * (1 - t) + np.asarray(bottom) * t
    return Image.fromarray(column.round().astype(np.uint8)[:, None]).resize((side, side))


def _sun(sheet: Canvas, x: float, y: float, radius: float, *, colour: RGB, halo: RGB) -> None:
    sheet.dot(x, y, radius * 1.5, halo)
    sheet.dot(x, y, radius, colour)


def _side(rng: random.Random) -> float:
    """A spot near the left or the right edge, where the thing leaves room."""
    return rng.choice((rng.uniform(0.1, 0.22), rng.uniform(0.78, 0.9)))


def _meadow(sheet: Canvas, rng: random.Random) -> None:
    _sun(
        sheet,
        _side(rng),
        rng.uniform(0.12, 0.2),
        0.075,
        colour=(255, 224, 112),
        halo=(232, 234, 200),
    )
    for _ in range(2):
        sheet.fill(
            cloud(rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.32), rng.uniform(0.11, 0.16), 0.05, 6),
            (244, 250, 254),
        )
    sheet.hill(0.58, 0.05, 0.9, rng.random(), (168, 214, 134))
    sheet.hill(0.66, 0.04, 0.7, rng.random(), (138, 198, 108))
    sheet.hill(0.80, 0.03, 0.8, rng.random(), (118, 184, 92))
    for _ in range(7):
        x, y = rng.random(), rng.uniform(0.86, 0.97)
        sheet.dot(x, y, 0.017, rng.choice(((255, 250, 240), (255, 190, 200), (255, 226, 120))))
        sheet.dot(x, y, 0.007, (250, 176, 70))


def _night(sheet: Canvas, rng: random.Random) -> None:
    x, y = _side(rng), rng.uniform(0.13, 0.2)
    _sun(sheet, x, y, 0.085, colour=(250, 240, 206), halo=(66, 72, 128))
    sheet.dot(x + 0.03, y - 0.02, 0.017, (232, 218, 178))
    sheet.dot(x - 0.025, y + 0.025, 0.022, (232, 218, 178))
    for _ in range(11):
        sheet.dot(rng.random(), rng.uniform(0.03, 0.55), rng.uniform(0.007, 0.012), (236, 232, 214))
    sheet.hill(0.62, 0.05, 0.8, rng.random(), (52, 60, 116))
    sheet.hill(0.72, 0.04, 0.7, rng.random(), (40, 48, 96))
    sheet.hill(0.84, 0.03, 0.9, rng.random(), (30, 38, 78))


def _sea(sheet: Canvas, rng: random.Random) -> None:
    _sun(sheet, rng.uniform(0.2, 0.8), 0.40, 0.13, colour=(255, 206, 128), halo=(255, 226, 178))
    sheet.fill(cloud(_side(rng), rng.uniform(0.1, 0.24), 0.14, 0.045, 6), (255, 248, 240))
    sheet.hill(0.48, 0.0, 1, 0, (92, 190, 204))
    x = np.linspace(0, 1, 64)
    for height, colour in ((0.58, (66, 170, 196)), (0.70, (48, 148, 186)), (0.83, (38, 126, 172))):
        crest = height - 0.022 * np.abs(np.sin(np.pi * (4 * x + rng.random())))
        edge = np.stack([x, crest], 1)
        sheet.fill(
            np.concatenate([edge - (0, 0.012), [[1.01, 1.01], [0, 1.01]]]), mix(colour, WHITE, 0.45)
        )
        sheet.fill(np.concatenate([edge + (0, 0.006), [[1.01, 1.01], [0, 1.01]]]), colour)


def _cactus(sheet: Canvas, x: float, y: float, size: float) -> None:
    green = (104, 152, 96)
    for left, top, right, bottom in (
        (-0.13, -1, 0.13, 0.1),
        (-0.48, -0.62, -0.26, -0.2),
        (-0.48, -0.36, 0.0, -0.2),
        (0.26, -0.76, 0.46, -0.34),
        (0, -0.5, 0.46, -0.34),
    ):
        sheet.fill(box(left, top, right, bottom, 0.12) * size + (x, y), green)


def _desert(sheet: Canvas, rng: random.Random) -> None:
    _sun(
        sheet,
        _side(rng),
        rng.uniform(0.16, 0.24),
        0.1,
        colour=(255, 240, 190),
        halo=(255, 214, 150),
    )
    sheet.hill(0.56, 0.05, 0.8, rng.random(), (236, 170, 112))
    sheet.hill(0.68, 0.05, 0.6, rng.random(), (240, 190, 118))
    spot = _side(rng)
    _cactus(sheet, spot, rng.uniform(0.74, 0.78), rng.uniform(0.24, 0.3))
    sheet.hill(0.80, 0.035, 0.7, rng.random(), (230, 172, 100))
    sheet.fill(oval(1 - spot, 0.92, 0.05, 0.022), (200, 140, 86))


def _fir(sheet: Canvas, x: float, y: float, size: float) -> None:
    for width, top, bottom in ((0.46, -0.62, 0.0), (0.36, -0.86, -0.36), (0.24, -1.06, -0.66)):
        sheet.fill(
            poly([(-width, bottom), (0, top), (width, bottom)], soft=0.1) * size + (x, y),
            (98, 142, 148),
        )
    sheet.fill(poly("-0.13,-0.84 0,-1.06 0.13,-0.84", soft=0.06) * size + (x, y), (244, 248, 252))


def _snow(sheet: Canvas, rng: random.Random) -> None:
    sheet.hill(0.54, 0.05, 0.8, rng.random(), (214, 226, 240))
    spot = _side(rng)
    _fir(sheet, spot, 0.70, rng.uniform(0.2, 0.25))
    _fir(sheet, spot + (0.12 if spot < 0.5 else -0.12), 0.71, 0.15)
    _fir(sheet, 1 - spot, 0.70, rng.uniform(0.14, 0.19))
    sheet.hill(0.69, 0.03, 0.7, rng.random(), (230, 239, 248))
    sheet.hill(0.82, 0.03, 0.9, rng.random(), (246, 250, 254))
    for _ in range(13):
        sheet.dot(rng.random(), rng.uniform(0.03, 0.6), rng.uniform(0.010, 0.016), WHITE)


@dataclass(frozen=True)
class Backdrop:
    """Sky colours, the layers' painter, the shadow's colour, and the light edge of things."""

    top: RGB
    bottom: RGB
    layers: Callable[[Canvas, random.Random], None]
    shadow: RGB
    rim: RGB | None = None


BACKDROPS: dict[str, Backdrop] = {
    "meadow": Backdrop((142, 204, 246), (226, 244, 250), _meadow, (70, 130, 66)),
    "night": Backdrop((26, 28, 78), (78, 80, 146), _night, (14, 18, 48), (176, 186, 236)),
    "sea": Backdrop((250, 196, 176), (255, 238, 206), _sea, (22, 84, 128)),
    "desert": Backdrop((250, 178, 116), (255, 226, 172), _desert, (176, 112, 66)),
    "snow": Backdrop((168, 188, 222), (222, 230, 244), _snow, (176, 194, 220)),
}


def backdrop(name: str, rng: random.Random, side: int) -> Image.Image:
    """The background `name` -> RGB image (side, side)."""
    place = BACKDROPS[name]
    image = _sky(place.top, place.bottom, 0.6, side).copy()
    place.layers(Canvas(image, ImageDraw.Draw(image)), rng)
    return image
