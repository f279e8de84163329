"""Captions are read in one way everywhere: encodings, files, tables, words and escapes."""

import json
import os
from pathlib import Path

import pytest

from picture_files import scene
from sdlora.data.caption_editing import (
    CaptionSettings,
    caption_editor,
    plan_changes,
    undo,
    write_changes,
)
from sdlora.data.caption_files import CaptionFiles
from sdlora.data.caption_tables import read_table
from sdlora.data.captions import common_trigger, contains_trigger, unescaped, with_trigger
from sdlora.data.folder import list_captions, open_captions, scan_folder
from sdlora.events import Warned, to_line
from sdlora.messages import Message
from sdlora.text_files import decode
from webui import dataset_upload

TEXTS = (
    "zibo, a red ball", "zibo, Häuschen am Meer", "зибо, красный мяч", "zibo、赤いボール, 夜の海",
    "지보, 빨간 공", "ज़ीबो, लाल गेंद", "זיבו, כדור אדום", "zibo, a 😀 ball\r\nand a line", "z",
)  # fmt: skip
UTF = (
    "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate("abc"):
        scene(number).save(tmp_path / f"{name}.png")
    return tmp_path


def learnt(folder: Path) -> dict[str, str]:
    return {e.image.stem: e.caption for e in scan_folder(folder)[0]}


def problems(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for problem in scan_folder(folder)[1]:
        found[problem.path.name] = f"{found.get(problem.path.name, '')}; {problem.message}"
    return found


@pytest.mark.parametrize("encoding", UTF)
@pytest.mark.parametrize("text", TEXTS)
def test_every_encoding_of_unicode_is_read(text: str, encoding: str) -> None:
    if text == "z" and encoding.endswith("-be"):
        pytest.skip("one letter does not tell its byte order")
    decoded = decode(text.encode(encoding))
    assert decoded.text == text
    assert bool(decoded.guessed) == encoding.endswith(("-le", "-be"))


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("café au lait, “déjà vu”".encode("cp1252"), "café au lait, “déjà vu”"),
        ("schöne Grüße, größer".encode("latin-1"), "schöne Grüße, größer"),
        ("зибо, красный мяч".encode("cp1251"), None),
        ("zibo, 赤いボール".encode("shift-jis"), None),
        ("红色的球, 夜晚".encode("gbk"), None),
        (b"\xff\xfe\x00", None),  # marked as UTF-16, and half a letter
        (bytes(range(256)), None),
        (b"zibo\0, a ball", "zibo\0, a ball"),
        (b"", ""),
    ],
)
def test_other_encodings_are_read_where_sure_and_else_refused(raw: bytes, text: str | None) -> None:
    if text is None:
        with pytest.raises(ValueError, match="is not UTF-"):
            decode(raw)
    else:
        assert decode(raw).text == text


def test_what_is_guessed_is_named_and_what_is_not_sure_is_not_learnt(folder: Path) -> None:
    (folder / "a.txt").write_bytes("zibo, a ball".encode("utf-16-le"))
    (folder / "b.txt").write_bytes("红色的球, 夜晚".encode("gbk"))
    (folder / "c.txt").write_text("zibo, c")
    assert learnt(folder) == {"a": "zibo, a ball", "b": "", "c": "zibo, c"}
    assert "read as UTF-16" in problems(folder)["a.txt"]
    assert "what else it may be is not sure" in problems(folder)["b.txt"]


@pytest.mark.parametrize(
    ("caption", "trigger", "expected"),
    [
        ("a big party", "art", False), ("smart dog", "art", False), ("ART, a ball", "art", True),
        ("an art-deco house", "art", True), ("art_style", "art", False), ("art's end", "art", True),
        ("parts, art", "art", True), ("a robot zibo", "Zibo Robot", False),
        ("a zibo  robot", "zibo robot", True), ("c# key", "c#", True), ("ac# key", "c#", False),
        ("straße", "STRASSE", True), ("cafe\u0301s", "café", False), ("cafe\u0301", "café", True),
        ("की बात", "क", False), ("白猫在睡觉", "猫", True), ("zibo2", "zibo", False),
        ("(zibo)", "zibo", True), ("x.*y", ".*", True), ("anything", "", True), ("", "zibo", False),
    ],
)  # fmt: skip
def test_a_trigger_is_said_by_whole_words(caption: str, trigger: str, expected: bool) -> None:
    assert contains_trigger(caption, trigger) is expected
    assert (with_trigger(caption, trigger) == caption) is expected


