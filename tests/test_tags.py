"""The tag grammar, case by case; then what must hold for any text."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from growth import is_linear
from sdlora.prompt import LoraTag, Prompt, open_tokenizer, parse_prompt
from sdlora.prompt.tags import from_rules_1
from sdlora.workspace import STARTER_MODEL

FOO = LoraTag("foo")


def both(name: str, weight: float) -> LoraTag:
    return LoraTag(name, weight, weight)


# prompt, text left over, LoRAs; the prompt is understood without a problem
UNDERSTOOD = [
    ("a cat <lora:foo:0.8>", "a cat ", [both("foo", 0.8)]),
    ("<lora:foo>", "", [FOO]),
    ("<lora:foo:0.8:0.4>", "", [LoraTag("foo", unet=0.4, text_encoder=0.8)]),
    ("<lora:foo:te=0.5:unet=1>", "", [LoraTag("foo", 1.0, 0.5)]),
    ("<lora:bar:0.5:-1.0>", "", [LoraTag("bar", unet=-1.0, text_encoder=0.5)]),
    ("<lora:foo: te = 0.5 >", "", [both("foo", 0.5)]),
    ("<lora:foo:unet=1>", "", [FOO]),
    ("<lora:foo:unet=.5>", "", [LoraTag("foo", 0.5, 1.0)]),
    ("<lora:foo:1:unet=0>", "", [LoraTag("foo", 0.0, 1.0)]),
    ("<lora:foo:te=.5>", "", [both("foo", 0.5)]),
    ("<lora:foo:TE=.5>", "", [both("foo", 0.5)]),
    ("<lora:foo:1:0.5:unet=0.2:te=0.3>", "", [LoraTag("foo", 0.2, 0.3)]),
    ("<lora:foo:-1.2>", "", [both("foo", -1.2)]),
    ("<lora:foo:+.5>", "", [both("foo", 0.5)]),
    ("<lora:foo:1.>", "", [FOO]),
    ("<lora:foo:1e-1>", "", [both("foo", 0.1)]),
    ("<lora:foo:0>", "", [both("foo", 0.0)]),
    ("<lora: foo :1>", "", [FOO]),
    ("<lora:foo\n:1>", "", [FOO]),
    ("<lora:my lora (v1.2):0.7>", "", [both("my lora (v1.2)", 0.7)]),
    ("<lora:sub/foo:1>", "", [LoraTag("sub/foo")]),
    ("<lora:a=b:1>", "", [LoraTag("a=b")]),
    ("<lora:x(1):0.5>, (a:1.2)", ", (a:1.2)", [both("x(1)", 0.5)]),
    ("<LORA:foo:1>", "", [FOO]),
    ("<lyco:foo:1>", "", [FOO]),
    ("<lora:猫:1>", "", [LoraTag("猫")]),
    ("<lora:foo:1>>", ">", [FOO]),
    ("(<lora:foo:1>)", "()", [FOO]),
    ("(cat <lora:foo:1>:1.2)", "(cat :1.2)", [FOO]),
    ("<lora:a:1><lora:b:0.5>", "", [LoraTag("a"), both("b", 0.5)]),
    ("<lora:a:0.5> <lora:a:0.3>", " ", [both("a", 0.5), both("a", 0.3)]),
    ("red|<lora:test:1.0>|black", "red||black", [LoraTag("test")]),
    ("{<lora:a:0.5>|<lora:b:0.5>}", "{|}", [both("a", 0.5), both("b", 0.5)]),
    ("[<lora:foo:1>]", "[]", [FOO]),
    ("<lora:foo:1:hr=0.5>", "", [LoraTag("foo", hires=0.5)]),
    ("ugly <lora:n:1>", "ugly ", [LoraTag("n")]),  # as from a negative prompt
    ("<lora:foo#1:1>", "", [LoraTag("foo#1")]),
    ("<lora:my__name__v2:1>", "", [LoraTag("my__name__v2")]),
    # bare
    ("lora:foo:0.8", "", [both("foo", 0.8)]),
    ("a, lora:foo:0.8, b", "a, , b", [both("foo", 0.8)]),
    ("lora:foo", "", [FOO]),
    ("Lora:foo:0.5:0.25", "", [LoraTag("foo", 0.25, 0.5)]),
    ("a house lora:a:0.7 lora:b:0.5", "a house  ", [both("a", 0.7), both("b", 0.5)]),
    ("(lora:foo:0.8)", "()", [both("foo", 0.8)]),
    ("(a) lora:foo:0.8:1.2)", "(a) )", [LoraTag("foo", 1.2, 0.8)]),  # that ) closes nothing
    ("(lora:foo:0.8:1.2, a)", "(, a)", [LoraTag("foo", 1.2, 0.8)]),
    ("(<lora:foo:0.8:1.2>)", "()", [LoraTag("foo", 1.2, 0.8)]),
    ("a<lora:foo>AND b", "a AND b", [FOO]),  # AND stays a word
    ("a<lora:foo>b", "ab", [FOO]),
    ("with lora:foo:0.8. Then", "with . Then", [both("foo", 0.8)]),
    # the commas beside a tag are tokens of the text
    (
        "some prompt, very cool, <lora:hey-lora:0.4>,  cool   <lora:you-lora:0.2>",
        "some prompt, very cool, ,  cool   ",
        [both("hey-lora", 0.4), both("you-lora", 0.2)],
    ),
    ("<lora:foo>, b", ", b", [FOO]),
    ("a, <lora:foo>", "a, ", [FOO]),
    ("a, <lora:a>, <lora:b>, c", "a, , , c", [LoraTag("a"), LoraTag("b")]),
    ("a\n<lora:foo>\nb", "a\n\nb", [FOO]),
    ("a  b,, c <lora:foo>", "a  b,, c ", [FOO]),
    # not tags
    ("", "", []),
    ("  a ,, b  ", "  a ,, b  ", []),
    ("<lora:>", "<lora:>", []),
    ("<lora :foo:1>", "<lora :foo:1>", []),
    ("< lora:foo:1 >", "<  >", [FOO]),
    ("<foo>", "<foo>", []),
    ("1 < 2 and 3 > 2", "1 < 2 and 3 > 2", []),
    ("explora:foo:1", "explora:foo:1", []),
    ("http://lora:80", "http://lora:80", []),
    ("x.lora:foo", "x.lora:foo", []),
    ("cat lora:foo]", "cat ]", [FOO]),
    (r"\<lora:foo:1>", r"\<lora:foo:1>", []),
    ("lora: a name", "lora: a name", []),
    # nor InvokeAI's language
    ("a c+ grade, sci-fi, 18+, (a) 1.3, 2--3 x", "a c+ grade, sci-fi, 18+, (a) 1.3, 2--3 x", []),
    (r"saber \(fate\)1.5, (a)2, :-) :)", r"saber \(fate\)1.5, (a)2, :-) :)", []),
]
# prompt, text left over, LoRAs, part of the one problem
DOUBTED = [
    ("<lora:foo:0.8:0.4:16>", "", [LoraTag("foo", 0.4, 0.8)], "'dyn' is not used"),
    ("<lora:foo:dyn=8>", "", [FOO], "'dyn' is not used"),
    ("<lora:foo:x=3>", "", [FOO], "'x' is not used"),
    ("<lora:foo:1:lbw=IN02>", "", [FOO], "'lbw' is not used"),
    ("<lora:foo:>", "", [FOO], "empty weight; 1 is used"),
    ("<lora:foo:0.8:>", "", [both("foo", 0.8)], "empty weight; 0.8 is used"),
    ("<lora:foo::0.8>", "", [LoraTag("foo", 0.8, 1.0)], "empty weight; 1 is used"),
    ("<lora:foo:unet=:te=0.3>", "", [both("foo", 0.3)], "empty weight; 0.3 is used"),
    ("<lora:foo:0.8:hr=>", "", [both("foo", 0.8)], "the second pass has the weight of the first"),
    # emphasis of the brackets, not the second weight of a bare tag
    ("(lora:foo:0.8:1.2)", "(:1.2)", [both("foo", 0.8)], "1.2 after lora:foo:0.8 is the strength"),
    ("(a cat lora:foo:0.8:1.2), b", "(a cat :1.2), b", [both("foo", 0.8)], "<lora:foo:0.8:1.2>"),
    ("((a) lora:foo:te=.3:1.2)", "((a) :1.2)", [both("foo", 0.3)], "strength of the brackets"),
    ("<lora:foo:abc>", "", [], "'abc' is not a weight"),
    ("<lora:foo:1.0.0>", "", [], "'1.0.0' is not a weight"),
    ("<lora:foo:1,5>", "", [], "'1,5' is not a weight"),
    ("<lora:foo:nan>", "", [], "'nan' is not a weight"),
    ("<lora:foo:inf>", "", [], "'inf' is not a weight"),
    ("<lora:foo:1e999>", "", [], "'1e999' is not a weight"),
    ("<lora:foo:1_0>", "", [], "'1_0' is not a weight"),
    ("a lora:foo:high, b", "a , b", [], "'high' is not a weight"),
    ("<lora::1>", "", [], "names no LoRA"),
    ("<lora:foo:1", "<lora:foo:1", [], "not closed"),
    ("<lora:a:1 <lora:b:1>", "<lora:a:1 ", [LoraTag("b")], "not closed"),
    ("<a:<lora:foo:1>>", "<a:>", [FOO], "'<a:' is not closed"),
    ("[lora:a:1:0.5]", "[]", [LoraTag("a", 0.5, 1.0)], "[<lora:a:1>:0.5]"),
    ("<lora:foo:1@0.5,2>", "", [], "'1@0.5,2' is not a weight"),
    ("<lora:foo:1@-1>", "", [], "'1@-1' is not a weight"),
    ("<lora:foo:hr=0@0,1@1>", "", [LoraTag("foo", hires=1.0)], "hr is the strongest"),
    ("[" * 20 + "<lora:foo:1>" + ":0.5]" * 20, "[" * 20 + ":0.5]" * 20, [], "too many [...]"),
    # InvokeAI's language
    ("a cat++, b", "a cat++, b", [], "'cat++' is InvokeAI's syntax .* here it is (cat:1.21)"),
    ("(a red)1.3 b", "(a red)1.3 b", [], "'(a red)1.3' is InvokeAI's .* here it is (a red:1.3)"),
    ("(a red)-, b", "(a red)-, b", [], "here it is (a red:0.9)"),
    ("dull--<lora:foo>", "dull--", [FOO], "here it is (dull:0.81)"),
    ('("a", "b").blend(1, 0.5)', '("a", "b").blend(1, 0.5)', [], "').blend(' is InvokeAI's"),
    ("a <hypernet:foo:1> b", "a  b", [], "only <lora:name:weight> is known"),
]


@pytest.mark.parametrize(("text", "rest", "loras"), UNDERSTOOD)
def test_understood(text: str, rest: str, loras: list[LoraTag]) -> None:
    prompt = parse_prompt(text)
    assert (prompt.text, list(prompt.loras), prompt.problems) == (rest, loras, ())


@pytest.mark.parametrize(("text", "rest", "loras", "problem"), DOUBTED)
def test_doubted(text: str, rest: str, loras: list[LoraTag], problem: str) -> None:
    prompt = parse_prompt(text)
    assert (prompt.text, list(prompt.loras)) == (rest, loras)
    [told] = prompt.problems
    assert all(part in told for part in problem.split(" .* "))


def test_a_bad_tag_leaves_the_others_on() -> None:
    text = "<lora:foo:1..2>, <lora:bar:.>, <test:1.0>, <lora:baz:+> and <lora:quux:>"
    prompt = parse_prompt(text)
    assert prompt.text == ", , ,  and " and prompt.loras == (LoraTag("quux"),)
    assert len(prompt.problems) == 5


# prompt -> for each LoRA its UNet weights at steps 0 to 9 of 10
OVER_THE_STEPS = [
    ("<lora:a:0@0,1@0.5>", ["0 .2 .4 .6 .8 1 1 1 1 1"]),
    ("<lora:a:0@0,1@1>", ["0 .1 .2 .3 .4 .5 .6 .7 .8 .9"]),  # a whole 1 is the end
    ("<lora:a:0@0,1@4>", ["0 .25 .5 .75 1 1 1 1 1 1"]),
    ("<lora:a:1@0,0@1,0@3,1@3>", ["1 0 0 1 1 1 1 1 1 1"]),  # in steps, with a jump
    ("<lora:a:0@0.2,1@4>", ["0 0 0 .5 1 1 1 1 1 1"]),
    ("<lora:a:1@0.5,0@0>", ["0 .2 .4 .6 .8 1 1 1 1 1"]),  # in any order
    ("<lora:a:.5@3>", [".5 .5 .5 .5 .5 .5 .5 .5 .5 .5"]),
    ("<lora:a:te=0.3:unet=0@0,1@0.5>", ["0 .2 .4 .6 .8 1 1 1 1 1"]),
    ("<lora:a:-1@0,0.2@0.5>", ["-1 -.76 -.52 -.28 -.04 .2 .2 .2 .2 .2"]),
    ("<lora:a:0.5@0,-0.5@0.5>", [".5 .3 .1 -.1 -.3 -.5 -.5 -.5 -.5 -.5"]),
    ("[<lora:a:1>:0.5]", ["0 0 0 0 0 1 1 1 1 1"]),
    ("[<lora:a:.8>:3]", ["0 0 0 .8 .8 .8 .8 .8 .8 .8"]),
    ("[<lora:a:1>::0.25]", ["1 1 0 0 0 0 0 0 0 0"]),
    ("[cat:dog <lora:a:1>:0.5]", ["0 0 0 0 0 1 1 1 1 1"]),
    ("[a:[b:<lora:a:1>:2]:5]", ["0 0 0 0 0 1 1 1 1 1"]),
    ("[[<lora:a:1>::0.8]:2]", ["0 0 1 1 1 1 1 1 0 0"]),
    ("[(<lora:a:1>:1.2):4]", ["0 0 0 0 1 1 1 1 1 1"]),
    ("[<lora:a:1@0,0@0.5>:2]", ["0 0 .6 .4 .2 0 0 0 0 0"]),
    (
        "[<lora:a:1>|<lora:b:1>|x]",
        ["1 0 0 1 0 0 1 0 0 1", "0 1 0 0 1 0 0 1 0 0"],
    ),
    (
        "[<lora:foo:0.5>:<lora:bar:0.5:0.2>:0.3] <lora:bar:0.5:1.0>",
        [".5 .5 .5 0 0 0 0 0 0 0", "0 0 0 .2 .2 .2 .2 .2 .2 .2", "1 1 1 1 1 1 1 1 1 1"],
    ),
]


@pytest.mark.parametrize(("text", "weights"), OVER_THE_STEPS)
def test_over_the_steps(text: str, weights: list[str]) -> None:
    prompt = parse_prompt(text)
    found = [[lora.at(step, 10)[0] for step in range(10)] for lora in prompt.loras]
    assert found == [pytest.approx([float(w) for w in row.split()]) for row in weights]
    assert not prompt.problems


def test_text_encoder_keeps_one_weight_unless_its_text_comes_and_goes() -> None:
    [curve] = parse_prompt("<lora:a:0@0,0.8@0.5>").loras
    assert {curve.at(step, 10)[1] for step in range(10)} == {0.8} and not curve.is_constant
    [switched] = parse_prompt("[<lora:a:0.3:0.8>:0.5]").loras
    assert [switched.at(step, 10) for step in (4, 5)] == [(0, 0), (0.8, 0.3)]
    assert len(switched.points) == 2 and not switched.is_constant
    assert parse_prompt("<lora:a:1>").loras[0].is_constant


@pytest.mark.parametrize(
    ("tag", "strongest"),
    [
        ("<lora:a:-1@0,0.2@0.5>", (-1.0, -1.0, None)),
        ("<lora:a:0.2@0,-0.8@1>", (-0.8, -0.8, None)),
        ("<lora:a:-0.8@0,-0.2@1>", (-0.8, -0.8, None)),
        ("<lora:a:te=0.3:unet=0@0,-1@0.5>", (-1.0, 0.3, None)),
        ("<lora:a:1:hr=0.5>", (1.0, 1.0, 0.5)),
        ("<lora:a:1:hr=-0.5>", (1.0, 1.0, -0.5)),
        ("[<lora:a:-0.8>:0.5]", (-0.8, -0.8, None)),
    ],
)
def test_the_strongest_weight_is_the_one_farthest_from_zero(
    tag: str, strongest: tuple[float, float, float | None]
) -> None:
    """A weight that changes over the steps from -1 to 0.2 is -1 at its strongest, not 0.2."""
    [lora] = parse_prompt(tag).loras
    assert (lora.unet, lora.text_encoder, lora.hires) == strongest


def test_second_pass_of_hires_fix() -> None:
    loras = parse_prompt(
        "<lora:a:1:hr=0.5> [<lora:b:1>:0.5] [<lora:c:1>:1.5] [<lora:d:1:hr=0.4>:1.5]"
    ).loras
    assert [lora.at(0, 10)[0] for lora in loras] == [1, 0, 0, 0]
    assert [lora.at(0, 10, first_pass=20)[0] for lora in loras] == [0.5, 1, 0, 0]
    assert [lora.at(5, 10, first_pass=20)[0] for lora in loras] == [0.5, 1, 1, 0.4]


A1111_TAG = re.compile(r"<(\w+):([^>]+)>")  # modules/extra_networks.py


@given(st.lists(st.sampled_from(["<lora:x:1>", "<lyco:y>", ", ", " ", ",", "a cat", "(", ":1.2)"])))
def test_the_text_left_over_is_that_of_a1111(pieces: list[str]) -> None:
    text = "".join(pieces)
    assert parse_prompt(text).text == A1111_TAG.sub("", text)


def test_commas_around_tags_are_tokens_as_in_a1111() -> None:
    tokenize = open_tokenizer(STARTER_MODEL)
    ours, theirs = (
        [unit.numbers for unit in tokenize(text)]
        for text in (parse_prompt("a cat, <lora:x:1>, red").text, "a cat, , red")
    )
    assert ours == theirs != [unit.numbers for unit in tokenize("a cat, red")]


def left_over_by_rules_1(text: str) -> str:
    """What the first rules left of a text whose tags all begin with <lora:."""
    pieces = A1111_TAG.sub("\0", text).split("\0")
    if len(pieces) == 1:
        return text
    words = [pieces[0].rstrip()]
    gap = pieces[0][len(words[0]) :]
    for piece in pieces[1:]:
        core = piece.lstrip()
        gap = gap or piece[: len(piece) - len(core)]
        if (core.startswith(",") and words[-1].endswith(tuple(",([{|"))) or not words[-1]:
            core = core.removeprefix(",").lstrip()
        elif core.startswith(","):
            gap = ""
        if core:
            words += [gap, core.rstrip()]
            gap = core[len(words[-1]) :]
    rest = "".join(words).strip()
    return rest if pieces[-1].strip(" ,") else rest.removesuffix(",").rstrip()


@given(st.lists(st.sampled_from(["<lora:x:1>", ", ", " ", ",", "a", "(b", ":1.2)", "|", "\n"])))
def test_a_prompt_of_the_first_rules_keeps_its_words(pieces: list[str]) -> None:
    text = "".join(pieces)
    now = parse_prompt(from_rules_1(text))
    assert "".join(now.text.split()) == "".join(left_over_by_rules_1(text).split())
    assert now.loras == parse_prompt(text).loras


def test_a_bare_tag_of_the_first_rules_keeps_its_weights() -> None:
    before = from_rules_1("(a cat lora:foo:0.8:1.2), b")
    assert parse_prompt(before) == Prompt("(a cat ), b", (LoraTag("foo", 1.2, 0.8),))


@given(st.text("<>lorayc:.,[]()te=unx0123456789 \n-\\|", max_size=60))
def test_any_text_is_read_and_read_again(text: str) -> None:
    prompt = parse_prompt(text)
    assert parse_prompt(text) == prompt
    if not prompt.loras and not prompt.problems:
        assert prompt.text == text


@pytest.mark.parametrize(
    "unit",
    [
        *("<lora:", "<lora:a:1>", "<lora:a:1>, ", "lora:a", "<", "[", "<a", ", ", "(", "]", "__"),
        *(
            "__a",
            "a++",
            "+",
            ")-",
            "__a b ",
            "(lora:a:1:1)",
            "lora:a....",
            "lora:a ",
            "[<lora:a:1>:",
            "[a|",
            ":0.5]",
            "\\",
            "a ",
            "1@0,",
        ),
    ],
)
def test_time_is_linear(unit: str) -> None:
    assert is_linear(lambda n: parse_prompt("big cat, " * (n // 2) + unit * n), 6000)
