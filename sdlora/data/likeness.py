"""What can be measured of a picture without knowing what it shows: whether two are alike, and
whether one is blurred."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_SIDE, _EVEN = 8, 3
ALIKE_BITS = 8  # of 128 that may differ between near-duplicates
ALIKE_COLOUR = 16.0  # of 255 by which their small versions may differ, root mean square
BLURRED_PX = 7.0  # the sharpest edge of a blurred picture is at least so wide, at 512 pixels


class Print(NamedTuple):
    """A picture's fingerprint: 128 bits, and its colours at 8 x 8 (RGB, a byte each)."""

    bits: bytes = bytes(16)
    colours: bytes = bytes(192)


def fingerprint(image: Image.Image) -> Print:
    """The difference hash of N. Krawetz (2013, "Kind of like that") in both directions, which
    stays when a picture is scaled, recompressed or lightened; and its colours at 8 x 8."""
    grey = image.convert("L").resize((_SIDE + 1, _SIDE + 1), Image.Resampling.BOX)
    pixels = np.asarray(grey, np.int16)
    slopes = np.diff(pixels, axis=1)[:_SIDE], np.diff(pixels, axis=0)[:, :_SIDE]
    # in an even area, what is brighter than its neighbour is up to the compression
    bits = np.packbits(np.concatenate([slope.ravel() > _EVEN for slope in slopes]))
    small = image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    return Print(bits.tobytes(), small.tobytes())


def near_duplicates(prints: Sequence[Print]) -> dict[int, int]:
    """Place -> place of the first one before it that looks the same."""
    bits = np.array([list(p.bits) for p in prints], np.uint8).reshape(-1, 16)
    colours = np.array([list(p.colours) for p in prints], np.float32).reshape(len(prints), -1)
    found: dict[int, int] = {}
    for place in range(1, len(prints)):
        apart = np.bitwise_count(bits[:place] ^ bits[place]).sum(1)
        for other in np.flatnonzero(apart <= ALIKE_BITS):
            if _rms(colours[place] - colours[other]) <= ALIKE_COLOUR:
                found[place] = int(other)
                break
    return found


def _rms(difference: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.square(difference).mean()))


def edge_width(image: Image.Image) -> float:
    """How wide the sharpest edges are, in pixels of the picture at 512 x 512 pixels' area or less:
    the range of its brightness over its steepest slopes. A step is about 1; a picture of one colour
    has no edges and counts as 0."""
    scale = min(1.0, (512 * 512 / (image.width * image.height)) ** 0.5)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    pixels = np.asarray(image.convert("L").resize(size, Image.Resampling.BOX), np.float32)
    low, high = np.percentile(pixels, (1, 99))
    if high - low < 8 or min(size) < 16:
        return 0.0
    slopes = np.concatenate([np.abs(np.diff(pixels, axis=a)).ravel() for a in (0, 1)])
    steepest = float(
        np.partition(slopes, -max(1, slopes.size // 1000))[-max(1, slopes.size // 1000)]
    )
    return float(high - low) / max(steepest, 1e-3)
