"""Buckets: the few sizes that pictures are trained at, so that a batch has one shape.

A picture goes where it loses least, counting what is cut off and what is scaled down alike. It is
never scaled up, unless it is smaller than the smallest bucket, and then that is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import NamedTuple

from sdlora.data.folder import Example, Problem


class Bucket(NamedTuple):
    """A size in pixels."""

    width: int
    height: int


def make_buckets(resolution: int) -> tuple[Bucket, ...]:
    """All sizes of at most resolution x resolution pixels whose sides are multiples of 64 (of 8
    below 512) and at least half of `resolution`, smallest first."""
    step = 64 if resolution >= 512 else 8
    shortest = max(step, resolution // 2 // step * step)
    sides = range(shortest, resolution * resolution // shortest + 1, step)
    fitting = ((w, h) for w in sides for h in sides if w * h <= resolution * resolution)
    return tuple(Bucket(w, h) for w, h in sorted(fitting))


def choose_bucket(size: tuple[int, int], buckets: Sequence[Bucket]) -> Bucket:
    """The bucket in which a picture of `size` (width, height) loses least; see the module."""
    width, height = size
    most = min(width * height, max(b.width * b.height for b in buckets))

    def loss(bucket: Bucket) -> float:
        cut = abs(log(bucket.width * height) - log(bucket.height * width))
        return cut + max(0.0, log(most) - log(bucket.width * bucket.height))

    covered = [b for b in buckets if b.width <= width and b.height <= height]
    return min(covered or buckets, key=loss)


def assign_buckets(
    examples: Sequence[Example], resolution: int
) -> tuple[dict[Bucket, list[Example]], list[Problem]]:
    """Every example in one bucket, in the order given, and the pictures that are scaled up."""
    buckets = make_buckets(resolution)
    assigned: dict[Bucket, list[Example]] = {}
    problems = []
    for example in examples:
        bucket = choose_bucket(example.size, buckets)
        assigned.setdefault(bucket, []).append(example)
        width, height = example.size
        if width < bucket.width or height < bucket.height:
            what = f"is {width} x {height}, scaled up to {bucket.width} x {bucket.height}: blurred"
            problems.append(Problem(example.image, what, "use a larger picture or leave it out"))
    return dict(sorted(assigned.items())), problems


def crop_sizes(size: tuple[int, int], bucket: Bucket) -> tuple[int, ...]:
    """Original height, width; top, left of the cut in the scaled picture; bucket height, width:
    what SDXL is told of a picture (arXiv:2307.01952, section 2.2)."""
    width, height = size
    scale = max(bucket.width / width, bucket.height / height)
    top = round((height * scale - bucket.height) / 2)
    left = round((width * scale - bucket.width) / 2)
    return height, width, top, left, bucket.height, bucket.width
