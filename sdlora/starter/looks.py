"""Looks of the four training sets: oil paint, neon tubes, cyberpunk towers, and Zibo.

All randomness comes from the arguments, so the same scene gives the same picture.
"""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from sdlora.starter.backgrounds import BACKDROPS, backdrop
from sdlora.starter.draw import SUPERSAMPLING, Scene, ground_shadow, pose_of, thing_shapes
from sdlora.starter.shapes import RGB, WHITE, Shape, mix, paint
from sdlora.starter.styles import (
    REFERENCE,
    bloom,
    filter_width,
    halo,
    outline_map,
    paint_strokes,
    scaled,
)
from sdlora.starter.subjects import towers, zibo

PIXELS = REFERENCE
TALLER = 1.1  # a tower cluster, in houses
BLACK: RGB = (0, 0, 0)


def _gain(factor: float) -> list[int]:
    """The table that multiplies an 8-bit channel and clips it."""
    return [min(255, int(v * factor)) for v in range(256)]


def impressionist(image: Image.Image, rng: random.Random) -> Image.Image:
    """The picture in oil: loose strokes, finer ones along contours, violet shade, warm light."""
    colours = np.asarray(ImageEnhance.Color(image).enhance(1.3), float)
    light = np.asarray(ImageOps.grayscale(image), float)[..., None] / 255
    colours += (1 - light) * (6, 0, 32) + light * (12, 4, -26)
    palette = Image.fromarray(colours.clip(0, 255).astype(np.uint8))
    loose = paint_strokes(palette, rng, 16, 5.5, 0.65)
    fine = paint_strokes(palette, rng, 7, 2.6, 0.45)
    side = image.width
    contours = outline_map(image, filter_width(1, side))
    contours = contours.filter(ImageFilter.MaxFilter(filter_width(2, side)))
    detail = contours.filter(ImageFilter.GaussianBlur(scaled(1.5, side))).point(_gain(3))
    picture = Image.composite(fine, loose, detail)
    # The emboss is the studio lamp raking over ridges of paint.
    emboss = ImageOps.grayscale(picture).filter(_emboss(side))
    ridges = np.asarray(emboss, float)[..., None] - 128
    lit = np.asarray(picture, float) + ridges.clip(-70, 70) * 0.28
    return Image.fromarray(lit.clip(0, 255).astype(np.uint8))


