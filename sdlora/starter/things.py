"""The sixteen things of the drawn world: functions from a tint to shapes in unit coordinates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sdlora.starter.shapes import (
    INK,
    RGB,
    WHITE,
    Shape,
    blob,
    box,
    cloud,
    mix,
    oval,
    poly,
    ribbon,
    turned,
)

CREAM: RGB = (255, 244, 220)
LAMP: RGB = (255, 214, 96)
GLASS: RGB = (196, 232, 246)
WOOD: RGB = (150, 98, 62)
WOOD_LINE: RGB = (84, 50, 38)
LEAF: RGB = (98, 170, 84)
LEAF_LINE: RGB = (40, 88, 56)
RUBBER: RGB = (62, 60, 78)
ROSE: RGB = (248, 142, 150)


@dataclass(frozen=True)
class Tint:
    """A named colour and the tones drawn with it: lighter, darker, outline, highlight."""

    body: RGB

    @property
    def light(self) -> RGB:
        """For accents that still belong to the body."""
        return mix(self.body, WHITE, 0.38)

    @property
    def dark(self) -> RGB:
        """For roofs, fins and shaded parts."""
        return mix(mix((0, 0, 0), self.body, 0.76), INK, 0.08)

    @property
    def line(self) -> RGB:
        """For outlines: the colour, nearly ink."""
        return mix(self.body, INK, 0.72)

    @property
    def shine(self) -> RGB:
        """For the highlight."""
        return mix(self.body, WHITE, 0.66)

    def solid(self, points: np.ndarray) -> Shape:
        """A glossy outlined part in the body's colour."""
        return Shape(points, self.body, self.line, gloss=True)

    def deep(self, points: np.ndarray) -> Shape:
        """A glossy outlined part in the darker tone."""
        return Shape(points, self.dark, self.line, gloss=True)


def _face(x: float, y: float, gap: float, size: float, ink: RGB = INK) -> list[Shape]:
    """Two eyes `gap` apart and a smile below; `size` is an eye's radius."""
    smile = blob(
        [(x - gap * 0.42, y + size * 1.3), (x, y + size * 2.6), (x + gap * 0.42, y + size * 1.3)],
        closed=False,
    )
    return [
        Shape(oval(x - gap / 2, y, size, size * 1.15), ink),
        Shape(oval(x + gap / 2, y, size, size * 1.15), ink),
        Shape(ribbon(smile, size * 0.75), ink),
    ]


def _ball(c: Tint) -> list[Shape]:
    band = np.concatenate(
        [
            blob("-0.86,0.02 0,0.26 0.86,0.02", closed=False),
            blob("0.78,0.36 0,0.6 -0.78,0.36", closed=False),
        ]
    )
    return [
        c.solid(oval(0, 0, 0.94, 0.94, corners=48)),
        Shape(band, CREAM),
        Shape(oval(-0.36, -0.46, 0.25, 0.15, -38), c.shine),
    ]


def _star(c: Tint) -> list[Shape]:
    t = np.arange(10) * np.pi / 5 - np.pi / 2
    r = np.where(np.arange(10) % 2 == 0, 1.08, 0.56)
    corners = [
        (float(a), float(b)) for a, b in zip(r * np.cos(t), r * np.sin(t) + 0.06, strict=True)
    ]
    return [
        c.solid(poly(corners, soft=0.2)),
        Shape(oval(-0.16, -0.42, 0.09, 0.2, 20), c.shine),
        *_face(0, 0.08, 0.42, 0.085, c.line),
    ]


def _heart(c: Tint) -> list[Shape]:
    t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return [
        c.solid(np.stack([x / 16.6, -y / 15.6 - 0.08], 1)),
        Shape(oval(-0.48, -0.44, 0.25, 0.15, -40), c.shine),
    ]


def _house(c: Tint) -> list[Shape]:
    return [
        Shape(box(0.36, -0.86, 0.62, -0.2, 0.05), WOOD, WOOD_LINE),
        c.solid(box(-0.72, -0.2, 0.72, 0.94, 0.1)),
        c.deep(poly("-1.02,0.02 -0.16,-0.92 0.16,-0.92 1.02,0.02", soft=0.14)),
        Shape(
            np.concatenate(
                [blob("-0.46,0.5 -0.23,0.2 0,0.5", closed=False), [[0.0, 0.92], [-0.46, 0.92]]]
            ),
            WOOD,
            c.line,
        ),
        Shape(oval(-0.09, 0.6, 0.05, 0.05), LAMP),
        Shape(box(0.2, 0.24, 0.56, 0.62, 0.06), LAMP, c.line),
        Shape(box(0.355, 0.25, 0.405, 0.61, 0.01), c.line),
        Shape(oval(0, -0.42, 0.17, 0.17), LAMP, c.line),
    ]


