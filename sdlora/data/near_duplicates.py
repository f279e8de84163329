"""Near-duplicates and blur, from the pixels alone: picture fingerprints and the width of edges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_SIDE, _EVEN = 8, 3
# Set on 26 photographs, 60 pictures with the spectrum of one (1/f) and the 80 of the shipped sets.
# None of 5,255 pairs of different pictures passes, mirrored or not; 14 bits would take two pictures
# of one drawn robot for one. Every copy passes that was saved again as JPEG of quality 30 or more,
# halved, or mirrored; of those that lost 2 % at every edge 78 to 88 %, of 5 % at most 15 %. Sharp
# photographs have edges of up to 4.3 pixels, and one, of cells under a microscope, of 10.6.
ALIKE_BITS = 12  # of 128 that may differ between near-duplicates
ALIKE_COLOUR = 16.0  # of 255 by which their small versions may differ, root mean square
BLURRED_PX = 6.0  # the sharpest edge of a blurred picture is at least so wide, at 512 pixels


class Fingerprint(NamedTuple):
    """A picture's fingerprint: 128 bits, its colours at 8 x 8 (RGB, a byte each), and the bits of
    its mirror image."""

    bits: bytes = bytes(16)
    colours: bytes = bytes(192)
    mirrored: bytes = bytes(16)


class DuplicateMatch(NamedTuple):
    """Index of an earlier picture that looks the same, or would if mirrored."""

    other: int
    mirrored: bool


def fingerprint(image: Image.Image) -> Fingerprint:
    """The difference hash of N. Krawetz (2013, "Kind of like that") in both directions, which
    stays when a picture is scaled, recompressed or lightened; and its colours at 8 x 8."""
    grey = image.convert("L").resize((_SIDE + 1, _SIDE + 1), Image.Resampling.BOX)
    pixels = np.asarray(grey, np.int16)
    small = image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    return Fingerprint(_bits(pixels), small.tobytes(), _bits(pixels[:, ::-1]))


def _bits(pixels: NDArray[np.int16]) -> bytes:
    slopes = np.diff(pixels, axis=1)[:_SIDE], np.diff(pixels, axis=0)[:, :_SIDE]
    # in an even area, what is brighter than its neighbour is up to the compression
    return np.packbits(np.concatenate([slope.ravel() > _EVEN for slope in slopes])).tobytes()


def near_duplicates(prints: Sequence[Fingerprint]) -> dict[int, DuplicateMatch]:
    """Return index -> the first picture before it that looks the same, else the first that does
    when mirrored."""
    bits = _bytes([p.bits for p in prints]).reshape(-1, 16)
    mirrored = _bytes([p.mirrored for p in prints]).reshape(-1, 16)
    colours = _bytes([p.colours for p in prints]).reshape(-1, _SIDE, _SIDE, 3).astype(np.float32)
    matches: dict[int, DuplicateMatch] = {}
    for index in range(1, len(prints)):
        for flipped, candidates in enumerate((bits, mirrored)):
            distance = np.bitwise_count(candidates[:index] ^ bits[index]).sum(1)
            own_colours = colours[index][:, ::-1] if flipped else colours[index]
            close = (int(other) for other in np.flatnonzero(distance <= ALIKE_BITS))
            alike = (other for other in close if _rms(own_colours - colours[other]) <= ALIKE_COLOUR)
            if (first := next(alike, None)) is not None:
                matches[index] = DuplicateMatch(first, bool(flipped))
                break
    return matches


def _bytes(prints: Sequence[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(prints), np.uint8)


def _rms(difference: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.square(difference).mean()))


def edge_width(image: Image.Image) -> float:
    """Return the width of the sharpest edges, in pixels of the picture at 512 x 512 pixels' area or
    less: the range of its brightness over its steepest slopes. A step is about 1; a picture of one
    colour has no edges and counts as 0."""
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
