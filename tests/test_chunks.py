"""Chunks against a plain reference, token counts against transformers, and the view of a prompt."""

import random
import shutil
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from sdlora.errors import ModelError
from sdlora.prompt import chunked, open_tokenizer, parse_emphasis, preview_prompt
from sdlora.prompt.chunks import BACKTRACK, CHUNK, Unit
from sdlora.workspace import STARTER_MODEL
from tiny import tiny

TEXTS = (
    *(
        "",
        "a cat",
        "  A  CAT, sitting\non   a mat  ",
        "it's 1girl's 猫 🐈 é é (x:1.2)",
        "'ll don't",
    ),
    *("a_b-c...d,,e", "<|endoftext|> x", "\u202e\0\t", "house " * 90, "CamelCase ΑΒΓ ǅ ﬁ"),
)


@pytest.mark.parametrize("form", ["starter", "letters", "two files"])
def test_tokens_are_those_of_transformers(form: str, tmp_path: Path) -> None:
    folder = STARTER_MODEL if form == "starter" else tiny("sd1")
    theirs = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    if form == "two files":
        folder = tmp_path
        (folder / "tokenizer").mkdir()
        theirs.backend_tokenizer.model.save(str(folder / "tokenizer"))
    ours = open_tokenizer(folder)
    for text in TEXTS:
        units = ours(text)
        expected = theirs(text, add_special_tokens=False, verbose=False).input_ids
        assert [number for unit in units for number in unit.numbers] == expected, text
        assert text.startswith("".join(unit.text for unit in units))


def test_a_damaged_tokenizer_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no tokenizer"):
        open_tokenizer(tmp_path)
    shutil.copytree(STARTER_MODEL / "tokenizer", tmp_path / "tokenizer")
    for text in ("[]", "{}", "{", '{"model": {"vocab": {"a": 0}, "merges": ["a b"]}}', "[" * 9999):
        (tmp_path / "tokenizer" / "tokenizer.json").write_text(text)
        with pytest.raises(ModelError, match="no tokenizer"):
            open_tokenizer(tmp_path)


def letters(text: str) -> list[Unit]:
    """A token per letter; 'W' is a word of three vectors."""
    return [Unit((9, 9, 9) if letter == "W" else (ord(letter),), letter) for letter in text]


def reference(text: str) -> list[str]:
    """A1111's rule for text without emphasis, written as its description says it."""
    chunks, chunk, comma = [], "", -1
    for letter in text:
        if letter == ",":
            comma = len(chunk)
        elif len(chunk) == CHUNK and comma != -1 and CHUNK - comma <= BACKTRACK:
            chunks.append(chunk[: comma + 1])
            chunk, comma = chunk[comma + 1 :], -1
        if len(chunk) == CHUNK:
            chunks.append(chunk)
            chunk, comma = "", -1
        chunk += letter
    return [*chunks, chunk] if chunk or not chunks else chunks


def test_chunks_are_those_of_a_plain_reference() -> None:
    dice = random.Random(0)
    for length in range(400):
        text = "".join(dice.choices("ab,", (9, 9, dice.choice((0.2, 1, 9))), k=length))
        chunks = chunked([(text, 1.0)], letters)
        assert ["".join(unit.text for unit, _ in chunk) for chunk in chunks] == reference(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a BREAK b", ["a", "b"]),
        ("BREAK a", ["", "a"]),
        ("a BREAK", ["a"]),
        ("a BREAK BREAK b", ["a", "", "b"]),
        ("(a BREAK b:1.2)", ["a", "b"]),
        ("x" * 74 + "W", ["x" * 74, "W"]),  # a word of several vectors is never cut
        ("x" * 72 + "W", ["x" * 72 + "W"]),
        ("x" * 60 + ",bbb" + "W" * 4, ["x" * 60 + ",bbbWWW", "W"]),
    ],
)
def test_breaks_and_words(text: str, expected: list[str]) -> None:
    chunks = chunked(parse_emphasis(text), letters)
    assert ["".join(unit.text for unit, _ in chunk) for chunk in chunks] == expected


def test_weights_go_with_their_tokens() -> None:
    [chunk] = chunked(parse_emphasis("a (b:1.5)c [d]"), letters)
    assert [weight for _, weight in chunk] == [1, 1, 1.5, 1, 1, pytest.approx(1 / 1.1)]


def test_the_view_of_a_prompt() -> None:
    text = "a [red:blue:0.5] (cat:1.2) BREAK x AND dog:0.5 <lora:neon:0.8> <lora:oil:high>"
    seen = preview_prompt(text, 10, letters)
    assert [stage.spans for stage in seen.stages] == [((1, 5),), ((6, 10),)]
    first = seen.stages[0]
    assert [part.weight for part in first.parts] == [1.0, 0.5]
    assert [chunk.pieces for chunk in first.parts[0].chunks] == [
        (("a red ", 1.0), ("cat", 1.2)), (("x", 1.0),)
    ]  # fmt: skip
    assert [chunk.tokens for chunk in first.parts[0].chunks] == [9, 1]
    assert (first.tokens, seen.tokens) == (14, 15)
    assert [lora.name for lora in seen.loras] == ["neon"]
    assert "'high' is not a weight" in seen.problems[0]


def test_an_alternation_is_shown_once_for_each_text() -> None:
    seen = preview_prompt("[cow|horse]", 5, letters)
    assert [(stage.text, stage.spans) for stage in seen.stages] == [
        ("cow", ((1, 1), (3, 3), (5, 5))), ("horse", ((2, 2), (4, 4)))
    ]  # fmt: skip
