"""Aspect-ratio buckets: the few sizes that pictures are trained at, so that a batch has one shape.

A picture goes to the bucket in which it loses the smallest share of its area, counting cropping
and scaling down alike. It is scaled up only if that was asked for or if it is smaller than the
smallest bucket, and then a problem is reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import NamedTuple

from sdlora.data.folder import Example, Problem
from sdlora.data.image_augmentation import ImageView
from sdlora.messages import Message

MIN_KEPT_SHARE = 0.6  # a picture of which a smaller share of its area is left is a problem


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
    """Crop rectangle of a picture, in the picture's own pixels, and the factor by which it is
    scaled to its bucket."""

    left: float
    top: float
    width: float
    height: float
    scale: float


def choose_bucket(
    size: tuple[int, int], buckets: Sequence[Bucket], upscale: bool = False
) -> Bucket:
    """Return the bucket in which a picture of `size` (width, height) loses the smallest share of
    its area by cropping and scaling down; see the module."""
    width, height = size
    largest = max(b.width * b.height for b in buckets)
    target_area = largest if upscale else min(width * height, largest)

    def loss(bucket: Bucket) -> float:
        cut = abs(log(bucket.width * height) - log(bucket.height * width))
        return cut + max(0.0, log(target_area) - log(bucket.width * bucket.height))

    covered = [b for b in buckets if upscale or (b.width <= width and b.height <= height)]
    return min(covered or buckets, key=loss)


def assign_buckets(
    examples: Sequence[Example], resolution: int, upscale: bool = False
) -> tuple[dict[Bucket, list[Example]], list[Problem]]:
    """Return (bucket -> its examples, in the order given; problems: pictures that are scaled up or
    of which much is cropped)."""
    buckets = make_buckets(resolution)
    assigned: dict[Bucket, list[Example]] = {}
    problems = []
    for example in examples:
        bucket = choose_bucket(example.size, buckets, upscale)
        assigned.setdefault(bucket, []).append(example)
        width, height = example.size
        if width < bucket.width or height < bucket.height:
            message = Message(
                "is {size}, scaled up to {bucket}: blurred",
                size=f"{width} x {height}", bucket=f"{bucket.width} x {bucket.height}",
            )  # fmt: skip
            problems.append(Problem(example.image, message, "use a larger picture or leave it out"))
        cut = bucket_crop(example.size, bucket)
        kept_share = cut.width * cut.height / (width * height)
        if kept_share < MIN_KEPT_SHARE:
            template = "is {size}, of which the middle {share:.0%} is learnt"
            message = Message(template, size=f"{width} x {height}", share=kept_share)
            problems.append(Problem(example.image, message, "cut it yourself to what matters"))
    return dict(sorted(assigned.items())), problems


def bucket_crop(size: tuple[int, int], bucket: Bucket, view: ImageView = ImageView()) -> BucketCrop:  # noqa: B008
    """Return the crop that a view takes of a picture of `size` (width, height) in its bucket."""
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
    """Return SDXL's size conditioning (arXiv:2307.01952, section 2.2): original height, width; top,
    left of the crop in the scaled picture, mirrored if the view is; bucket height, width."""
    width, height = size
    cut = bucket_crop(size, bucket, view)
    left = width - cut.width - cut.left if view.mirrored else cut.left
    top, left = round(cut.top * cut.scale), round(left * cut.scale)
    return height, width, top, left, bucket.height, bucket.width
