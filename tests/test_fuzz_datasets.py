"""Damage beside the pixels loses no picture and no word; see benchmarks/fuzz_datasets.py."""

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.fuzz_datasets import Counts, failures, fuzz_captions, fuzz_exif


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("fuzz", "count"), [(fuzz_exif, 240), (fuzz_captions, 400)])
def test_damaged_side_data_loses_nothing(
    tmp_path: Path, fuzz: Callable[[int, int, Path], Counts], count: int
) -> None:
    counts = fuzz(count, 1, tmp_path)
    assert counts["inputs"] == count and counts["named"] > 10
    assert not failures(counts)


def test_what_goes_wrong_is_a_failure() -> None:
    assert failures(Counts({"inputs": 9, "traceback: TypeError": 1})) == {"traceback: TypeError": 1}
    assert not failures(Counts({"inputs": 9, "named": 3, "good pictures lost": 0}))