@pytest.mark.parametrize(
    ("captions", "trigger"),
    [
        (["a red ball on the beach, night"], ""),
        (["a red ball on the beach"] * 3, ""),
        (["zibo, a red ball"], "zibo"),
        (["zibo robot"] * 4, "zibo robot"),
        (["Zibo robot", "zibo  robot"], "Zibo robot"),
    ],
)
def test_captions_that_are_all_alike_do_not_show_a_trigger(
    captions: list[str], trigger: str
) -> None:
    assert common_trigger(captions) == trigger


# Which file says it

OWN_FILES = {
    "a.txt": "zibo, x", "a.caption": "zibo, x", "a.png.txt": "zibo, x", "a.PNG.TXT": "",
    "a.json": json.dumps({"caption": "zibo, x"}),
    "metadata.csv": 'file_name,text\na.png,"zibo, x"\n',
    "metadata.jsonl": json.dumps({"file_name": "a.png", "prompt": "zibo, x"}),
    "metadata.json": json.dumps([{"file_name": "a.png", "text": "zibo, x"}]),
    "meta_cap.json": json.dumps({"/data/img/a": {"caption": "zibo", "tags": "x"}}),
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name, text in OWN_FILES.items() if text])
def test_every_reader_reads_the_caption_from_the_same_file(folder: Path, name: str) -> None:
    (folder / name).write_text(OWN_FILES[name])
    assert learnt(folder)["a"] == "zibo, x"
    assert name not in problems(folder)
    assert list_captions(folder)[folder / "a.png"] == "zibo, x"
    assert dataset_upload.read_set(folder).captions == ("zibo, x", "", "")
    captions = open_captions(folder)
    assert captions.read(folder / "a.png").source == folder / name
    settings = CaptionSettings.from_values({"data": "x", "find": "x", "replace": "y"})
    (change,) = plan_changes(folder, caption_editor(settings))
    assert (change.before, change.after) == ("zibo, x", "zibo, y")
    before = {file: file.read_bytes() for file in folder.iterdir()}
    write_changes(folder, [change])
    assert learnt(folder)["a"] == "zibo, y", "what was written is what is read"
    own = name.endswith((".txt", ".caption"))
    assert change.path.name == (name if own else "a.txt")
    assert ("is read instead of" in change.note) is not own
    undo(folder)
    assert {file: file.read_bytes() for file in folder.iterdir() if file.is_file()} == before


