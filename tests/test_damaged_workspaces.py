"""Small runs of benchmarks/poisoned.py and fuzz_workspace.py: one bad thing never stops the others,
and is named."""

import sys
from pathlib import Path

import pytest

from benchmarks.fuzz_workspace import READERS, fuzzed
from benchmarks.poisoned import EVERYTHING, faults, missing
from benchmarks.poisons import POISONS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="names are Unicode elsewhere")


@pytest.mark.parametrize("name", POISONS)
def test_a_poisoned_workspace_shows_the_good_and_goes_on(tmp_path: Path, name: str) -> None:
    assert faults(POISONS[name], tmp_path / "workspace", whole=False) == []


def test_the_page_opens_on_all_poisons_at_once(tmp_path: Path) -> None:
    assert faults(EVERYTHING, tmp_path / "workspace") == []


def test_every_poison_is_named_or_says_why_not() -> None:
    assert all(bool(poison.named) != bool(poison.harmless) for poison in POISONS.values())
    assert missing("a sound set", "a sound set", "a LoRA") == ["a LoRA is not on the page"]


def test_damaged_files_cost_no_traceback_and_nothing_good(tmp_path: Path) -> None:
    kinds, wrong = fuzzed(len(READERS) * 20, 1, tmp_path)
    assert wrong == [] and len(kinds) == len(READERS)
