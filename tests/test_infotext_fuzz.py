"""A small run of benchmarks/fuzz_infotexts.py: no picture's text is too odd, and what is good in
it is read."""

from pathlib import Path

import pytest

from benchmarks.fuzz_infotexts import MAKERS, Case, fuzzed, outcome
from sdlora.lora.library.library import Library
from sdlora.workspace import Workspace


def test_changed_texts_cost_no_traceback_and_no_good_value(workspace: Path) -> None:
    kinds, wrong = fuzzed(400, 1, workspace)
    assert wrong == [] and len(kinds) == len(MAKERS)


@pytest.mark.parametrize(
    ("case", "problem"),
    [
        (Case("x", "a\nSteps: 20, Seed: 1, Size: 8x8", fields={"Steps": "21"}), "lost: Steps: 21"),
        (Case("x", "a\nSteps: 20, Seed: 1, Size: 8x8", prompt="b"), "lost: b"),
        (Case("x", "a\nSteps: 20, Seed: 1, Size: 8x8", named=("VAE",)), "unnamed: VAE"),
        (Case("x", picture=b"none", fields={"Steps": "1"}), "lost: "),
    ],
)
def test_what_is_lost_would_be_seen(case: Case, problem: str, workspace: Path) -> None:
    space = Workspace.open(workspace)
    assert outcome(case, space, Library.for_workspace(space)).startswith(problem)