def test_an_edited_caption_of_one_of_two_pictures_of_a_name_is_its_own(folder: Path) -> None:
    scene(7).save(folder / "a.jpg")
    rows = [{"file_name": "a.png", "text": "one"}, {"file_name": "a.jpg", "text": "two"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = CaptionSettings.from_values({"data": "x", "find": "two", "replace": "three"})
    write_changes(folder, plan_changes(folder, caption_editor(settings)))
    captions = {e.image.name: e.caption for e in scan_folder(folder)[0]}
    assert captions["a.png"] == "one" and captions["a.jpg"] == "three"


def test_files_that_say_nothing_are_named(folder: Path) -> None:
    (folder / "a.json").write_text('{"author": "me", "tags": ["x"], "id": 5}')
    (folder / "b.json").write_text("{")
    (folder / "c.txt").write_text("zibo, c")
    (folder / "c.png.txt").write_text("another")
    (folder / "metadata.json").write_text("[]")
    (folder / "g.captions").write_text("zibo, g")
    (folder / "film.mp4").write_bytes(b"film")
    (folder / "film.txt").write_text("zibo, a film")
    (folder / "raw.dng").write_bytes(b"II*\0" + bytes(40))
    (folder / "cache.npz").write_bytes(b"PK")
    (folder / "Thumbs.db").write_bytes(b"x")
    words = problems(folder)
    for name, part in {
        "a.json": "no caption that is plainly one", "b.json": "cannot be read as JSON",
        "c.png.txt": "is not read: c.txt is", "metadata.json": "no captions of these pictures",
        "g.captions": "captions have other suffixes", "film.mp4": "is a film",
        "film.txt": "no picture of the same name", "raw.dng": "a TIFF picture",
        "cache.npz": "neither a picture nor a caption",
    }.items():  # fmt: skip
        assert part in words[name]
    assert words.keys() - {"a.png", "b.png"} == {
        "a.json", "b.json", "c.png.txt", "metadata.json", "g.captions", "film.mp4", "film.txt",
        "raw.dng", "cache.npz",
    }  # fmt: skip


# Tables


@pytest.mark.parametrize(
    ("text", "captions"),
    [
        ("file_name,text\na.png,zibo, red, ball\nb.png,b\n", {"a": "zibo, red, ball", "b": "b"}),
        ("text,file_name\nzibo, red,a.png\n", {"a": "zibo, red"}),
        ('file_name, text\na.png, "zibo, a"\nb.png, "b"\n', {"a": "zibo, a", "b": "b"}),
        (" File_Name ,Text\na.png,zibo\n", {"a": "zibo"}),
        ("file_name;text\na.png;zibo, red\n", {"a": "zibo, red"}),
        ("file_name\ttext\na.png\tzibo, red\n", {"a": "zibo, red"}),
        ("file_name,text\na.png,nan\nb.png,None\nc.png,nano\n", {"c": "nano"}),
        ("file_name,text,seed\na.png,zibo, red,5\n", {"a": "zibo, red"}),
        ("file_name,id\na.png,zibo\n", {}),
        ("a.png,zibo\n", {}),
    ],
)  # fmt: skip
def test_csv_tables_as_people_write_them(folder: Path, text: str, captions: dict[str, str]) -> None:
    (folder / "metadata.csv").write_text(text)
    assert {name: caption for name, caption in learnt(folder).items() if caption} == captions


@pytest.mark.parametrize(
    ("value", "caption", "problem"),
    [
        (["zibo, one way", "zibo, another"], "zibo, one way", "several captions"),
        (["red ball", "sea"], "red ball, sea", ""),
        ({"en": "zibo"}, "", "other than text"), (5, "", "other than text"),
        ([1, 2], "", "other than text"), (True, "", "other than text"), (None, "", "no captions"),
        (float("nan"), "", "empty value such as nan"), ("NaN", "", "empty value such as nan"),
        ("zibo, party \ud83d", "zibo, party", "half a character"), ("zibo 😀", "zibo 😀", ""),
    ],
)  # fmt: skip
def test_values_of_every_kind_in_a_table(
    folder: Path, value: object, caption: str, problem: str
) -> None:
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": value}))
    assert learnt(folder)["a"] == caption
    words = problems(folder).get("metadata.jsonl", "")
    assert problem in words if problem else not words


@pytest.mark.parametrize("row", ['{"text": "of whom"}', '{"file_name": "gone.png"}', "[]"])
def test_many_bad_rows_are_one_problem(folder: Path, row: str) -> None:
    good = json.dumps({"file_name": "a.png", "text": "zibo"})
    (folder / "metadata.jsonl").write_text("\n".join([good, *[row] * 300]))
    table = read_table(folder / "metadata.jsonl")
    (problem,) = table.problems
    assert "300" in problem and "2, 3, 4, ..." in problem
    assert table.captions == {folder / "a.png": "zibo"}


# Escapes


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (r"miku \(singer\), \[x\]", "miku (singer), [x]"), (r"\\m/", r"\m/"), (r"\o/", r"\o/"),
        (r"\{a|b\}", r"\{a|b\}"), ("plain (brackets)", "plain (brackets)"),
    ],
)  # fmt: skip
def test_escapes_of_taggers_are_learnt_as_the_signs_alone(written: str, meant: str) -> None:
    assert unescaped(written) == meant


def test_escapes_are_named_and_stay_in_the_file(folder: Path) -> None:
    (folder / "a.txt").write_text(r"zibo, miku \(singer\)")
    assert learnt(folder)["a"] == "zibo, miku (singer)"
    assert "has escapes such as" in problems(folder)["a.png"]
    settings = CaptionSettings.from_values({"data": "x", "find": "zibo", "replace": "robo"})
    (change,) = plan_changes(folder, caption_editor(settings))
    assert change.after == r"robo, miku \(singer\)"


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX alone")
def test_names_that_are_not_unicode_are_words_all_the_same(tmp_path: Path) -> None:
    place = os.path.join(os.fsencode(tmp_path), b"10_caf\xe9")
    os.mkdir(place)
    scene(1).save(os.fsdecode(os.path.join(place, b"b\xe9.png")))
    (example,), (problem,) = scan_folder(tmp_path)
    assert (example.caption, example.repeats) == ("café", 10)
    assert problem.to_warning().message.startswith("bé.png has no caption; captioned 'café'")
    assert example.image.is_file()
    line = to_line(Warned(Message("{file} is left out", file=example.image), str(example.image)))
    assert "bé.png is left out" in line.encode("utf-8").decode("utf-8")


def test_a_mac_and_an_archive_write_one_name(folder: Path) -> None:
    pictures = [folder / "caf\u00e9.png"]
    (folder / "cafe\u0301.txt").write_text("zibo")
    assert CaptionFiles([folder / "cafe\u0301.txt"], pictures).read(pictures[0]).lines == ("zibo",)