def _tree(c: Tint) -> list[Shape]:
    return [
        Shape(
            poly("-0.13,0.1 0.13,0.1 0.16,0.8 0.3,0.96 -0.3,0.96 -0.16,0.8", soft=0.08),
            WOOD,
            WOOD_LINE,
            True,
        ),
        c.solid(cloud(0, -0.28, 0.96, 0.78, 8)),
        Shape(cloud(-0.3, -0.52, 0.3, 0.2, 5), c.light),
        Shape(oval(0.34, -0.12, 0.17, 0.12, -10), c.dark),
        Shape(oval(-0.22, 0.1, 0.15, 0.1, 8), c.dark),
        Shape(oval(0.3, -0.6, 0.12, 0.09), c.light),
    ]


def _flower(c: Tint) -> list[Shape]:
    stem = blob("0,0.1 0.05,0.5 0,0.96", closed=False)
    petals = [
        c.solid(turned(oval(0, -0.4, 0.27, 0.34), turn) + (0, -0.3))
        for turn in (180, 120, 240, 60, 300, 0)
    ]
    return [
        Shape(ribbon(stem, 0.14), LEAF, LEAF_LINE),
        Shape(blob("0.03,0.8 0.3,0.48 0.66,0.46 0.42,0.76"), LEAF, LEAF_LINE, True),
        Shape(blob("0.02,0.9 -0.3,0.62 -0.66,0.6 -0.42,0.88"), LEAF, LEAF_LINE, True),
        *petals,
        Shape(oval(0, -0.3, 0.27, 0.27), (255, 216, 120), (120, 66, 44), True),
        *_face(0, -0.34, 0.2, 0.045, WOOD_LINE),
    ]


def _fish(c: Tint) -> list[Shape]:
    return [
        c.deep(blob("0.42,0.02 0.72,-0.3 1.04,-0.52 0.94,0 1.04,0.52 0.72,0.3")),
        c.deep(blob("-0.3,-0.46 0,-0.84 0.38,-0.68 0.34,-0.3")),
        c.deep(blob("-0.1,0.44 0.06,0.78 0.32,0.7 0.24,0.34")),
        c.solid(
            blob(
                "-1.02,0.04 -0.76,-0.42 -0.2,-0.62 0.36,-0.4 0.72,0 0.36,0.38 -0.2,0.58 -0.76,0.42"
            )
        ),
        Shape(ribbon(blob("0.12,-0.42 0.22,0 0.12,0.38", closed=False), 0.15), c.light),
        Shape(ribbon(blob("0.42,-0.24 0.48,0 0.42,0.22", closed=False), 0.12), c.light),
        Shape(blob("-0.28,0.06 -0.06,0.02 0.06,0.2 -0.14,0.28"), c.dark),
        Shape(oval(-0.56, -0.16, 0.18, 0.18), WHITE, c.line),
        Shape(oval(-0.59, -0.15, 0.09, 0.1), INK),
        Shape(ribbon(blob("-0.88,0.18 -0.74,0.26 -0.6,0.2", closed=False), 0.07), c.line),
    ]


def _cat(c: Tint) -> list[Shape]:
    return [
        Shape(
            ribbon(blob("0.3,0.82 0.78,0.78 0.86,0.4 0.7,0.2", closed=False), 0.22), c.body, c.line
        ),
        c.solid(blob("0,0 0.42,0.3 0.52,0.8 0.3,0.96 -0.3,0.96 -0.52,0.8 -0.42,0.3")),
        Shape(oval(0, 0.66, 0.22, 0.26), c.light),
        c.solid(poly("-0.68,-0.98 -0.12,-0.66 -0.62,-0.3", soft=0.12)),
        c.solid(poly("0.68,-0.98 0.12,-0.66 0.62,-0.3", soft=0.12)),
        Shape(poly("-0.56,-0.8 -0.3,-0.64 -0.52,-0.46", soft=0.06), ROSE),
        Shape(poly("0.56,-0.8 0.3,-0.64 0.52,-0.46", soft=0.06), ROSE),
        c.solid(blob("0,-0.76 0.5,-0.6 0.76,-0.2 0.5,0.14 0,0.22 -0.5,0.14 -0.76,-0.2 -0.5,-0.6")),
        Shape(oval(0, 0.0, 0.28, 0.17), CREAM),
        Shape(oval(-0.3, -0.24, 0.13, 0.15), WHITE, c.line),
        Shape(oval(0.3, -0.24, 0.13, 0.15), WHITE, c.line),
        Shape(oval(-0.28, -0.23, 0.075, 0.11), INK),
        Shape(oval(0.28, -0.23, 0.075, 0.11), INK),
        Shape(poly("-0.1,-0.1 0.1,-0.1 0,0.01", soft=0.04), ROSE),
        Shape(ribbon(blob("-0.12,0.06 0,0.1 0.12,0.06", closed=False), 0.055), INK),
    ]


