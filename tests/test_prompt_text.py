"""Emphasis, schedules and composition, against A1111's own documented cases."""

import doctest
import subprocess
import sys
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from growth import is_linear
from launch import ROOT
from sdlora.prompt import (
    BREAK,
    compose,
    emphasis,
    expand,
    expansion,
    parse_emphasis,
    parse_prompt,
    schedule,
    schedules,
    styles,
    wildcards,
)
from sdlora.prompt.scanner import escaped, without_escapes

PLAIN = [
    ("saber (fate)", r"saber \(fate\)"),
    (r"saber \(fate\)", r"saber \(fate\)"),
    ("a [b] {c|d} #1", r"a \[b\] \{c\|d\} \#1"),
    ("__x__ AND BREAK", r"\__x__ \AND \BREAK"),
    ("lora:x, a_b: 3", r"\lora:x, a_b: 3"),
    ("zibo", "zibo"),
]


@pytest.mark.parametrize(("words", "written"), PLAIN)
def test_words_that_mean_themselves(words: str, written: str) -> None:
    assert escaped(words) == written == escaped(written)
    drawn = expand(written, 3)
    read = parse_prompt(drawn.text)
    assert not (drawn.problems or read.problems or read.loras)
    assert schedule(read.text, 4) == [(4, written)] and len(compose(written)) == 1
    assert parse_emphasis(read.text) == [(without_escapes(words), 1)]


B = ("BREAK", -1)
# text -> pieces; the first six are the doctests of A1111's parse_prompt_attention
EMPHASIS = [
    ("normal text", [("normal text", 1)]),
    ("an (important) word", [("an ", 1), ("important", 1.1), (" word", 1)]),
    ("(unbalanced", [("unbalanced", 1.1)]),
    (r"\(literal\]", [("(literal]", 1)]),
    ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
    (
        "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
        [("a ", 1), ("house", 1.573), (" ", 1.1), ("on", 1), (" a ", 1.1), ("hill", 0.55),
         (", sun, ", 1.1), ("sky", 1.4641), (".", 1.1)],
    ),
    ("", [("", 1)]),
    ("()", [("", 1)]),
    ("[]", [("", 1)]),
    ("(:1.2)", [("", 1)]),
    ("((a))", [("a", 1.21)]),
    ("((a):1.2)", [("a", 1.32)]),
    ("[a]", [("a", 1 / 1.1)]),
    ("[[a]]", [("a", 1 / 1.21)]),
    ("[(a)]", [("a", 1)]),
    ("(a)(b)", [("ab", 1.1)]),
    ("((a:1.2) b:1.5)", [("a", 1.8), (" b", 1.5)]),
    ("(a [b] c:2)", [("a ", 2), ("b", 2 / 1.1), (" c", 2)]),
    ("(a [b) c]", [("a ", 1.1), ("b", 1), (" c", 1 / 1.1)]),  # the two kinds do not mind each other
    ("(a : 1.2)", [("a ", 1.2)]),
    ("(a: 1.2 )", [("a", 1.2)]),
    ("(a:+1.5)", [("a", 1.5)]),
    ("(a:-0.5)", [("a", -0.5)]),
    ("(a:0)", [("a", 0)]),
    ("(a:.5)", [("a", 0.5)]),
    ("(a:1.)", [("a", 1)]),
    ("(a:)", [("a:", 1.1)]),
    ("(a:b)", [("a:b", 1.1)]),
    ("(a:1.2:1.3)", [("a:1.2", 1.3)]),
    ("(a:1e1)", [("a:1e1", 1.1)]),
    ("(a:1.2", [("a:1.2", 1.1)]),
    ("a:1.2", [("a:1.2", 1)]),
    ("a:1.2)", [("a:1.2)", 1)]),
    (":)", [(":)", 1)]),
    ("a ) b", [("a ) b", 1)]),
    ("(a))b", [("a", 1.1), (")b", 1)]),
    ("(a:1..2)", [("a:1..2", 1.1)]),
    (r"\(a\)", [("(a)", 1)]),
    (r"(\(a\):1.3)", [("(a)", 1.3)]),
    (r"a \\ b", [("a \\ b", 1)]),
    (r"\a", [("a", 1)]),
    ("a\\", [("a", 1)]),
    (r"(a\:1.2)", [("a:1.2", 1.1)]),
    ("a BREAK b", [("a", 1), B, ("b", 1)]),
    ("aBREAKb", [("aBREAKb", 1)]),
    ("a_BREAK", [("a_BREAK", 1)]),
    ("break", [("break", 1)]),
    (r"a \BREAK b", [("a BREAK b", 1)]),
    ("(a BREAK b:1.2)", [("a", 1.2), B, ("b", 1.2)]),
    ("a,\nBREAK\nBREAK b", [("a,", 1), B, B, ("b", 1)]),
    ("a # b {c|d} __e__", [("a # b {c|d} __e__", 1)]),  # other stages' signs are text here
]  # fmt: skip


