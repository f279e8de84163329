"""Comments, styles and wildcards: the stages before tags are read."""

import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdlora.errors import SettingsError
from sdlora.prompt import (
    Style,
    apply_styles,
    expand,
    expand_wildcards,
    parse_prompt,
    read_styles,
    strip_comments,
    wildcard_folder,
)

COMMENTS = [
    ("a cat # not a dog", "a cat"),
    ("a\n# b\nc", "a\nc"),
    ("# b\nc", "c"),
    ("a\n  # b", "a\n"),
    ("a # b\n# c\n# d\ne # f\ng", "a\ne\ng"),
    ("# a\\\nb", "b"),  # a backslash does not carry a comment to the next line
    ("# <lora:a\nb", "b"),
    (r"a \# b", r"a \# b"),
    ("<lora:a#1:1> b # c", "<lora:a#1:1> b"),
    ("", ""),
]


@pytest.mark.parametrize(("text", "rest"), COMMENTS)
def test_comments(text: str, rest: str) -> None:
    assert strip_comments(text) == rest


def test_styles() -> None:
    assert apply_styles("a cat", []) == "a cat"
    assert apply_styles(" a cat ", ["oil", ""]) == "a cat, oil"
    assert apply_styles("", ["oil"]) == "oil"
    assert apply_styles("a cat", ["{prompt}, oil, {prompt}", "b"]) == "a cat, oil, a cat, b"
    assert apply_styles("{prompt}", ["oil {prompt}"]) == "oil {prompt}"


def test_styles_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "styles.csv"
    path.write_text(
        '\ufeffname,prompt,negative_prompt\noil,"oil painting, {prompt}",photo\nbare,\n,x,y\n',
        "utf-8",
    )
    assert read_styles(path) == {
        "oil": Style("oil", "oil painting, {prompt}", "photo"),
        "bare": Style("bare"),
    }
    path.write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(SettingsError, match=r"styles\.csv cannot be read"):
        read_styles(path)
    with pytest.raises(SettingsError, match="cannot be read"):
        read_styles(tmp_path / "none.csv")


LISTS = {
    "pet": ["cat", "dog"],
    "fur": ["{long|short} hair"],
    "both": ["__fur__ __pet__"],
    "self": ["x __self__"],
    "many": ["__more__ __more__"],
    "more": ["__most__ __most__"],
    "none": [],
    "rare": ["0::never", "5::often"],
}
# text -> everything that it can become
DRAWN = [
    ("a {b|c}", {"a b", "a c"}),
    ("{a}", {"a"}),
    ("{}", {""}),
    ("{a|}b", {"ab", "b"}),
    ("{a|{b|c} d}", {"a", "b d", "c d"}),
    ("{2$$a|b}", {"a, b", "b, a"}),
    ("{a|b|2$$c}", {"a, b", "b, a", "a, c", "c, a", "b, c", "c, b"}),
    ("{2$$ and $$a|b}", {"a and b", "b and a"}),
    ("{0-1$$a|b}", {"", "a", "b"}),
    ("{9$$a}", {"a"}),
    ("{1-2$$$$a|b}", {"a", "b", "ab", "ba"}),
    ("{0::a|b}", {"b"}),
    ("{[a|b]|c}", {"[a|b]", "c"}),
    ("[{a|b}:c:5]", {"[a:c:5]", "[b:c:5]"}),
    ("{<lora:a:1>|<lora:b|c:1>}", {"<lora:a:1>", "<lora:b|c:1>"}),
    ("{lora:a:0.5|lora:b}", {"lora:a:0.5", "lora:b"}),
    ("{(a:1.2)|b}", {"(a:1.2)", "b"}),
    ("__pet__s", {"cats", "dogs"}),
    ("un__pet____pet__", {"uncatcat", "uncatdog", "undogcat", "undogdog"}),
    ("__both__", {f"{fur} hair {pet}" for fur in ("long", "short") for pet in ("cat", "dog")}),
    ("__rare__", {"often"}),
    # text
    ("a | b", {"a | b"}),
    ("{a|b", {"{a|b"}),
    ("{2$$a|3::b", {"{2$$a|3::b"}),
    ("a}b", {"a}b"}),
    ("{[a|b}", {"[a|b"}),
    ("{a|b {c}", {"{a|b c"}),
    (r"\{a|b\}", {r"\{a|b\}"}),
    ("$5 {$1|$1}", {"$5 $1"}),
    ("a_b __ c__d_ ___", {"a_b __ c__d_ ___"}),
    ("<lora:__pet__:1>", {"<lora:__pet__:1>"}),
]


