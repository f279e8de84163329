"""Closed rounded shapes as data, and the painter that puts a list of them on a canvas.

A thing is a list of `Shape`, back to front, in unit coordinates: x to the right, y down, everything
within about -1..1. Keeping pictures as data lets the neon set trace the very outlines the plain
world fills.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

RGB = tuple[int, int, int]
# Corners are written as in SVG, "x,y x,y x,y", or given as pairs.
Corners = str | Sequence[tuple[float, float]]
WHITE: RGB = (255, 255, 255)
INK: RGB = (34, 24, 52)


@dataclass(frozen=True)
class Shape:
    """One closed polygon, points (n, 2); `line` colours its outline, `gloss` shades its fill."""

    points: np.ndarray
    fill: RGB
    line: RGB | None = None
    gloss: bool = False


@dataclass(frozen=True)
class Pose:
    """Position of unit coordinates on a canvas: centre, scale and line width in pixels, tilt in
    degrees."""

    x: float
    y: float
    scale: float
    tilt: float = 0.0
    line_px: float = 6.0
    rim: RGB | None = None

    def place(self, points: np.ndarray) -> np.ndarray:
        """Unit points (n, 2) -> pixel points (n, 2)."""
        a = np.deg2rad(self.tilt)
        turn = np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])
        placed: np.ndarray = points @ turn * self.scale + (self.x, self.y)
        return placed


def mix(a: RGB, b: RGB, share: float) -> RGB:
    """`a` with `share` (0..1) of `b` in it."""
    red, green, blue = (round(p + (q - p) * share) for p, q in zip(a, b, strict=True))
    return red, green, blue


def points_of(corners: Corners) -> np.ndarray:
    """ "0,-0.5 0.3,1" or pairs of numbers -> (n, 2)."""
    if isinstance(corners, str):
        corners = [(float(x), float(y)) for x, y in (pair.split(",") for pair in corners.split())]
    return np.asarray(corners, float)


def oval(
    x: float, y: float, rx: float, ry: float, tilt: float = 0.0, *, corners: int = 36
) -> np.ndarray:
    """An ellipse, tilt in degrees -> (corners, 2)."""
    t = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return turned(np.stack([rx * np.cos(t), ry * np.sin(t)], 1), tilt) + (x, y)


def turned(points: np.ndarray, tilt: float) -> np.ndarray:
    """Points (n, 2) turned about the origin by `tilt` degrees."""
    a = np.deg2rad(tilt)
    rotated: np.ndarray = points @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])
    return rotated


def cloud(
    x: float, y: float, rx: float, ry: float, bumps: int, *, depth: float = 0.16
) -> np.ndarray:
    """An ellipse with round bumps, like a tree's crown -> (8 * bumps, 2)."""
    t = np.linspace(0, 2 * np.pi, 8 * bumps, endpoint=False)
    r = 1 - depth + depth * np.abs(np.sin(t * bumps / 2))
    return np.stack([x + rx * r * np.cos(t), y + ry * r * np.sin(t)], 1)


def blob(corners: Corners, closed: bool = True, steps: int = 7) -> np.ndarray:
    """The Catmull-Rom curve through the corners -> (about corners * steps, 2)."""
    p = points_of(corners)
    ring = np.concatenate([p[-1:], p, p[:2]]) if closed else np.concatenate([p[:1], p, p[-1:]])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    parts = [
        0.5
        * (
            2 * b
            + (c - a) * t
            + (2 * a - 5 * b + 4 * c - d) * t**2
            + (3 * b - a - 3 * c + d) * t**3
        )
        for a, b, c, d in zip(ring, ring[1:], ring[2:], ring[3:], strict=False)
    ]
    return np.concatenate(parts if closed else [*parts, p[-1:]])


def poly(corners: Corners, soft: float = 0.12) -> np.ndarray:
    """A polygon whose corners are rounded over the length `soft` -> (5 * corners, 2)."""
    p = points_of(corners)
    t = np.linspace(0, 1, 5)[:, None]
    parts = []
    for before, here, after in zip(np.roll(p, 1, 0), p, np.roll(p, -1, 0), strict=True):
        back, on = before - here, after - here
        start = here + back * min(0.5, soft / np.hypot(*back))
        end = here + on * min(0.5, soft / np.hypot(*on))
        parts.append(start * (1 - t) ** 2 + here * 2 * t * (1 - t) + end * t**2)
    return np.concatenate(parts)