@pytest.mark.parametrize(("text", "pieces"), EMPHASIS)
def test_emphasis(text: str, pieces: list[tuple[str, float]]) -> None:
    found = parse_emphasis(text)
    assert [piece for piece, _ in found] == [piece for piece, _ in pieces]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in pieces])


def test_break_is_told_from_text() -> None:
    [text] = parse_emphasis(r"(\BREAK:-1)")
    assert text == BREAK and text is not BREAK
    assert parse_emphasis("a BREAK b")[1] is BREAK


def test_a_tag_keeps_its_signs() -> None:
    prompt = parse_prompt("<lora:x(1):0.5>, (a:1.2)")
    assert prompt.loras[0].name == "x(1)"
    assert parse_emphasis(prompt.text) == [(", ", 1), ("a", 1.2)]


def each(*texts: str, steps: int = 10) -> list[tuple[int, str]]:
    """A row for every step, the texts in turn."""
    return [(step, texts[(step - 1) % len(texts)]) for step in range(1, steps + 1)]


# text -> rows for 10 steps; mostly the doctests of A1111's prompt_parser
SCHEDULES = [
    ("test", [(10, "test")]),
    ("a [b:3]", [(3, "a "), (10, "a b")]),
    ("a [b: 3]", [(3, "a "), (10, "a b")]),
    ("a [[[b]]:2]", [(2, "a "), (10, "a [[b]]")]),
    ("[(a:2):3]", [(3, ""), (10, "(a:2)")]),
    ("a [b : c : 1] d", [(1, "a b  d"), (10, "a  c  d")]),
    ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
    ("a [unbalanced", [(10, "a [unbalanced")]),
    ("a [b:.5] c", [(5, "a  c"), (10, "a b c")]),
    ("((a][:b:c [d:3]", [(3, "((a][:b:c "), (10, "((a][:b:c d")]),
    ("[a|(b:1.1)]", each("a", "(b:1.1)")),
    ("[fe|]male", each("female", "male")),
    ("[fe|||]male", each("female", "male", "male", "male")),
    ("[a::5]", [(5, "a"), (10, "")]),
    ("[a:b:1.0]", [(10, "a")]),
    ("[a:b:1]", [(1, "a"), (10, "b")]),
    ("[a:b:0]", [(10, "b")]),
    ("[a:b:-3]", [(10, "b")]),
    ("[a:b:99]", [(10, "a")]),
    ("[a:b:1e999]", [(10, "[a:b:1e999]")]),
    ("[a:b]", [(10, "[a:b]")]),
    ("[a:b:c:3]", [(10, "[a:b:c:3]")]),
    ("[a:b:c:[d:3]]", [(3, "[a:b:c:]"), (10, "[a:b:c:d]")]),
    ("[a|b:5]", [(10, "[a|b:5]")]),
    ("[x]", [(10, "[x]")]),
    (r"\[a:5\]", [(10, r"\[a:5\]")]),
    ("a | b [c:5]", [(5, "a | b "), (10, "a | b c")]),  # A1111 gives up on the '|'
    ("[a (b:5] c)", [(10, "[a (b:5] c)")]),
    # AND and BREAK stay words of their own where a bracket beside them goes
    ("[a::5]AND b", [(5, "a AND b"), (10, "AND b")]),
    ("a AND[b:5]", [(5, "a AND"), (10, "a AND b")]),
    ("[a::5]BREAK[b:5]", [(5, "a BREAK"), (10, "BREAK b")]),
    ("[a::5]nd", [(5, "and"), (10, "nd")]),
]