def _wheel(x: float, y: float, radius: float) -> list[Shape]:
    return [
        Shape(oval(x, y, radius, radius), RUBBER, INK),
        Shape(oval(x, y, radius * 0.48, radius * 0.48), (214, 216, 224)),
    ]


def _car(c: Tint) -> list[Shape]:
    return [
        c.solid(blob("-0.66,-0.02 -0.5,-0.5 -0.16,-0.6 0.26,-0.56 0.56,-0.04 0,0.1")),
        Shape(poly("-0.5,-0.04 -0.38,-0.4 -0.08,-0.44 -0.08,-0.04", soft=0.1), GLASS, c.line),
        Shape(poly("0.04,-0.04 0.04,-0.44 0.22,-0.42 0.44,-0.04", soft=0.1), GLASS, c.line),
        c.solid(poly("-1,0.04 -0.6,-0.1 0.6,-0.08 1,0.08 1.02,0.5 -1.02,0.5", soft=0.18)),
        Shape(box(-0.92, 0.3, 0.92, 0.4, 0.04), c.dark),
        Shape(box(-0.02, 0.06, 0.16, 0.12, 0.03), c.line),
        Shape(oval(0.88, 0.18, 0.1, 0.12), LAMP, c.line),
        Shape(oval(-0.9, 0.16, 0.07, 0.1), (240, 96, 84)),
        *_wheel(-0.52, 0.54, 0.27),
        *_wheel(0.52, 0.54, 0.27),
    ]


def _boat(c: Tint) -> list[Shape]:
    return [
        Shape(box(-0.06, -1.0, 0.06, 0.4, 0.04), WOOD, WOOD_LINE),
        c.solid(poly("0.1,-0.92 0.84,0.22 0.1,0.3", soft=0.16)),
        Shape(poly("-0.12,-0.66 -0.12,0.28 -0.7,0.2", soft=0.14), CREAM, c.line, True),
        Shape(poly("0.16,-0.3 0.44,-0.3 0.62,-0.04 0.16,-0.02", soft=0.04), c.light),
        c.solid(
            blob("-1,0.36 -0.5,0.42 0,0.44 0.5,0.42 1,0.34 0.82,0.72 0.5,0.92 -0.5,0.92 -0.82,0.72")
        ),
        Shape(box(-0.8, 0.54, 0.8, 0.66, 0.05), CREAM),
    ]


def _mushroom(c: Tint) -> list[Shape]:
    return [
        Shape(
            blob("-0.26,0.1 0.26,0.1 0.34,0.6 0.36,0.9 0,0.98 -0.36,0.9 -0.34,0.6"),
            CREAM,
            (110, 78, 66),
            True,
        ),
        c.solid(blob("-1,0.1 -0.78,-0.52 0,-0.94 0.78,-0.52 1,0.1 0.6,0.26 0,0.3 -0.6,0.26")),
        Shape(oval(-0.08, -0.5, 0.24, 0.19, -6), CREAM),
        Shape(oval(-0.6, -0.12, 0.17, 0.17), CREAM),
        Shape(oval(0.54, -0.24, 0.19, 0.18), CREAM),
        Shape(oval(0.06, 0.0, 0.14, 0.1), CREAM),
        *_face(0, 0.52, 0.28, 0.065, WOOD_LINE),
    ]


def _robot(c: Tint) -> list[Shape]:
    return [
        Shape(ribbon(np.linspace((0, -0.9), (0, -0.6), 3), 0.09), RUBBER, INK),
        Shape(oval(0, -0.92, 0.12, 0.12), LAMP, c.line),
        *(c.deep(box(x - 0.15, 0.66, x + 0.15, 0.98, 0.08)) for x in (-0.26, 0.26)),
        *(
            c.deep(
                ribbon(
                    blob([(0.4 * s, 0.2), (0.74 * s, 0.32), (0.78 * s, 0.6)], closed=False), 0.22
                )
            )
            for s in (-1, 1)
        ),
        *(c.deep(box(x - 0.1, -0.46, x + 0.1, -0.12, 0.06)) for x in (-0.7, 0.7)),
        c.solid(box(-0.5, 0.0, 0.5, 0.78, 0.16)),
        c.solid(box(-0.68, -0.72, 0.68, 0.1, 0.26)),
        Shape(box(-0.5, -0.54, 0.5, -0.08, 0.2), RUBBER, c.line),
        Shape(oval(-0.23, -0.32, 0.13, 0.14), (128, 236, 240)),
        Shape(oval(0.23, -0.32, 0.13, 0.14), (128, 236, 240)),
        Shape(box(-0.26, 0.28, 0.26, 0.58, 0.08), c.light),
        Shape(oval(-0.1, 0.43, 0.07, 0.07), (240, 96, 84)),
        Shape(oval(0.12, 0.43, 0.07, 0.07), LAMP),
    ]


