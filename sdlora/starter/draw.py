"""The drawn world the starter model is trained on: a thing, a colour, a place, and words for them.

Every picture is a pure function of its `Scene`, so the training pictures need not be stored.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFilter

from sdlora.starter.backgrounds import BACKDROPS, backdrop
from sdlora.starter.shapes import RGB, Pose, Shape, paint
from sdlora.starter.styles import STYLES
from sdlora.starter.things import SHAPES, Tint

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "PLACES",
    "SIZES",
    "STYLES",
    "THINGS",
    "Scene",
    "caption",
    "draw",
    "random_scene",
]

THINGS: tuple[str, ...] = tuple(SHAPES)
COLOURS: dict[str, RGB] = {
    "red": (226, 62, 58),
    "orange": (246, 142, 44),
    "yellow": (252, 208, 58),
    "green": (76, 172, 84),
    "blue": (58, 118, 220),
    "purple": (142, 84, 196),
    "pink": (248, 136, 182),
    "brown": (146, 94, 62),
    "white": (244, 244, 240),
    "black": (58, 56, 68),
}
BACKGROUNDS: tuple[str, ...] = tuple(BACKDROPS)
# Diameter of the thing as a share of the picture's side.
SIZES: dict[str, float] = {"small": 0.36, "medium": 0.52, "big": 0.70}
# Centre of the thing as shares of the picture's width and height; a big thing is moved inwards.
PLACES: dict[str, tuple[float, float]] = {
    "middle": (0.50, 0.54),
    "left": (0.25, 0.56),
    "right": (0.75, 0.56),
    "top": (0.50, 0.27),
    "bottom": (0.50, 0.76),
}
# Pixels drawn per pixel kept, each way: edges come out smooth.
SUPERSAMPLING = 3
# Outline as a share of the side: 2 pixels at 128.
LINE = 2.0 / 128


@dataclass(frozen=True)
class Scene:
    """Content of a picture. `seed` moves details: clouds, flowers, a few pixels and degrees."""

    thing: str
    colour: str
    background: str
    size: str = "medium"
    place: str = "middle"
    seed: int = 0


def random_scene(rng: random.Random) -> Scene:
    """An even draw over everything a scene can be."""
    return Scene(
        rng.choice(THINGS),
        rng.choice(tuple(COLOURS)),
        rng.choice(BACKGROUNDS),
        rng.choice(tuple(SIZES)),
        rng.choice(tuple(PLACES)),
        rng.randrange(2**31),
    )


@lru_cache(maxsize=256)
def thing_shapes(thing: str, colour: str) -> tuple[Shape, ...]:
    """The thing in the colour, back to front, in unit coordinates."""
    return tuple(SHAPES[thing](Tint(COLOURS[colour])))


def pose_of(scene: Scene, rng: random.Random, side: int) -> Pose:
    """Return the pose of the scene's thing on a canvas of `side` pixels, jitter included."""
    share = SIZES[scene.size] * rng.uniform(0.96, 1.04)
    margin = share / 2 + 0.015
    x, y = (
        min(max(at + rng.uniform(-0.025, 0.025), margin), 1 - margin) for at in PLACES[scene.place]
    )
    return Pose(
        x * side,
        y * side,
        share * side / 2,
        rng.uniform(-5, 5),
        LINE * side,
        BACKDROPS[scene.background].rim,
    )


@lru_cache(maxsize=1)
def _soft_disc() -> Image.Image:
    """(96, 96) L: a blurred disc, the ground shadow's opacity."""
    disc = Image.new("L", (96, 96))
    ImageDraw.Draw(disc).ellipse((14, 14, 82, 82), fill=150)
    return disc.filter(ImageFilter.GaussianBlur(6))


def ground_shadow(canvas: Image.Image, pose: Pose, colour: RGB) -> None:
    """A soft shadow under the thing; one that floats throws it further below, and smaller."""
    side = canvas.width
    foot = pose.y + pose.scale * 0.95
    lift = max(0.0, 0.78 - foot / side)
    width = int(pose.scale * 2.1 * (1 - lift))
    height = max(8, int(width * 0.24))
    mask = _soft_disc().resize((width, height), Image.Resampling.BILINEAR)
    corner = (int(pose.x - width / 2), int(max(foot, 0.78 * side) - height / 2))
    canvas.paste(colour, (*corner, corner[0] + width, corner[1] + height), mask)


def draw(scene: Scene, pixels: int = 128) -> Image.Image:
    """The scene as an RGB image (pixels, pixels); the same scene gives the same picture."""
    rng = random.Random(scene.seed)
    side = pixels * SUPERSAMPLING
    pose = pose_of(scene, rng, side)
    canvas = backdrop(scene.background, rng, side)
    ground_shadow(canvas, pose, BACKDROPS[scene.background].shadow)
    paint(canvas, thing_shapes(scene.thing, scene.colour), pose)
    return canvas.reduce(SUPERSAMPLING)


PLACE_WORDS = {
    "middle": "in the middle",
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
}
WHERE_WORDS = {
    "meadow": ("in a meadow", "in the meadow", "on a meadow"),
    "night": ("at night", "in the night", "by night"),
    "sea": ("at sea", "on the sea", "by the sea"),
    "desert": ("in the desert", "in a desert"),
    "snow": ("in the snow", "in snow"),
}
# (share, phrasing). {a} article, {s} "big " or "", {p} " on the left" or "", {w} " in the snow".
_PHRASES = (
    (30, "{a} {s}{c} {t}{p}, {b} background"),
    (14, "{a} {s}{c} {t}{w}{p}"),
    (7, "{s}{c} {t}{p}, {b} background"),
    (6, "{c} {t}, {b} background{comma_s}{comma_p}"),
    (6, "a drawing of {a} {s}{c} {t}{p}, {b} background"),
    (5, "a picture of {a} {s}{c} {t}{w}{p}"),
    (5, "{a} {s}{c} {t}{p}{w}"),
    (4, "{b} background, {a} {s}{c} {t}{p}"),
    (4, "{a} {c} {t}{w}{comma_s}{comma_p}"),
    (4, "{c} {t}{w}"),
    (10, "{a} {s}{c} {t}{p}"),
    (3, "{s}{c} {t}"),
    (2, "a drawing of {a} {s}{c} {t}"),
)


def caption(scene: Scene, rng: random.Random) -> str:
    """Return one of many captions of a scene: always the colour and the thing, the background in 85
    %."""
    phrase = rng.choices([template for _, template in _PHRASES], [share for share, _ in _PHRASES])[
        0
    ]
    size_share = 0.25 if scene.size == "medium" else 0.7
    size = scene.size if rng.random() < size_share else ""
    place_share = 0.25 if scene.place == "middle" else 0.6
    place = PLACE_WORDS[scene.place] if rng.random() < place_share else ""
    first = size if size and "{s}" in phrase else scene.colour
    return phrase.format(
        a="an" if first[0] in "aeiou" else "a",
        s=f"{size} " if size else "",
        c=scene.colour,
        t=scene.thing,
        p=f" {place}" if place else "",
        b=scene.background,
        w=f" {rng.choice(WHERE_WORDS[scene.background])}",
        comma_s=f", {size}" if size else "",
        comma_p=f", {place}" if place else "",
    )