@pytest.mark.parametrize(("text", "rows"), SCHEDULES)
def test_schedule(text: str, rows: list[tuple[int, str]]) -> None:
    assert schedule(text, 10) == rows


def test_schedule_in_the_second_pass() -> None:
    assert schedule("a [b:.5] c", 10, first_pass=10) == [(10, "a b c")]
    assert schedule("a [b:1.5] c", 10, first_pass=10) == [(5, "a  c"), (10, "a b c")]
    assert schedule("a [b:12] c", 10, first_pass=8) == [(4, "a  c"), (10, "a b c")]


COMPOSED = [
    ("a", [("a", 1)]),
    ("a photo, 16:9", [("a photo, 16:9", 1)]),  # A1111 makes this 'a photo, 16' at weight 9
    ("a :1.2 AND b:0.5", [("a", 1.2), (" b", 0.5)]),
    ("a cat:1 AND a dog:-1", [("a cat", 1), (" a dog", -1)]),
    ("aANDb", [("aANDb", 1)]),
    ("a AND b AND c: .5 ", [("a", 1), (" b", 1), (" c", 0.5)]),
    ("a (b:1.2) AND c:x", [("a (b:1.2)", 1), (" c:x", 1)]),
    (r"a \AND b", [(r"a \AND b", 1)]),
]


@pytest.mark.parametrize(("text", "texts"), COMPOSED)
def test_composed(text: str, texts: list[tuple[str, float]]) -> None:
    assert compose(text) == texts


@pytest.mark.parametrize("module", [emphasis, expansion, schedules, styles, wildcards])
def test_examples_in_docstrings(module: ModuleType) -> None:
    ran = doctest.testmod(module)
    assert ran.attempted and not ran.failed


def test_the_prompt_language_needs_no_torch() -> None:
    code = "import sys, sdlora.prompt; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


SIGNS = st.text("ab()[]{}:|.\\012 BREAKND#\n", max_size=50)


@given(SIGNS)
def test_emphasis_keeps_the_words(text: str) -> None:
    letters = "ab"
    kept = "".join(piece for piece, _ in parse_emphasis(text) if piece != "BREAK")
    assert [c for c in kept if c in letters] == [c for c in text if c in letters]
    assert all(abs(weight) <= 1e6 for _, weight in parse_emphasis(text))


@given(SIGNS, st.integers(1, 12))
def test_schedule_covers_every_step(text: str, steps: int) -> None:
    ends = [end for end, _ in schedule(text, steps)]
    assert ends == sorted(set(ends)) and ends[-1] == steps and ends[0] >= 1


@pytest.mark.parametrize(
    "unit",
    [
        *("(", "[", "(a", "[a:", ")", ":1.2)", "a:1.2)", "\\", "BREAK ", "a AND ", ":", "[a|", "|"),
        "((a:1",
    ],
)
def test_time_is_linear(unit: str) -> None:
    def read(n: int) -> None:
        text = unit * 4 * n + "a" + "]" * 3 * n + ":0.5])" * n
        parse_emphasis(text)
        schedule(text, 4)
        compose(text)

    assert is_linear(read, 500)