def box(left: float, top: float, right: float, bottom: float, soft: float = 0.12) -> np.ndarray:
    """A rectangle with rounded corners -> (20, 2)."""
    return poly([(left, top), (right, top), (right, bottom), (left, bottom)], soft)


def ribbon(curve: np.ndarray, width: float) -> np.ndarray:
    """An open curve (n, 2) thickened to `width`, with round ends -> (2n + 10, 2)."""
    way = np.gradient(curve, axis=0)
    way /= np.hypot(way[:, 0], way[:, 1])[:, None]
    side = np.stack([-way[:, 1], way[:, 0]], 1) * width / 2
    t = np.linspace(0, np.pi, 7)[1:-1, None]
    tip = curve[-1] + side[-1] * np.cos(t) + way[-1] * np.sin(t) * width / 2
    tail = curve[0] - side[0] * np.cos(t) - way[0] * np.sin(t) * width / 2
    return np.concatenate([curve + side, tip, (curve - side)[::-1], tail])


def grown(points: np.ndarray, by: float) -> np.ndarray:
    """The closed polygon moved outwards by `by` along its normals (inwards when negative)."""
    edge = np.roll(points, -1, 0) - points
    edge /= np.maximum(np.hypot(edge[:, 0], edge[:, 1]), 1e-9)[:, None]
    x, y = points[:, 0], points[:, 1]
    area = np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))
    normal = np.stack([edge[:, 1], -edge[:, 0]], 1) * (1 if area > 0 else -1)
    both = normal + np.roll(normal, 1, 0)
    # |both| shrinks at sharp corners; the bound keeps a spike from growing out of them.
    moved: np.ndarray = points + both * by * 2 / np.maximum((both**2).sum(1), 1.6)[:, None]
    return moved


@lru_cache(maxsize=1)
def _gloss_tile() -> Image.Image:
    """(64, 64) L: 255 where light from the top left falls, 0 in the shade at the bottom right."""
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    light = 0.62 - 0.32 * y - 0.18 * x - 0.12 * (x**2 + y**2)
    return Image.fromarray((np.clip(light, 0, 1) * 255).astype(np.uint8))


def _paint_gloss(canvas: Image.Image, points: np.ndarray, fill: RGB) -> None:
    low, high = np.floor(points.min(0)).astype(int), np.ceil(points.max(0)).astype(int) + 1
    size = (int(high[0] - low[0]), int(high[1] - low[1]))
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).polygon((points - low).ravel().tolist(), fill=255)
    # The shade keeps the fill's saturation: a yellow ball must not turn mustard.
    shade = Image.new("RGB", size, mix(mix((0, 0, 0), fill, 0.84), INK, 0.07))
    light = Image.new("RGB", size, mix(fill, WHITE, 0.2))
    tile = _gloss_tile().resize(size, Image.Resampling.BILINEAR)
    canvas.paste(Image.composite(light, shade, tile), (int(low[0]), int(low[1])), mask)


def paint(canvas: Image.Image, shapes: Sequence[Shape], pose: Pose) -> None:
    """Paint the shapes back to front, over a light edge of the silhouette where there is a rim."""
    pen = ImageDraw.Draw(canvas)
    placed = [(shape, pose.place(shape.points)) for shape in shapes]
    if pose.rim:
        for shape, points in placed:
            if shape.line:
                pen.polygon(grown(points, pose.line_px * 1.15).ravel().tolist(), fill=pose.rim)
    for shape, points in placed:
        inner = points
        if shape.line:
            pen.polygon(grown(points, pose.line_px / 2).ravel().tolist(), fill=shape.line)
            inner = grown(points, -pose.line_px / 2)
        if shape.gloss:
            _paint_gloss(canvas, inner, shape.fill)
        else:
            pen.polygon(inner.ravel().tolist(), fill=shape.fill)
