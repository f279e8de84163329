"""Comments, styles and wildcards: the stages before tags are read."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from growth import is_linear
from sdlora.errors import SettingsError
from sdlora.messages import PAGE
from sdlora.prompt import (
    PromptResources,
    Style,
    WildcardFolder,
    apply_styles,
    expand,
    expand_wildcards,
    parse_prompt,
    read_styles,
    strip_comments,
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


OIL = {"oil": Style("oil", "oil painting, {prompt}", "photo"), "bare": Style("bare")}
TABLES = {
    "semicolons": 'name;prompt;negative_prompt\noil;"oil painting, {prompt}";photo\nbare;;\n',
    "tabs": "Name\tPrompt\tNegative_Prompt\noil\toil painting, {prompt}\tphoto\nbare\t\t\n",
    "a spreadsheet's first line": (
        "sep=;\r\nname;prompt;negative_prompt\r\noil;oil painting, {prompt};photo\r\nbare\r\n"
    ),
    "empty cells": (
        'name,prompt,negative_prompt,,\noil,"oil painting, {prompt}",photo,,\nbare,,,,,\n'
    ),
    "another order": 'negative_prompt,text,name\nphoto,"oil painting, {prompt}",oil\n,,bare\n\n',
}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_styles_of_tables_of_every_kind(table: str, encoding: str, tmp_path: Path) -> None:
    (path := tmp_path / "styles.csv").write_text(TABLES[table], encoding, newline="")
    styles = read_styles(path)
    assert styles == OIL and not styles.problems


HEAD = "name,prompt,negative_prompt\n"
# table, names of the styles, part of what is told
LEFT_OUT = [
    (HEAD + "oil,oil painting, thick,ugly\nb,c,\n", ["b"], "row oil of styles.csv is not used"),
    (HEAD + ",x,y\nb,c,\n", ["b"], "row 2 of styles.csv is not used: it has no name"),
    (HEAD + "b,c,\nb,d,\n", ["b"], "there is a style 'b' before it"),
    (HEAD + 'a,"x,\nb,c,\nd,e,f\n', ["b", "d"], 'its quotes are not closed: a,"x'),
]


@pytest.mark.parametrize(("table", "names", "told"), LEFT_OUT)
def test_a_bad_row_leaves_the_other_styles(
    table: str, names: list[str], told: str, tmp_path: Path
) -> None:
    (path := tmp_path / "styles.csv").write_text(table, "utf-8")
    styles = read_styles(path)
    assert list(styles) == names
    assert any(told in problem.on(PAGE) for problem in styles.problems)
    assert set(styles.problems) <= set(
        PromptResources(path).expand("a", "", 1, names[:1])[0].problems
    )


@pytest.mark.parametrize("table", ["oil,a painting\n", "name\noil\n", "Stil;Text\noil;a\n"])
def test_a_table_without_the_columns_is_told(table: str, tmp_path: Path) -> None:
    (path := tmp_path / "styles.csv").write_text(table, "utf-8")
    with pytest.raises(SettingsError, match=r"has no columns name and prompt .* (oil|name|Stil)"):
        read_styles(path)
    assert "no columns" in PromptResources(path).expand("a", "", 1, ["oil"])[0].problems[0]


def test_embeddings_by_the_name_that_comfyui_writes(tmp_path: Path) -> None:
    for name in ("bad-hands.safetensors", "Deep.v2.pt", "sub/x.SFT"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    book = PromptResources(embeddings=tmp_path)
    prompt = (
        "(embedding:bad-hands:1.2), Embedding:sub/X.safetensors. embedding:deep.v2, embedding: a"
    )
    positive, negative = book.expand(prompt, "{embedding:bad-hands.pt|embedding:bad-hands}", 1)
    assert positive.text == "(bad-hands:1.2), X. deep.v2, embedding: a"
    assert negative.text == "bad-hands" and not positive.problems + negative.problems
    unknown, _ = book.expand("a embedding:bad-hand b", "", 1)
    assert unknown.text == "a embedding:bad-hand b"
    assert "no textual inversion 'bad-hand'" in unknown.problems[0]
    assert "Did you mean bad-hands?" in unknown.problems[0]


LISTS = {
    "pet": ["cat", "dog"],
    "fur": ["{long|short} hair"],
    "both": ["__fur__ __pet__"],
    "self": ["x __self__"],
    "many": ["__more__ __more__"],
    "more": ["__most__ __most__"],
    "none": [],
    "rare": ["0::never", "5::often"],
    "w": ["0.2", "0.4"],
    "fours": ["a", "b", "c", "d"],
    "same": ["x", "x", "y"],
    "hair color": ["red"],
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
    ("<lora:__nobody__:1>", {"<lora:__nobody__:1>"}),  # there may be a LoRA of that name
    ("<lora:my__pet__v2:1>", {"<lora:my__pet__v2:1>"}),
    ("lora:my__pet__v2:1", {"lora:my__pet__v2:1"}),
    ("<lora:a{b}:1>", {"<lora:a{b}:1>"}),
    # inside of tags
    ("<lora:x:{0.5|0.7}>", {"<lora:x:0.5>", "<lora:x:0.7>"}),
    ("<lora:x:__w__>", {"<lora:x:0.2>", "<lora:x:0.4>"}),
    ("lora:x:{0.5|0.7}, y", {"lora:x:0.5, y", "lora:x:0.7, y"}),
    ("lora:x:__w__", {"lora:x:0.2", "lora:x:0.4"}),
    ("<lora:__pet__:1>", {"<lora:cat:1>", "<lora:dog:1>"}),
    (
        "<lora:{a|b}_v{1|2}:te={0|1}>",
        {f"<lora:{a}_v{b}:te={c}>" for a in "ab" for b in "12" for c in "01"},
    ),
    (
        "[<lora:x:{0.5|0.7}>:{3|4}]",
        {f"[<lora:x:{weight}>:{step}]" for weight in (0.5, 0.7) for step in (3, 4)},
    ),
    ("{<lora:x:{1|2}>|b}", {"<lora:x:1>", "<lora:x:2>", "b"}),
    ("<lora:x:{0.5|0.7>}", {"<lora:x:{0.5|0.7>}"}),
    # how many
    ("{2$$__fours__}", {f"{a}, {b}" for a in "abcd" for b in "abcd" if a != b}),
    ("{2$$ and $$__pet__}", {"cat and dog", "dog and cat"}),
    ("{2$$__same__}", {"x, y", "y, x"}),
    ("{2-$$a|b}", {"a, b", "b, a"}),
    ("{1-$$a|b}", {"a", "b", "a, b", "b, a"}),
    (
        "{-2$$a|b|c}",
        {x for x in ("a", "b", "c")} | {f"{x}, {y}" for x in "abc" for y in "abc" if x != y},
    ),
    ("{-1$$+$$a|b}", {"a", "b"}),
    ("{-a|b}", {"-a", "b"}),
    ("{-1|2-}", {"-1", "2-"}),
    ("{0.5::a|0::b}", {"a"}),
    # names
    ("__hair color__ x", {"red x"}),
    ("a __b c", {"a __b c"}),
    ("a __ b__ c__", {"a __ b__ c__"}),
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
    ("<lora:x:__nobody__>", "<lora:x:__nobody__>", "no wildcard list of that name"),
    ("{2$$__nobody__}", "__nobody__", "no wildcard list of that name"),
    # of the grammar of dynamic prompts
    ("a ${x={b|c}} d", "a ${x={b|c}} d", "variables are not known here"),
    ("${x}", "${x}", "variables are not known here"),
    ("__pet(x=1)__", "__pet(x=1)__", "lists with parameters are not known here"),
    ("__~pet__", "__~pet__", "samplers of wildcards are not known here"),
    ("{x$$a}", "x$$a", "only a count such as 2 or 1-3 stands before it"),
    ("{1$$a|2$$a}", "a", "has a count already"),
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
    lists = WildcardFolder(folder)
    assert lists("colours/warm") == lists("WARM") == ("red", "red")
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
    assert is_linear(lambda n: expand(unit * 4 * n + "a" + "}" * 3 * n, 0), 500)
