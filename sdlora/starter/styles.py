"""Generic picture filters. The VAE sees filtered pictures too, so that styles pass through it.

Lengths are given in pixels of a picture of 128 and grow with it: a scene in a style is the same
picture at every size.
"""

from __future__ import annotations

import colorsys
import math
import random
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from sdlora.starter.shapes import RGB, mix

Filter = Callable[[Image.Image, random.Random], Image.Image]
REFERENCE = 128  # side in pixels of the pictures that lengths are given for


def scaled(length: float, side: int) -> float:
    """Return a length of the reference size in pixels of a picture of `side`."""
    return length * side / REFERENCE


def filter_width(reach: int, side: int) -> int:
    """Return the width in pixels, odd, of a filter that looks `reach` pixels each way at the
    reference size."""
    return 2 * max(1, round(scaled(reach, side))) + 1


def hue(h: float, saturation: float, value: float) -> RGB:
    """A colour from hue, saturation and value in 0..1."""
    red, green, blue = colorsys.hsv_to_rgb(h % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def pixelated(image: Image.Image, rng: random.Random) -> Image.Image:
    """Large square pixels."""
    cells = REFERENCE // rng.choice((3, 4, 5, 6))
    small = image.resize((cells, cells), Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.NEAREST)


def inverted(image: Image.Image, rng: random.Random) -> Image.Image:
    """A negative, from faint to full."""
    return Image.blend(image, ImageOps.invert(image), rng.uniform(0.75, 1.0))


def posterised(image: Image.Image, rng: random.Random) -> Image.Image:
    """Few tones per channel."""
    levels = rng.choice((2, 3, 4, 5))
    return image.point(
        [round(round(v / 255 * (levels - 1)) * 255 / (levels - 1)) for v in range(256)] * 3
    )


def outline_map(image: Image.Image, width: int) -> Image.Image:
    """(H, W) L: how much each pixel lies on an edge; lines are `width` (odd) pixels wide."""
    high = low = image
    # Narrow filters in a row give what one wide filter gives, sooner.
    for _ in range(width // 2):
        high, low = high.filter(ImageFilter.MaxFilter(3)), low.filter(ImageFilter.MinFilter(3))
    steps = ImageChops.difference(high, low)
    red, green, blue = steps.split()
    return ImageChops.lighter(ImageChops.lighter(red, green), blue)


def edges(image: Image.Image, rng: random.Random) -> Image.Image:
    """A drawing in one ink on one paper."""
    paper, ink = (
        hue(rng.random(), rng.uniform(0.0, 0.3), 0.97),
        hue(rng.random(), 0.6, rng.uniform(0.1, 0.4)),
    )
    if rng.random() < 0.5:
        paper, ink = ink, paper
    lines = outline_map(image, filter_width(1, image.width)).point(
        [min(255, int(v * 2.2)) for v in range(256)]
    )
    return Image.composite(
        Image.new("RGB", image.size, ink), Image.new("RGB", image.size, paper), lines
    )


def tinted(image: Image.Image, rng: random.Random) -> Image.Image:
    """Two or three tones only, like a duotone print or a sepia photo."""
    h = rng.random()
    dark, light = (
        hue(h, rng.uniform(0.4, 0.9), rng.uniform(0.1, 0.35)),
        hue(h + rng.uniform(-0.15, 0.15), rng.uniform(0.05, 0.4), 1.0),
    )
    tone = ImageOps.colorize(ImageOps.grayscale(image), dark, light)
    return Image.blend(image, tone, rng.uniform(0.5, 1.0))


def blurred(image: Image.Image, rng: random.Random) -> Image.Image:
    """Out of focus."""
    return image.filter(ImageFilter.GaussianBlur(scaled(rng.uniform(0.6, 3.0), image.width)))


def noise_field(rng: random.Random, side: int, cells: int) -> np.ndarray:
    """(side, side) smooth noise in -1..1 with about `cells` bumps across."""
    grain = np.random.default_rng(rng.randrange(2**32)).integers(
        0, 256, (cells, cells), dtype=np.uint8
    )
    grown = Image.fromarray(grain).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(grown, np.float32) / 127.5 - 1


def textured(image: Image.Image, rng: random.Random) -> Image.Image:
    """Paper grain, hatching or a wash over the picture."""
    side = image.width
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    a = rng.uniform(0, np.pi)
    hatch = np.sin((x * np.cos(a) + y * np.sin(a)) * 2 * np.pi / scaled(rng.uniform(5, 12), side))
    field = rng.choice(
        (
            noise_field(rng, side, REFERENCE // rng.choice((3, 5, 8))),
            hatch,
            noise_field(rng, side, 9),
        )
    )
    lit = np.asarray(image, np.float32) + field[..., None] * rng.uniform(12, 40)
    return Image.fromarray(lit.clip(0, 255).astype(np.uint8))


def palette_shifted(image: Image.Image, rng: random.Random) -> Image.Image:
    """Hues turned, saturation and brightness changed."""
    turn, boost, light = rng.randrange(256), rng.uniform(0.5, 1.6), rng.uniform(0.45, 1.1)
    h, s, v = image.convert("HSV").split()
    h = h.point([(i + turn) % 256 for i in range(256)])
    s = s.point([min(255, int(i * boost)) for i in range(256)])
    return Image.merge(
        "HSV", (h, s, v.point([min(255, int(i * light)) for i in range(256)]))
    ).convert("RGB")


def paint_strokes(
    image: Image.Image, rng: random.Random, length: float, width: float, wobble: float
) -> Image.Image:
    """The picture in brush strokes along its contours.

    Length and width in pixels of the reference size; `wobble` (0..1) is how far a stroke's colour
    strays.
    """
    side, scale = image.width, 2
    unit = scaled(1, side)
    soft = image.filter(ImageFilter.GaussianBlur(unit))
    pixels = np.asarray(soft).tolist()
    slope = np.asarray(ImageOps.grayscale(image).filter(ImageFilter.GaussianBlur(3 * unit)), float)
    down, right = np.gradient(slope * unit)
    swirl = noise_field(rng, side, 5) * 1.1
    # Where the picture is flat the strokes follow a slow swirl instead of the contour.
    along = np.where(np.hypot(down, right) > 1.5, np.arctan2(right, -down), swirl).tolist()
    canvas = soft.resize((side * scale, side * scale))
    pen = ImageDraw.Draw(canvas)
    step = max(1, round(max(1, round(width * 0.62)) * unit))
    spots = [(x, y) for x in range(0, side, step) for y in range(0, side, step)]
    rng.shuffle(spots)
    for x, y in spots:
        a, half = along[y][x] + rng.gauss(0, 0.16), length * unit * rng.uniform(0.35, 0.65)
        dx, dy = math.cos(a) * half, math.sin(a) * half
        shift = rng.gauss(0, 34 * wobble)
        paint = tuple(
            int(min(255, max(0, c + shift + rng.gauss(0, 26 * wobble)))) for c in pixels[y][x]
        )
        ends = [(x - dx) * scale, (y - dy) * scale, (x + dx) * scale, (y + dy) * scale]
        thick = max(2, round(width * scale * rng.uniform(0.6, 1.0)))
        pen.line(ends, fill=paint, width=max(1, round(thick * unit)))
    return canvas.reduce(scale)


def strokes(image: Image.Image, rng: random.Random) -> Image.Image:
    """Brush strokes of some length and width."""
    return paint_strokes(image, rng, rng.uniform(6, 14), rng.uniform(2.5, 5), rng.uniform(0.2, 0.7))


def halo(light: Image.Image, radius: float, strength: float) -> Image.Image:
    """The glow of `radius` pixels around the light (RGB on black), without the light itself."""
    return light.filter(ImageFilter.GaussianBlur(radius)).point(
        [min(255, int(v * strength)) for v in range(256)] * 3
    )


def bloom(light: Image.Image, radius: float, strength: float) -> Image.Image:
    """The light (RGB on black) with its glow of `radius` pixels added."""
    return ImageChops.add(light, halo(light, radius, strength))


def glow(image: Image.Image, rng: random.Random) -> Image.Image:
    """The picture in the dark, its edges shining in their own or one colour."""
    dim = ImageChops.multiply(
        image,
        Image.new("RGB", image.size, mix((30, 30, 60), hue(rng.random(), 0.6, 0.5), rng.random())),
    )
    lamp = hue(rng.random(), rng.uniform(0.3, 0.9), 1.0)
    source = Image.blend(image, Image.new("RGB", image.size, lamp), rng.uniform(0.0, 0.8))
    outlines = outline_map(image, filter_width(1, image.width))
    lines = Image.composite(source, Image.new("RGB", image.size), outlines)
    radius = scaled(rng.uniform(2, 5), image.width)
    return ImageChops.add(dim, bloom(lines, radius, rng.uniform(0.8, 1.6)))


STYLES: dict[str, Filter] = {
    "pixelated": pixelated,
    "inverted": inverted,
    "posterised": posterised,
    "edges": edges,
    "tinted": tinted,
    "blurred": blurred,
    "textured": textured,
    "palette_shifted": palette_shifted,
    "strokes": strokes,
    "glow": glow,
}
