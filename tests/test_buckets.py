"""Buckets: sizes within bounds, and no picture dropped or blown up without a word."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdlora.data.buckets import (
    Bucket,
    assign_buckets,
    bucket_crop,
    choose_bucket,
    crop_sizes,
    make_buckets,
)
from sdlora.data.folder import Example
from sdlora.data.image_augmentation import ImageView

sides = st.integers(1, 5000)
resolutions = st.sampled_from([64, 100, 128, 512, 768, 1000, 1024])


@given(resolution=st.integers(64, 2048))
def test_sizes_are_within_bounds(resolution: int) -> None:
    step = 64 if resolution >= 512 else 8
    buckets = make_buckets(resolution)
    assert len(set(buckets)) == len(buckets) >= 1
    for width, height in buckets:
        assert width % step == height % step == 0
        assert width * height <= resolution**2
        assert min(width, height) >= resolution // 2 // step * step
        assert Bucket(height, width) in buckets


@given(sizes=st.lists(st.tuples(sides, sides), min_size=1, max_size=20), resolution=resolutions)
def test_no_picture_is_dropped_and_only_small_ones_grow(
    sizes: list[tuple[int, int]], resolution: int
) -> None:
    examples = [Example(Path(f"{n}.png"), "", size) for n, size in enumerate(sizes)]
    assigned, problems = assign_buckets(examples, resolution)
    kept = [example for some in assigned.values() for example in some]
    assert sorted(kept, key=lambda e: int(e.image.stem)) == examples
    grown = {problem.path for problem in problems if "scaled up" in problem.message}
    shortest = min(bucket.width for bucket in make_buckets(resolution))
    for bucket, some in assigned.items():
        for example in some:
            grows = example.size[0] < bucket.width or example.size[1] < bucket.height
            assert grows == (example.image in grown) == (min(example.size) < shortest)


@given(size=st.tuples(sides, sides), resolution=resolutions)
def test_turning_a_picture_turns_its_bucket(size: tuple[int, int], resolution: int) -> None:
    def kept(size: tuple[int, int], bucket: Bucket) -> tuple[int, float]:
        across, down = size[0] / bucket.width, size[1] / bucket.height
        return bucket.width * bucket.height, round(min(across / down, down / across), 9)

    buckets = make_buckets(resolution)
    turned = (size[1], size[0])
    assert kept(size, choose_bucket(size, buckets)) == kept(turned, choose_bucket(turned, buckets))


@pytest.mark.parametrize(
    ("size", "resolution", "bucket"),
    [
        ((128, 128), 128, (128, 128)),
        ((4000, 4000), 512, (512, 512)),
        ((1024, 1024), 1024, (1024, 1024)),
        ((4000, 1000), 512, (1024, 256)),
        ((700, 700), 1024, (640, 640)),
        ((1152, 896), 1024, (1152, 896)),
        ((20, 10), 128, (128, 64)),
    ],
)
def test_the_bucket_one_would_choose(
    size: tuple[int, int], resolution: int, bucket: tuple[int, int]
) -> None:
    assert choose_bucket(size, make_buckets(resolution)) == bucket


@given(size=st.tuples(sides, sides), resolution=resolutions)
def test_the_cut_is_the_middle(size: tuple[int, int], resolution: int) -> None:
    bucket = choose_bucket(size, make_buckets(resolution))
    height, width, top, left, *target = crop_sizes(size, bucket)
    assert (width, height) == size
    assert target == [bucket.height, bucket.width]
    assert min(top, left) == 0
    scale = max(bucket.width / width, bucket.height / height)
    assert 2 * top + bucket.height == pytest.approx(scale * height, abs=1.01)
    assert 2 * left + bucket.width == pytest.approx(scale * width, abs=1.01)


def test_small_pictures_grow_when_asked_and_what_is_cut_off_is_told() -> None:
    buckets = make_buckets(512)
    assert choose_bucket((300, 300), buckets) == (256, 256)
    assert choose_bucket((300, 300), buckets, upscale=True) == (512, 512)
    strip = Example(Path("strip.png"), "", (4000, 300))
    assigned, (problem,) = assign_buckets([strip], 512)
    ((bucket, _),) = assigned.items()
    cut = bucket_crop(strip.size, bucket)
    assert cut.height == pytest.approx(300) and bucket.height == round(300 * cut.scale)
    assert f"the middle {cut.width / 4000:.0%} is learnt" in problem.message


@given(size=st.tuples(sides, sides), across=st.floats(0, 1), down=st.floats(0, 1))
def test_a_cut_stays_inside_and_its_mirror_image_is_told_from_the_other_side(
    size: tuple[int, int], across: float, down: float
) -> None:
    bucket, view = choose_bucket(size, make_buckets(128)), ImageView((across, down))
    cut = bucket_crop(size, bucket, view)
    assert cut.left >= 0 and cut.left + cut.width <= size[0] + 1e-6
    assert cut.top >= 0 and cut.top + cut.height <= size[1] + 1e-6
    left = crop_sizes(size, bucket, view)[3]
    right = crop_sizes(size, bucket, view._replace(mirrored=True))[3]
    assert left + right == pytest.approx((size[0] - cut.width) * cut.scale, abs=1.01)
