"""Files of wildcard lists: text in every encoding, YAML and JSON, and what is left out of them."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from sdlora.messages import PAGE, as_message
from sdlora.prompt import PromptResources, WildcardFolder
from sdlora.prompt.wildcard_lists import WordList


def told(words: WordList) -> list[str]:
    """The problems of a list in the words of the page."""
    return [as_message(problem).on(PAGE) for problem in words.problems]


WORDS = ["crème brûlée", "garçon", "a cat"]


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
def test_every_encoding_that_can_be_told(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "x.TXT").write_bytes("\r\n".join(["# ü", *WORDS]).encode(encoding))
    words = WildcardFolder(tmp_path)("X")
    assert words is not None and list(words) == WORDS and not words.problems


def test_windows_letters_are_read_and_told(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes("\n".join(WORDS).encode("cp1252"))
    words = WildcardFolder(tmp_path)("x")
    assert words is not None and list(words) == WORDS
    assert told(words) == ["x.txt is not UTF-8 text and is read as Windows-1252; save it as UTF-8"]


@pytest.mark.parametrize(
    "content",
    [
        "一只猫\n一只狗".encode("gbk"),
        "кошка\nсобака".encode("cp1251"),
        "猫\n犬".encode("shift-jis"),
        b"\x00\x01\x02\x03\x00\x00\xff",
        b"\xff\xfea",
    ],
)
def test_what_cannot_be_told_is_named_and_never_guessed(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(content)
    positive, _ = PromptResources(wildcards=tmp_path).expand("a __x__", "", 1)
    assert positive.text == "a __x__"
    assert any("x.txt is not used: it is not" in problem for problem in positive.problems)


def test_damaged_lines_are_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes("猫\n一\n只\n狗\n".encode() + "犬".encode()[:2] + b"\ndog\n")
    words = WildcardFolder(tmp_path)("x")
    assert words is not None and list(words) == ["猫", "一", "只", "狗", "dog"]
    assert told(words) == [
        "x.txt has 1 damaged lines, which are not used: they are not UTF-8 text; save it as UTF-8"
    ]


def test_the_rest_of_a_huge_list_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("é" * 1000 + "\n" + "ab\n" * 1_500_000, "utf-8")
    words = WildcardFolder(tmp_path)("x")
    assert words is not None and set(words) == {"é" * 1000, "ab"}
    assert told(words) == ["only the first 4 MiB of x.txt are used"]


YAML = """
# lists
shoes:
  winter: [boots, "{red|blue} boots"]
  summer:
    - sandals
    - no
    - 2::__a__
one: word
empty:
"""


@pytest.mark.parametrize("ending", [".yaml", ".YML", ".json"])
def test_lists_by_their_keys(ending: str, tmp_path: Path) -> None:
    table = {
        "shoes": {"winter": ["boots", "{red|blue} boots"], "summer": ["sandals", "no", "2::__a__"]},
        "one": "word",
        "empty": None,
    }
    text = json.dumps(table) if ending == ".json" else YAML
    (tmp_path / f"clothes{ending}").write_text(text, "utf-8")
    lists = WildcardFolder(tmp_path)
    for name in ("shoes/winter", "Clothes/shoes/winter"):
        assert lists(name) == ("boots", "{red|blue} boots")
    assert lists("shoes/summer") == ("sandals", "no", "2::__a__")
    assert lists("one") == ("word",) and lists("empty") is lists("shoes") is None
    assert len(lists("shoes/*") or ()) == 5


def test_a_list_alone_has_the_name_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "pets.json").write_text('["cat", 3, "dog"]', "utf-8")
    (tmp_path / "fruit.yaml").write_text("- apple\n- pear\n", "utf-8")
    lists = WildcardFolder(tmp_path)
    assert lists("a/pets") == lists("pets") == ("cat", "3", "dog")
    assert lists("fruit") == ("apple", "pear")


def test_entries_that_are_no_texts_are_told(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a:\n  - {red|blue}\n  - cat\n  - [b]\n", "utf-8")
    words = WildcardFolder(tmp_path)("a")
    assert words == ("cat",)
    assert told(words)[0].startswith("2 entries of x.yaml are not used, for they are no texts")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.yaml", b"a:\n  - b\n - c"),
        ("x.yaml", b"a: {red|blue} hair"),
        ("x.json", b'{"a": ["b",]'),
        ("x.yaml", b"a: &a [x, *a]"),
        ("x.json", b"[" * 100_000),
        ("x.yaml", b"[" * 100_000),
        ("x.yaml", b"\x00\xff\x00\x01"),
        ("a.csv", b"b,c"),
        ("a.docx", b"PK"),
    ],
)
def test_a_file_that_is_not_read_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    (tmp_path / "good.txt").write_text("dog")
    positive, _ = PromptResources(wildcards=tmp_path).expand("__a__ __good__", "", 1)
    assert positive.text == "__a__ dog"
    assert any(name in problem for problem in positive.problems)


def test_references_in_yaml_come_to_an_end(tmp_path: Path) -> None:
    rows = ["a: &a [x, x, x]", "b: &b {p: *a, q: *a}"]
    rows += [
        f"{letter}: &{letter} {{p: *{before}, q: *{before}}}"
        for before, letter in pairwise("bcdefghijklmnopqrstuvw")
    ]
    (tmp_path / "x.yaml").write_text("\n".join(rows), "utf-8")
    words = WildcardFolder(tmp_path)("a")
    assert words is not None and list(words) == ["x", "x", "x"]
    assert "are not used" in told(words)[0]


def test_stars_stand_for_parts_of_names(tmp_path: Path) -> None:
    for name in ("hair/red", "hair/dark/black", "hat"):
        path = tmp_path / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    lists = WildcardFolder(tmp_path)
    for name, expected in {
        "hair/*": {"hair/red"},
        "ha*": {"hat"},
        "hair/**": {"hair/red", "hair/dark/black"},
        "**": {"hair/red", "hair/dark/black", "hat"},
        "h*/*d": {"hair/red"},
    }.items():
        assert set(lists(name) or ()) == expected
        drawn = PromptResources(wildcards=tmp_path).expand(f"__{name}__", "", 3)[0]
        assert drawn.text in expected and not drawn.problems
    assert lists("x*") is None


def test_a_file_that_cannot_be_opened_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.txt").write_text("a")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    words = WildcardFolder(tmp_path)("x")
    assert words is not None and told(words) == [
        "x.txt is not used: it cannot be read (Permission denied)"
    ]