def _rocket(c: Tint) -> list[Shape]:
    right = "0.3,-0.66 0.45,-0.1 0.38,0.42 0.28,0.68"
    left = "-0.28,0.68 -0.38,0.42 -0.45,-0.1 -0.3,-0.66"
    return [
        Shape(blob("-0.24,0.6 0.24,0.6 0.2,0.84 0,1.06 -0.2,0.84"), (255, 150, 60), (150, 60, 40)),
        Shape(blob("-0.1,0.66 0.1,0.66 0.08,0.78 0,0.9 -0.08,0.78"), LAMP),
        c.deep(poly("-0.34,0.1 -0.8,0.5 -0.74,0.86 -0.3,0.62", soft=0.14)),
        c.deep(poly("0.34,0.1 0.8,0.5 0.74,0.86 0.3,0.62", soft=0.14)),
        c.solid(blob(f"0,-1.06 {right} {left}")),
        Shape(blob("0,-0.98 0.22,-0.66 0,-0.58 -0.22,-0.66"), c.dark),
        Shape(oval(0, -0.2, 0.22, 0.22), GLASS, c.line),
        Shape(oval(-0.06, -0.26, 0.07, 0.06), WHITE),
        Shape(box(-0.3, 0.3, 0.3, 0.42, 0.05), CREAM),
    ]


def _cup(c: Tint) -> list[Shape]:
    right, left = "0.56,0.2 0.46,0.76 0.24,0.94", "-0.44,0.94 -0.66,0.76 -0.76,0.2"
    handle = blob("0.5,-0.12 0.9,-0.1 0.96,0.3 0.5,0.5", closed=False)
    return [
        *(
            Shape(
                ribbon(
                    blob([(x, -0.5), (x - 0.1, -0.68), (x + 0.06, -0.84), (x, -1.0)], closed=False),
                    0.11,
                ),
                (250, 246, 250),
            )
            for x in (-0.34, 0.1)
        ),
        Shape(ribbon(handle, 0.2), c.body, c.line),
        c.solid(blob(f"-0.76,-0.34 0.56,-0.34 {right} {left}")),
        Shape(oval(-0.1, -0.32, 0.66, 0.16), c.light, c.line),
        Shape(oval(-0.1, -0.29, 0.5, 0.09), WOOD),
        Shape(oval(-0.5, 0.2, 0.07, 0.22, 4), c.shine),
        *_face(-0.06, 0.28, 0.42, 0.08, c.line),
    ]


def _umbrella(c: Tint) -> list[Shape]:
    handle = blob("0,-0.1 0,0.4 0,0.74 0.14,0.92 0.3,0.76", closed=False)
    canopy = blob("-1,0.14 -0.78,-0.5 0,-0.88 0.78,-0.5 1,0.14", closed=False)
    hem = [
        blob([(x + 0.32, 0.14), (x, 0.0), (x - 0.32, 0.14)], closed=False)
        for x in (0.67, 0.0, -0.67)
    ]
    panel = np.concatenate(
        [
            blob("-0.34,0.12 -0.28,-0.4 0,-0.8 0.28,-0.4 0.34,0.12", closed=False),
            blob("0.3,0.1 0,-0.01 -0.3,0.1", closed=False),
        ]
    )
    return [
        Shape(ribbon(handle, 0.13), WOOD, WOOD_LINE),
        Shape(box(-0.05, -1.02, 0.05, -0.74, 0.03), WOOD, WOOD_LINE),
        c.solid(np.concatenate([canopy, *hem])),
        Shape(panel, c.light),
        Shape(oval(-0.6, -0.32, 0.1, 0.17, 40), c.shine),
    ]


def _balloon(c: Tint) -> list[Shape]:
    string = blob("0,0.5 0.1,0.66 -0.08,0.82 0.04,1", closed=False)
    return [
        Shape(ribbon(string, 0.08), (110, 90, 100)),
        c.deep(poly("0,0.36 0.15,0.58 -0.15,0.58", soft=0.05)),
        c.solid(blob("0,-1 0.48,-0.86 0.7,-0.42 0.5,0.08 0,0.42 -0.5,0.08 -0.7,-0.42 -0.48,-0.86")),
        Shape(oval(-0.32, -0.58, 0.13, 0.24, 24), c.shine),
    ]


SHAPES: dict[str, Callable[[Tint], list[Shape]]] = {
    "ball": _ball,
    "star": _star,
    "heart": _heart,
    "house": _house,
    "tree": _tree,
    "flower": _flower,
    "fish": _fish,
    "cat": _cat,
    "car": _car,
    "boat": _boat,
    "mushroom": _mushroom,
    "robot": _robot,
    "rocket": _rocket,
    "cup": _cup,
    "umbrella": _umbrella,
    "balloon": _balloon,
}
