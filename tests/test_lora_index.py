"""What is kept of LoRA files: never an error, never a file read twice, never another answer."""

import os
import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from launch import ROOT
from raw_lora import beside, lora, shapes_of
from sdlora.errors import LoraFileError
from sdlora.lora.format.hashes import Hashes
from sdlora.lora.library.index import Facts, Index, IndexRow
from sdlora.lora.library.library import Library, LoraEntry

ROW = IndexRow(b"/a", "1 2", ",", Facts(alias="a", top_tags={"x": 1}).text)
HASHES = Hashes("s" * 64, "b" * 64, "l" * 8)

# Lists a folder with an index and prints what was opened in it
OPENED = """
import sys, pathlib
from sdlora.lora.library.library import Library
folder, index = map(pathlib.Path, sys.argv[1:])
opened = []
def note(event, arguments):
    if event == "open" and str(arguments[0]).startswith(str(folder)):
        opened.append(pathlib.Path(str(arguments[0])).name)
sys.addaudithook(note)
count = len(Library([folder], index).list())
print(count, *sorted(opened))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "loras"
    for name in ("a", "b", "sub/c"):
        beside(lora(root / f"{name}.safetensors"), ".json", {"activation text": name})
    return root


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return tmp_path / "index.db"


def opened(folder: Path, index: Path) -> str:
    """What a program that has just started opens when it lists a folder."""
    words = [sys.executable, "-c", OPENED, str(folder), str(index)]
    ran = subprocess.run(words, cwd=ROOT, capture_output=True, encoding="utf-8")
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def told(entry: LoraEntry) -> tuple[object, ...]:
    """All that an entry says."""
    return entry.path, entry.preview, entry.problem, entry.also, entry.size_bytes, *entry.facts


def test_only_what_changed_is_opened(folder: Path, index: Path) -> None:
    everything = "a.json a.safetensors b.json b.safetensors c.json c.safetensors"
    assert opened(folder, index) == f"3 {everything}"
    assert opened(folder, index) == "3"
    lora(folder / "a.safetensors", 1024)
    assert opened(folder, index) == "3 a.json a.safetensors"
    beside(folder / "b.safetensors", ".json", {"activation text": "another"})
    assert opened(folder, index) == "3 b.json b.safetensors"
    (folder / "b.json").unlink()
    assert opened(folder, index) == "3 b.safetensors"
    (folder / "b.safetensors").unlink()
    assert opened(folder, index) == "2"


def test_a_changed_file_is_read_again(folder: Path, index: Path) -> None:
    library = Library([folder], index)
    assert library.find("a").family == "sd1"
    lora(folder / "a.safetensors", 1024)
    assert library.find("a").family == "sd2"
    beside(folder / "a.safetensors", ".json", {"activation text": "new words"})
    assert library.list()[0].trigger_words == ("new words",)


def test_a_file_that_is_still_being_copied_is_read_until_it_is_whole(
    folder: Path, index: Path
) -> None:
    path, library = folder / "a.safetensors", Library([folder], index)
    whole, stat = path.read_bytes(), path.stat()
    path.write_bytes(bytes(len(whole)))  # as some systems reserve the place
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert library.list()[0].problem
    path.write_bytes(whole)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert not library.list()[0].problem
    assert not Library([folder], index).list()[0].problem


def test_headers_that_are_alike_are_judged_each_by_its_own_body(folder: Path, index: Path) -> None:
    cut = folder / "b.safetensors"
    cut.write_bytes(cut.read_bytes()[:-2])
    problems = {entry.name: entry.problem for entry in Library([folder], index).list()}
    assert "cut short" in problems["b"] and not problems["a"] and not problems["c"]


def test_files_of_a_folder_that_is_away_are_remembered(folder: Path, index: Path) -> None:
    assert opened(folder, index).startswith("3 a.json")
    away = folder.rename(folder.with_name("away"))
    assert opened(folder, index) == "0"
    away.rename(folder)
    assert opened(folder, index) == "3"


def test_files_that_are_gone_are_forgotten(folder: Path, index: Path) -> None:
    Library([folder], index).list()
    (folder / "a.safetensors").unlink()
    Library([folder], index).list()
    assert len(Index(index).rows()) == 2


@pytest.mark.parametrize("seed", range(3))
def test_an_index_never_changes_the_answer(seed: int, tmp_path: Path) -> None:
    rng, folder, clock = random.Random(seed), tmp_path / "loras", 10**18
    kept = Library([folder], tmp_path / "index.db")
    folder.mkdir()
    for _ in range(60):
        path = folder / rng.choice(["", "sub", "sub/deep"]) / f"{rng.choice('abc')}.safetensors"
        act = rng.choice(["write", "write", "break", "cut", "remove", "json", "info", "picture"])
        if act in ("json", "info", "picture", "cut") and not path.exists():
            act = "write"
        if act == "write":
            lora(path, rng.choice([128, 768, 1024]), shapes_of(rng.choice([768, 2048]), 3))
        elif act == "break":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x" * rng.randint(0, 99))
        elif act == "cut":
            path.write_bytes(path.read_bytes()[:-1])
        elif act == "remove":
            path.unlink(missing_ok=True)
        else:
            ending = {"json": ".json", "info": ".civitai.info", "picture": ".png"}[act]
            words = [rng.choice(["zibo", "neon"])] * rng.randint(0, 1)
            beside(path, ending, {"activation text": "".join(words), "trainedWords": words})
        for changed in folder.rglob(f"{path.stem}.*"):
            clock += 1  # no two changes in the same moment of the disk's clock
            os.utime(changed, ns=(clock, clock))
        unkept = [told(entry) for entry in Library([folder]).list()]
        assert [told(entry) for entry in kept.list()] == unkept
        assert [told(entry) for entry in Library([folder], tmp_path / "index.db").list()] == unkept


# The file itself


def _text(index: Path) -> None:
    index.write_text("no database", "utf-8")


def _zeros_inside(index: Path) -> None:
    content = bytearray(index.read_bytes())
    content[100:3000] = bytes(2900)
    index.write_bytes(content)


def _cut(index: Path) -> None:
    index.write_bytes(index.read_bytes()[:5000])


def _sql(*commands: str) -> Callable[[Path], None]:
    def change(index: Path) -> None:
        connection = sqlite3.connect(index)
        for command in commands:
            connection.execute(command)
        connection.commit()
        connection.close()

    return change


BROKEN: dict[str, Callable[[Path], object]] = {
    "not there": Path.unlink,
    "empty": lambda index: index.write_bytes(b""),
    "no database": _text,
    "zeros inside": _zeros_inside,
    "cut": _cut,
    "another version": _sql("UPDATE files SET facts = '[]'", "PRAGMA user_version = 7"),
    "another table": _sql("DROP TABLE files", "CREATE TABLE files (a, b)"),
    "no table": _sql("DROP TABLE files"),
    "a view in its place": _sql(
        "DROP TABLE files", "CREATE VIEW files AS SELECT 1", "PRAGMA user_version = 7"
    ),
    "facts cut short": _sql("UPDATE files SET facts = substr(facts, 1, 20)"),
    "facts that are none": _sql("UPDATE files SET facts = '{}'"),
    "a letter changed": _sql("UPDATE files SET facts = replace(facts, 'LoRA', 'LoHa')"),
    "nothing but null": _sql("UPDATE files SET facts = NULL, beside = NULL, sha256 = NULL"),
    "numbers for texts": _sql("UPDATE files SET stamp = 1, facts = 2, body = 3"),
    "hashes that are none": _sql("UPDATE files SET sha256 = x'00', legacy = 1"),
    "one row": _sql("UPDATE files SET facts = '[' WHERE rowid = 2"),
    "text that is none": _sql("UPDATE files SET facts = CAST(x'ff' AS TEXT)"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_index_is_begun_anew(what: str, folder: Path, index: Path) -> None:
    before = [told(entry) for entry in Library([folder], index).list()]
    BROKEN[what](index)
    assert [told(entry) for entry in Library([folder], index).list()] == before
    assert opened(folder, index) == "3", "it is kept again"


def test_where_no_index_can_be_written_files_are_listed_all_the_same(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "directory").mkdir()
    for place in (tmp_path / "directory", tmp_path / "nowhere" / "index.db"):
        library = Library([folder], place)
        assert len(library.list()) == 3 and library.hashes(library.find("a")).sha256
    assert list((tmp_path / "directory").iterdir()) == []


def test_an_index_that_is_held_by_another_is_waited_for_or_gone_without(
    folder: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Library([folder], index).list()
    monkeypatch.setattr("sdlora.lora.library.index.PATIENCE_S", 0.05)
    holder = sqlite3.connect(index, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    assert len(Library([folder], index).list()) == 3
    holder.execute("COMMIT")
    holder.close()
    assert opened(folder, index) == "3"


def test_hashes_outlive_a_change_beside_the_file_and_no_other(index: Path) -> None:
    kept = Index(index)
    kept.keep([ROW])
    kept.keep_hashes(ROW.path, "another stamp", HASHES)
    assert kept.rows() == {ROW.path: ROW}
    kept.keep_hashes(ROW.path, ROW.stamp, HASHES)
    assert kept.rows()[ROW.path].hashes == HASHES
    kept.keep([ROW._replace(beside="7 8,")])
    assert kept.rows()[ROW.path] == ROW._replace(beside="7 8,", **HASHES._asdict())
    kept.keep([ROW._replace(stamp="3 4")])
    assert kept.rows()[ROW.path].hashes == Hashes()
    kept.keep([], [ROW.path])
    assert kept.rows() == {}


def test_processes_and_threads_may_use_one_index_at_once(folder: Path, index: Path) -> None:
    for number in range(40):
        lora(folder / f"many/{number}.safetensors", 100 + number)
    words = [sys.executable, "-c", OPENED, str(folder), str(index)]
    running = [
        subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8")
        for _ in range(3)
    ]
    library, counts = Library([folder], index), []

    def look() -> None:
        for _ in range(5):
            counts.append(len(library.list()))
            counts.append(len(Library([folder], index).list()))

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    said = [process.communicate()[0].split()[0] for process in running]
    assert said == ["43"] * 3 and set(counts) == {43} and len(counts) == 30
    assert len(Index(index).rows()) == 43


def test_a_file_that_cannot_be_read_for_its_hash_is_named(folder: Path, index: Path) -> None:
    library = Library([folder], index)
    entry = library.find("a")
    entry.path.unlink()
    with pytest.raises(LoraFileError, match="a.safetensors cannot be read"):
        library.hashes(entry)
