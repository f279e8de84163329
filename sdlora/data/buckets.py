"""Buckets: the few sizes that pictures are trained at, so that a batch has one shape.

A picture goes where it loses least, counting what is cut off and what is scaled down alike. It is
never scaled up, unless that was asked for or it is smaller than the smallest bucket, and then that
is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import NamedTuple

from sdlora.data.folder import Example, Problem
from sdlora.data.image_augmentation import ImageView
from sdlora.messages import Message

LEAST_KEPT = 0.6  # a picture of which less is left is a problem


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


class BucketCrop(NamedTuple):
    """What of a picture is seen, in its own pixels, and by what it is scaled then."""

    left: float
    top: float
    width: float
    height: float
    scale: float


def choose_bucket(
    size: tuple[int, int], buckets: Sequence[Bucket], upscale: bool = False
) -> Bucket:
    """The bucket in which a picture of `size` (width, height) loses least; see the module."""
    width, height = size
    largest = max(b.width * b.height for b in buckets)
    most = largest if upscale else min(width * height, largest)

    def loss(bucket: Bucket) -> float:
        cut = abs(log(bucket.width * height) - log(bucket.height * width))
        return cut + max(0.0, log(most) - log(bucket.width * bucket.height))

    covered = [b for b in buckets if upscale or (b.width <= width and b.height <= height)]
    return min(covered or buckets, key=loss)


def assign_buckets(
    examples: Sequence[Example], resolution: int, upscale: bool = False
) -> tuple[dict[Bucket, list[Example]], list[Problem]]:
    """Every example in one bucket, in the order given, and the pictures that are scaled up or of
    which much is cut off."""
    buckets = make_buckets(resolution)
    assigned: dict[Bucket, list[Example]] = {}
    problems = []
    for example in examples:
        bucket = choose_bucket(example.size, buckets, upscale)
        assigned.setdefault(bucket, []).append(example)
        width, height = example.size
        if width < bucket.width or height < bucket.height:
            what = Message(
                "is {size}, scaled up to {bucket}: blurred",
                size=f"{width} x {height}", bucket=f"{bucket.width} x {bucket.height}",
            )  # fmt: skip
            problems.append(Problem(example.image, what, "use a larger picture or leave it out"))
        cut = cut_of(example.size, bucket)
        kept = cut.width * cut.height / (width * height)
        if kept < LEAST_KEPT:
            template = "is {size}, of which the middle {kept:.0%} is learnt"
            what = Message(template, size=f"{width} x {height}", kept=kept)
            problems.append(Problem(example.image, what, "cut it yourself to what matters"))
    return dict(sorted(assigned.items())), problems


def cut_of(size: tuple[int, int], bucket: Bucket, view: ImageView = ImageView()) -> BucketCrop:  # noqa: B008
    """What a view shows of a picture of `size` in its bucket."""
    width, height = size
    scale = max(bucket.width / width, bucket.height / height)
    across, down = min(width, bucket.width / scale), min(height, bucket.height / scale)
    left, top = (width - across) * view.centre[0], (height - down) * view.centre[1]
    return BucketCrop(left, top, across, down, scale)


def crop_sizes(
    size: tuple[int, int],
    bucket: Bucket,
    view: ImageView = ImageView(),  # noqa: B008
) -> tuple[int, ...]:
    """Original height, width; top, left of the cut in the scaled picture, mirrored if the view is;
    bucket height, width: what SDXL is told of a picture (arXiv:2307.01952, section 2.2)."""
    width, height = size
    cut = cut_of(size, bucket, view)
    left = width - cut.width - cut.left if view.mirrored else cut.left
    top, left = round(cut.top * cut.scale), round(left * cut.scale)
    return height, width, top, left, bucket.height, bucket.width