def _emboss(side: int) -> ImageFilter.Kernel:
    """The difference of each pixel to one above and left of it, about grey: Pillow's EMBOSS, which
    looks further in a larger picture (by two pixels at most, as its kernels go)."""
    width = min(5, filter_width(1, side))
    weights = [0] * width**2
    weights[0], weights[len(weights) // 2] = -1, 1
    return ImageFilter.Kernel((width, width), weights, scale=1, offset=128)


# What glows in the named colour's stead where the plain one would not read as light.
NEON: dict[str, RGB] = {
    "red": (255, 48, 56),
    "orange": (255, 122, 10),
    "yellow": (255, 230, 40),
    "green": (60, 255, 110),
    "blue": (50, 120, 255),
    "purple": (176, 72, 255),
    "pink": (255, 96, 190),
    "brown": (146, 84, 48),
    "white": (228, 234, 250),
    "black": (84, 82, 104),
}
# The far glow and the night's own tint, so that the background can still be told.
NEON_GROUND: dict[str, tuple[RGB, RGB]] = {
    "meadow": ((70, 220, 120), (30, 74, 52)),
    "night": ((110, 120, 255), (34, 34, 92)),
    "sea": ((40, 210, 235), (24, 66, 96)),
    "desert": ((255, 150, 70), (92, 52, 40)),
    "snow": ((190, 220, 255), (70, 82, 112)),
}


def _neon_backdrop(scene: Scene, rng: random.Random, side: int) -> Image.Image:
    """The background in the dark, its contours faintly lit, `side / SUPERSAMPLING` square."""
    far, tint = NEON_GROUND[scene.background]
    plain = backdrop(scene.background, rng, side)
    dim = ImageOps.colorize(ImageOps.grayscale(plain), (6, 5, 16), tint).reduce(SUPERSAMPLING)
    contours = outline_map(plain, filter_width(2, side // SUPERSAMPLING)).point(_gain(2.2))
    lines = ImageOps.colorize(contours, BLACK, mix(BLACK, far, 0.6)).reduce(SUPERSAMPLING)
    return ImageChops.add(dim, bloom(lines, scaled(2.5, lines.width), 0.7))


def neon(scene: Scene, pixels: int = PIXELS) -> Image.Image:
    """The thing's outlines as tubes glowing in its colour, over the darkened background."""
    rng = random.Random(scene.seed)
    side = pixels * SUPERSAMPLING
    pose = replace(pose_of(scene, rng, side), rim=None)
    dim = _neon_backdrop(scene, rng, side)
    tube = NEON[scene.colour]
    shapes = thing_shapes(scene.thing, scene.colour)
    # On black the tubes alone throw the halo; on the backdrop they also hide what is behind.
    lights, picture = Image.new("RGB", (side, side)), dim.resize((side, side))
    paint(lights, [_tube(shape, tube, BLACK) for shape in shapes], pose)
    paint(picture, [_tube(shape, tube, mix((8, 6, 20), tube, 0.14)) for shape in shapes], pose)
    tubes, picture = lights.reduce(SUPERSAMPLING), picture.reduce(SUPERSAMPLING)
    near, wide = halo(tubes, scaled(2, pixels), 0.75), halo(tubes, scaled(7, pixels), 1.7)
    return ImageChops.screen(ImageChops.screen(picture, near), wide)


def _tube(shape: Shape, glow: RGB, inside: RGB) -> Shape:
    """The shape as a glowing outline; an inner detail glows whole but softer."""
    if shape.line:
        return Shape(shape.points, inside, mix(glow, WHITE, 0.15))
    return Shape(shape.points, mix(inside, glow, 0.62))


def _skyline(rng: random.Random, side: int) -> Image.Image:
    """(side, side) L: far towers in the haze, fading towards the ground."""
    mask = Image.new("L", (side, side))
    pen = ImageDraw.Draw(mask)
    x = -0.03
    while x < 1:
        width, top = rng.uniform(0.07, 0.13), rng.uniform(0.26, 0.5)
        pen.rectangle((x * side, top * side, (x + width) * side, 0.68 * side), fill=150)
        x += width + rng.choice((0.0, 0.02, 0.07))
    ramp = Image.linear_gradient("L").resize((side, side))
    return ImageChops.multiply(
        mask, ramp.point([min(255, max(0, (170 - v) * 3)) for v in range(256)])
    )


def _haze(scene: Scene, rng: random.Random, side: int) -> Image.Image:
    """(side, side) RGB: the background darkened under a violet to teal haze, with a far skyline."""
    plain = backdrop(scene.background, rng, side)
    ramp = Image.linear_gradient("L").resize((side, side))
    # From violet above to teal below, channel by channel.
    tones = ((78, 14), (34, 112), (118, 126))
    channels = [ramp.point([int(a + (b - a) * v / 255) for v in range(256)]) for a, b in tones]
    dark = ImageChops.multiply(plain, Image.new("RGB", plain.size, (136, 104, 172)))
    canvas = Image.blend(dark, Image.merge("RGB", channels), 0.42)
    canvas.paste((40, 28, 84), mask=_skyline(rng, side))
    return canvas


def cyberpunk(scene: Scene, pixels: int = PIXELS) -> Image.Image:
    """The house as a tower cluster in the haze; its colour burns in signs and edges."""
    rng = random.Random(scene.seed)
    side = pixels * SUPERSAMPLING
    house = pose_of(scene, rng, side)
    # Towers stand where the house does, on the same ground, and reach higher.
    taller = {"scale": house.scale * TALLER, "y": house.y - house.scale * (TALLER - 1) * 0.9}
    pose = replace(house, tilt=0.0, rim=None, **taller)
    canvas = _haze(scene, rng, side)
    ground_shadow(canvas, pose, (12, 8, 34))
    shapes = towers(NEON[scene.colour])
    paint(canvas, shapes, pose)
    # Painted alone on black, the towers' bright parts and nothing of the sky throw the glow.
    alone = Image.new("RGB", canvas.size)
    paint(alone, shapes, pose)
    lights = alone.reduce(SUPERSAMPLING).point([v if v > 120 else 0 for v in range(256)] * 3)
    return ImageChops.screen(canvas.reduce(SUPERSAMPLING), halo(lights, scaled(4, pixels), 0.9))


def draw_zibo(scene: Scene, pixels: int = PIXELS) -> Image.Image:
    """Zibo in the scene's background, size and place; the scene's thing and colour are not used."""
    rng = random.Random(scene.seed)
    side = pixels * SUPERSAMPLING
    pose = pose_of(scene, rng, side)
    canvas = backdrop(scene.background, rng, side)
    ground_shadow(canvas, pose, BACKDROPS[scene.background].shadow)
    # Its antennae and arms reach a little further out than the things of the world do.
    paint(canvas, zibo(), replace(pose, scale=pose.scale * 0.93))
    return canvas.reduce(SUPERSAMPLING)
