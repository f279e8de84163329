"""A small run of benchmarks/prompts.py: no prompt is too odd, and none too long."""

import random
import sqlite3
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.prompts import LONG, every_stage, fuzzed, growth
from raw_lora import lora
from sdlora.errors import SettingsError
from sdlora.lora.library.library import Library
from sdlora.prompt import PromptResources, WildcardFolder, read_styles

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
    assert any(growth(unit, 1000) < 2.5 for _ in range(4)), "in four tries of a busy machine"


def test_a_prompt_of_100_kb_is_read() -> None:
    """How fast is the benchmark's to tell; that it grows with the length is tested above."""
    every_stage(LONG[:100_000])


MUTATIONS = st.lists(
    st.tuples(st.integers(0, 400), st.integers(0, 3), st.binary(max_size=4)), max_size=6
)
SLOW_DISK = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def mutated(content: bytes, mutations: list[tuple[int, int, bytes]]) -> bytes:
    """Some bytes of it taken out, and others put in their place."""
    for place, removed, added in mutations:
        place %= len(content) + 1
        content = content[:place] + added + content[place + removed :]
    return content


FILES = {
    "x.txt": "red\ncafé\n# no\n2::a __x__\n",
    "x.yaml": "x:\n  - red\n  - 'ä {b|c}'\ny: {z: [d]}\n",
    "x.json": '{"x": ["red", "2::ö"], "y": {"z": 3}}',
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@SLOW_DISK
@given(mutations=MUTATIONS)
def test_a_damaged_list_is_used_or_named(
    name: str, encoding: str, mutations: list[tuple[int, int, bytes]], tmp_path: Path
) -> None:
    content = mutated(FILES[name].encode(encoding), mutations)
    (tmp_path / name).write_bytes(content)
    (tmp_path / "good.txt").write_text("good")
    words = WildcardFolder(tmp_path)("x")
    positive, _ = PromptResources(wildcards=tmp_path).expand("__x__, __good__", "", 1)
    assert positive.text.endswith(", good")
    assert words or positive.problems, "not read, and nothing told"
    assert not any("\ufffd" in line for line in words or ()) or "\ufffd".encode() in content


TABLE = 'name,prompt,negative_prompt\noil,"oil, {prompt}",photo\nüber,a,\nlast,b,c\n'


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
@SLOW_DISK
@given(mutations=MUTATIONS)
def test_a_damaged_table_of_styles_is_used_or_named(
    encoding: str, mutations: list[tuple[int, int, bytes]], tmp_path: Path
) -> None:
    (path := tmp_path / "styles.csv").write_bytes(mutated(TABLE.encode(encoding), mutations))
    try:
        read_styles(path)
    except SettingsError as error:
        assert "styles.csv" in str(error)
    positive, _ = PromptResources(path).expand("a cat", "", 1, ["last"])
    assert positive.text == "a cat, b" or mutations


def test_damaged_rows_of_the_index_are_read_anew(tmp_path: Path) -> None:
    for number in range(6):
        lora(tmp_path / "loras" / f"a{number}.safetensors", ss_output_name=f"alias {number}")
    folder, index = tmp_path / "loras", tmp_path / "index.db"
    dice = random.Random(1)
    expected = [(entry.name, *entry.facts) for entry in Library([folder], index).list()]
    for _ in range(30):
        with sqlite3.connect(index) as connection:
            for row, text in connection.execute("SELECT rowid, facts FROM files").fetchall():
                place = dice.randrange(len(text))
                damaged = dice.choice((text[:place], text[place:], text[:place] + "x", 7, None, ""))
                column = dice.choice(("facts", "stamp", "beside", "checksum"))
                change = f"UPDATE files SET {column} = ? WHERE rowid = ?"
                connection.execute(change, (damaged, row))
        connection.close()
        now = Library([folder], index)
        assert [(entry.name, *entry.facts) for entry in now.list()] == expected
        assert now.find("alias 3").name == "a3"
