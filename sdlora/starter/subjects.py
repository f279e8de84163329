"""Two subjects that only the training sets show: the cyberpunk towers and Zibo.

The starter model never sees them, so that a LoRA has something to learn.
"""

from __future__ import annotations

import random
from functools import lru_cache

import numpy as np

from sdlora.starter.shapes import INK, RGB, WHITE, Shape, blob, box, mix, oval, poly, ribbon


def _windows(left: float, top: float, columns: int, rows: int, seed: int) -> list[Shape]:
    """A grid of windows from the top left corner; most are lit, in three colours."""
    rng = random.Random(seed)
    lit = ((70, 240, 250), (255, 70, 200), (255, 222, 90))
    return [
        Shape(box(x, y, x + 0.2, y + 0.2, 0.03), rng.choice((*lit, *lit, (66, 54, 108))))
        for x in (left + 0.3 * i for i in range(columns))
        for y in (top + 0.32 * j for j in range(rows))
    ]


@lru_cache(maxsize=16)
def towers(lamp: RGB) -> tuple[Shape, ...]:
    """Dark towers with lit windows; edges, mast and sign in the lamp's colour, walls tinted by it.

    Unit shapes. All is large: a model of 128 pixels has 16 x 16 latent cells to draw it with.
    """
    dark, darker = mix((44, 34, 80), lamp, 0.22), mix((34, 26, 62), lamp, 0.14)
    edge, sign = mix(lamp, (40, 30, 74), 0.15), mix(lamp, WHITE, 0.15)
    return (
        Shape(ribbon(np.linspace((0.0, -0.9), (0.0, -1.3), 3), 0.11), sign),
        Shape(box(-1.02, -0.2, -0.4, 0.98, 0.05), darker, edge, gloss=True),
        *_windows(-0.95, -0.06, 2, 3, 1),
        Shape(box(0.4, -0.52, 1.02, 0.98, 0.05), darker, edge, gloss=True),
        *_windows(0.47, -0.38, 2, 4, 2),
        Shape(poly("-0.44,-0.7 -0.3,-0.96 0.3,-0.96 0.44,-0.7", soft=0.04), darker, edge),
        Shape(box(-0.44, -0.74, 0.44, 0.98, 0.05), dark, edge, gloss=True),
        *_windows(-0.25, -0.58, 2, 4, 10),
        Shape(box(-0.3, 0.74, 0.3, 0.9, 0.04), sign),
    )


MINT: RGB = (112, 214, 190)
TEAL: RGB = (62, 150, 146)
MINT_LINE: RGB = (22, 84, 92)
EMBER: RGB = (252, 140, 40)
EMBER_LINE: RGB = (176, 72, 20)


def _zibo_limbs(side: int) -> list[Shape]:
    """Antenna, foot and arm of one side, -1 or 1."""
    curl = blob("0.22,-0.62 0.34,-0.94 0.62,-1.02 0.74,-0.82 0.6,-0.7 0.5,-0.8", closed=False)
    arm = blob("0.74,0.1 0.98,0.22 0.96,0.5", closed=False)
    return [
        Shape(ribbon(curl * (side, 1), 0.11), EMBER, MINT_LINE),
        Shape(oval(0.36 * side, 0.9, 0.25, 0.13), TEAL, MINT_LINE, gloss=True),
        Shape(ribbon(arm * (side, 1), 0.2), TEAL, MINT_LINE),
    ]


@lru_cache(maxsize=1)
def zibo() -> tuple[Shape, ...]:
    """A round mint robot with one orange eye, curled antennae and a striped scarf. Unit shapes."""
    scarf = ribbon(blob("-0.74,0.34 -0.4,0.5 0,0.54 0.4,0.5 0.74,0.34", closed=False), 0.24)
    stripes = ((-0.5, 0.46), (-0.18, 0.53), (0.14, 0.535), (0.58, 0.42))
    return (
        *_zibo_limbs(-1),
        *_zibo_limbs(1),
        Shape(oval(0, 0.1, 0.84, 0.8, corners=48), MINT, MINT_LINE, gloss=True),
        Shape(oval(-0.5, -0.36, 0.16, 0.09, -42), mix(MINT, WHITE, 0.66)),
        Shape(oval(0, -0.1, 0.44, 0.44), WHITE, MINT_LINE),
        Shape(oval(0, -0.1, 0.33, 0.33), EMBER, EMBER_LINE, gloss=True),
        Shape(oval(0, -0.09, 0.16, 0.18), INK),
        Shape(oval(0.1, -0.22, 0.08, 0.08), WHITE),
        Shape(poly("0.26,0.5 0.52,0.48 0.6,0.9 0.34,0.94", soft=0.06), EMBER, EMBER_LINE),
        Shape(poly("0.33,0.68 0.53,0.65 0.56,0.78 0.36,0.81", soft=0.03), WHITE),
        Shape(scarf, EMBER, EMBER_LINE),
        *(Shape(box(x - 0.075, y - 0.1, x + 0.075, y + 0.1, 0.02), WHITE) for x, y in stripes),
    )