@pytest.mark.parametrize(("text", "possible"), DRAWN)
def test_drawn(text: str, possible: set[str]) -> None:
    found = [expand_wildcards(text, seed, LISTS.get) for seed in range(60)]
    assert {one.text for one in found} == possible
    assert not any(one.problems for one in found)


PROBLEMS = [
    ("a __nobody__", "a __nobody__", "no wildcard list of that name"),
    ("__none__", "__none__", "empty"),
    ("__self__", "x __self__", "names itself, through self"),
    ("__../etc/x__", "__../etc/x__", None),
]


@pytest.mark.parametrize(("text", "rest", "problem"), PROBLEMS)
def test_what_cannot_be_drawn(text: str, rest: str, problem: str | None) -> None:
    found = expand_wildcards(text, 0, LISTS.get)
    assert found.text == rest
    assert [problem in said for said in found.problems] == [True] * (problem is not None)


def test_lists_that_multiply_come_to_an_end() -> None:
    lists = {f"a{i}": [f"__a{i + 1}__ __a{i + 1}__"] for i in range(60)}
    found = expand_wildcards("__a0__", 0, lists.get)
    assert any("make the prompt too long" in problem for problem in found.problems)
    assert len(found.text) < 1_000_000


def test_the_seed_decides_and_weights_count() -> None:
    text = "{3::a|b} {a|b} {a|b} __pet__"
    assert expand_wildcards(text, 7, LISTS.get) == expand_wildcards(text, 7, LISTS.get)
    drawn = Counter(expand_wildcards("{3::a|b}", seed).text for seed in range(2000))
    assert 0.71 < drawn["a"] / 2000 < 0.79
    lines = Counter(
        expand_wildcards("__x__", seed, {"x": ["3::a", "b"]}.get).text for seed in range(2000)
    )
    assert 0.71 < lines["a"] / 2000 < 0.79


def test_folder(tmp_path: Path) -> None:
    folder = tmp_path / "wildcards"
    (folder / "colours").mkdir(parents=True)
    (folder / "colours" / "Warm.txt").write_text("\ufeff# all red\nred\n\n  red \r\n", "utf-8")
    (tmp_path / "secret.txt").write_text("secret", "utf-8")
    (folder / "out.txt").symlink_to(tmp_path / "secret.txt")
    lists = wildcard_folder(folder)
    assert lists("colours/warm") == lists("WARM") == ["red", "red"]
    for name in ("../secret", "secret", "out", str(tmp_path / "secret"), "colours/../out", ""):
        assert lists(name) is None, name
    assert expand_wildcards("__colours/warm__", 0, lists).text == "red"


def test_stages_in_their_order() -> None:
    found = expand(
        "a {cat|cat} # {prompt}\n__who__", 1, ["oil, {prompt}, <lora:oil:0.5>"],
        {"who": ["<lora:zibo:1>"]}.get,
    )  # fmt: skip
    prompt = parse_prompt(found.text)
    assert prompt.text == "oil, a cat\n, " and [lora.name for lora in prompt.loras] == [
        "zibo",
        "oil",
    ]
    assert expand(found.text, 99).text == found.text  # as it is kept in the picture


@given(st.text("ab{}|$2:_<>lor[]\\# \n", max_size=60), st.integers(0, 9))
def test_any_text_is_expanded(text: str, seed: int) -> None:
    found = expand(text, seed, lists=LISTS.get)
    assert found == expand(text, seed, lists=LISTS.get)


@given(st.text("ab _[]<>:()", max_size=60))
def test_text_without_wildcards_stays(text: str) -> None:
    assert expand_wildcards(text, 0).text == text


@pytest.mark.parametrize(
    "unit", ["{", "{a|", "|", "}", "{2$$", "__", "__a", "[{", "{a", "#", "{3::"]
)
def test_time_is_linear(unit: str) -> None:
    text = unit * 8_000 + "a" + "}" * 6_000
    began = time.process_time()
    expand(text, 0)
    assert time.process_time() - began < 3
