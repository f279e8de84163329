"""A small run of benchmarks/prompts.py: no prompt is too odd, and none too long."""

import sys

import pytest

from benchmarks.prompts import every_stage, fuzzed, growth

DEPTH = 10_000  # far beyond Python's own recursion limit
NESTED = [
    "(" * DEPTH + "a" + ":1.2)" * DEPTH,
    "[" * DEPTH + "a" + ":0.5]" * DEPTH,
    "[a|" * DEPTH + "b" + "]" * DEPTH,
    "{a|" * DEPTH + "b" + "}" * DEPTH,
    "{" * DEPTH + "[(" * DEPTH + "<lora:a:1>",
    "<lora:" + "a" * DEPTH + ":1> " + "([{" * DEPTH,
]


def test_no_prompt_raises() -> None:
    assert fuzzed(3000, seed=1) == []


@pytest.mark.parametrize("text", NESTED)
def test_nesting_has_no_limit(text: str) -> None:
    assert sys.getrecursionlimit() < DEPTH
    every_stage(text)


@pytest.mark.parametrize("unit", ["[a:", "{a|", "((a:1", "<lora:a:1>, ", ":0.5]", "{2$$"])
def test_twice_the_text_takes_twice_the_time(unit: str) -> None:
    assert growth(unit, 1000) < 2.5
