"""All that a training learns from: tables, archives, several folders, masks and class pictures."""

import io
import json
import random
import stat
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageFilter

from sdlora.data import zips
from sdlora.data.caption_tables import read_table
from sdlora.data.dataset import Dataset, read_dataset
from sdlora.data.folder import FolderReading, Problem, scan_folder, to_warnings
from sdlora.data.zips import unpack
from sdlora.errors import DataError
from sdlora.settings.train import TrainSettings
from sdlora.workspace import Workspace


def picture(path: Path, caption: str | None = None, seed: int | None = None) -> Path:
    """A picture unlike all others of another seed, by default that of its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = random.Random(path.stem if seed is None else seed)
    image = Image.new("RGB", (4, 4))
    image.putdata([tuple(rng.randrange(256) for _ in range(3)) for _ in range(16)])
    image.resize((64, 48), Image.Resampling.NEAREST).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def collected(workspace: Path, data: Path | str, **values: Any) -> Dataset:
    settings = TrainSettings.from_values({"data": str(data), "name": "n", **values})
    return read_dataset(settings, Workspace.open(workspace))


def captions(found: Dataset) -> dict[str, str]:
    return {example.image.name: example.caption for example in found.examples}


def said(problems: list[Problem]) -> dict[str, str]:
    return {problem.path.name: problem.message for problem in problems}


# Tables


def test_captions_come_from_a_table_and_a_text_file_is_nearer(tmp_path: Path) -> None:
    for name in ("a", "b", "sub/c"):
        picture(tmp_path / f"{name}.png")
    (tmp_path / "b.txt").write_text("from its file")
    rows = [
        {"file_name": "a.png", "text": "from the table"},
        {"file_name": "b.png", "text": "from the table too"},
        {"file_name": "sub/c.png", "caption": ["one tag", "two"]},
        {"file_name": "../a.png", "text": "outside"},
        {"file_name": "gone.png", "text": "nothing"},
        {"text": "of whom"},
    ]
    text = "\n".join([*map(json.dumps, rows), "{broken", "[]", ""])
    (tmp_path / "metadata.jsonl").write_text(text, encoding="utf-8")
    examples, problems = scan_folder(tmp_path)
    assert [e.caption for e in examples] == ["from the table", "from its file", "one tag, two"]
    words = " / ".join(problem.message for problem in problems)
    for part in ("'../a.png' in line 4", "'gone.png' in line 5", "no file_name in line 6",
                 "JSON object in line 7", "JSON object in line 8", "b.txt is read"):  # fmt: skip
        assert part in words
    assert len(problems) == 6


def test_a_csv_table_has_commas_quotes_and_lines(tmp_path: Path) -> None:
    picture(tmp_path / "ä b.png")
    picture(tmp_path / "c.png")
    rows = '\ufefffile_name,prompt\n"ä b.png","a ""red"" ball,\nnight"\nc.png,\n'
    (tmp_path / "metadata.csv").write_text(rows, encoding="utf-8")
    examples, problems = scan_folder(tmp_path)
    assert [e.caption for e in examples] == ["", 'a "red" ball, night']
    assert "no caption" in said(problems)["c.png"]
    (tmp_path / "metadata.csv").write_bytes(b"file_name,text\nc.png,\xff\xfe\xfd\xfc\n")
    (problem,) = read_table(tmp_path / "metadata.csv").problems
    assert problem.startswith("is not UTF-8 text, and what else")


# Captions that are missing, and those that are many


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ("folder", {"01_red_ball (2).png": "zibo robot", "b.png": "given"}),
        ("trigger", {"01_red_ball (2).png": "", "b.png": "given"}),
        ("file_name", {"01_red_ball (2).png": "red ball", "b.png": "given"}),
        ("leave_out", {"b.png": "given"}),
    ],
)
def test_what_stands_for_a_missing_caption_is_chosen(
    tmp_path: Path, missing: Any, expected: dict[str, str]
) -> None:
    picture(tmp_path / "3_zibo robot" / "01_red_ball (2).png")
    picture(tmp_path / "3_zibo robot" / "b.png", "given")
    examples, problems = scan_folder(tmp_path, FolderReading(missing=missing))
    assert {e.image.name: e.caption for e in examples} == expected
    assert "no caption" in said(problems)["01_red_ball (2).png"]
    with pytest.raises(DataError, match="1 pictures have no caption.*01_red_ball"):
        scan_folder(tmp_path, FolderReading(missing="refuse"))


def test_lines_of_a_caption_are_joined_cut_or_kept(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", "one\n\n two  words \nthree")
    for lines, caption in (
        ("joined", "one two words three"), ("first", "one"), ("random", "one\ntwo words\nthree"),
    ):  # fmt: skip
        (example,), _ = scan_folder(tmp_path, FolderReading(lines=lines))
        assert example.caption == caption


def test_a_caption_is_found_however_its_name_is_written(tmp_path: Path) -> None:
    picture(tmp_path / "caf\u00e9.png")
    (tmp_path / "cafe\u0301.TXT").write_text("as a Mac writes it")
    picture(tmp_path / "b.png")
    (tmp_path / "b.png.txt").write_text("with both suffixes")
    picture(tmp_path / "c.png", "of two")
    (tmp_path / "c.caption").write_text("not this one")
    examples, problems = scan_folder(tmp_path)
    assert {e.caption for e in examples} == {"as a Mac writes it", "with both suffixes", "of two"}
    assert said(problems) == {"c.caption": "is not read: c.txt is"}


def test_what_many_files_have_is_said_once() -> None:
    problems = [Problem(Path(f"{n}.png"), "has no caption") for n in range(9)]
    (one,) = to_warnings(problems)
    assert one.message == "9 files (0.png, 1.png, 2.png ...): each has no caption"
    assert len(to_warnings(problems[:3])) == 3


# Several sources


def test_sources_add_up_and_class_pictures_are_not_called(tmp_path: Path, workspace: Path) -> None:
    picture(tmp_path / "own" / "a.png", "zibo, sea")
    picture(tmp_path / "own" / "reg" / "r.png", "a robot")
    picture(tmp_path / "more" / "2_x" / "b.png", "night")
    found = collected(
        workspace, tmp_path / "own", more_data=[f"3*{tmp_path / 'more'}"],
        regularisation=[str(tmp_path / "own" / "reg")], trigger_word="zibo",
    )  # fmt: skip
    assert [(e.image.name, e.caption, e.repeats, e.regularisation) for e in found.examples] == [
        ("a.png", "zibo, sea", 1, False), ("b.png", "zibo, night", 6, False),
        ("r.png", "a robot", 1, True),
    ]  # fmt: skip
    what = "does not say 'zibo' in its caption; it is put before it"
    assert said(found.problems) == {"b.png": what}
    named = collected(workspace, "zibo")
    assert len(named.examples) == 20 and named.trigger == "zibo" and named.problems == []
    with pytest.raises(DataError, match=r"there is no folder nowhere, nor a zip.*zibo"):
        collected(workspace, "nowhere")


def test_the_trigger_is_put_into_every_line(tmp_path: Path, workspace: Path) -> None:
    picture(tmp_path / "a.png", "one\nZibo two")
    found = collected(workspace, tmp_path, trigger_word="zibo", caption_lines="random")
    assert captions(found) == {"a.png": "zibo, one\nZibo two"}


def test_twins_near_twins_and_blur_are_named_and_used(tmp_path: Path, workspace: Path) -> None:
    one = picture(tmp_path / "a.png", "a")
    picture(tmp_path / "b.png", "b").write_bytes(one.read_bytes())
    with Image.open(one) as image:
        image.resize((50, 38)).save(tmp_path / "c.jpg", quality=70)
        image.filter(ImageFilter.GaussianBlur(9)).resize((200, 150)).save(tmp_path / "e.png")
    picture(tmp_path / "d.png", "d")
    found = collected(workspace, tmp_path, missing_captions="trigger")
    assert len(found.examples) == 5
    seen = [(p.path.name, p.message) for p in found.problems if "caption" not in p.message]
    assert [(name, what.split()[:2]) for name, what in seen] == [
        ("b.png", ["is", "the"]),
        ("c.jpg", ["looks", "the"]),
        ("e.png", ["looks", "blurred:"]),
    ]
    assert "a.png" in seen[0][1] and "a.png" in seen[1][1]


# Masks


def test_masks_beside_in_a_folder_and_in_the_picture(tmp_path: Path, workspace: Path) -> None:
    for name in ("a", "b", "c", "d"):
        picture(tmp_path / "p" / f"{name}.png", name)
    Image.new("L", (64, 48), 255).save(tmp_path / "p" / "a-masklabel.png")
    Image.new("L", (48, 48), 255).save(tmp_path / "p" / "b-masklabel.png")
    Image.new("L", (32, 24), 0).save(tmp_path / "p" / "c-masklabel.png")
    (tmp_path / "p" / "d-masklabel.png").write_bytes(b"")
    Image.new("L", (8, 8)).save(tmp_path / "p" / "z-masklabel.png")
    seen = Image.new("RGBA", (64, 48), (200, 0, 0, 255))
    seen.putpixel((0, 0), (0, 0, 0, 0))
    seen.save(tmp_path / "p" / "e.png")
    found = collected(workspace, tmp_path / "p", missing_captions="trigger")
    masks = {e.image.name: e.mask and e.mask.name for e in found.examples}
    assert masks == {
        "a.png": "a-masklabel.png", "b.png": None, "c.png": "c-masklabel.png", "d.png": None,
        "e.png": None,
    }  # fmt: skip
    words = said(found.problems)
    assert "another shape than b.png" in words["b-masklabel.png"]
    assert "masked altogether" in words["c.png"]
    assert "an empty file; d.png is learnt without" in words["d-masklabel.png"]
    assert "no picture" in words["z-masklabel.png"]
    found = collected(workspace, tmp_path / "p", transparency="mask", missing_captions="trigger")
    assert {e.image.name for e in found.examples if e.mask == e.image} == {"e.png"}


def test_a_folder_of_masks_may_lie_among_the_pictures(tmp_path: Path, workspace: Path) -> None:
    picture(tmp_path / "sub" / "a.png", "a")
    picture(tmp_path / "b.png", "b")
    picture(tmp_path / "masks" / "sub" / "a.jpg")
    found = collected(workspace, tmp_path, masks=str(tmp_path / "masks"))
    assert {e.image.name: e.mask and e.mask.name for e in found.examples} == {
        "a.png": "a.jpg", "b.png": None,
    }  # fmt: skip


# Archives


def png(seed: int) -> bytes:
    with io.BytesIO() as file:
        Image.new("RGB", (8, 8), (seed * 37 % 256, seed * 91 % 256, 7)).save(file, "PNG")
        return file.getvalue()


def test_a_zip_is_a_source_unpacked_once(tmp_path: Path, workspace: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("10_zibo/Größe.png", png(1))
        made.writestr("10_zibo/Größe.txt", "zibo, sea")
        made.writestr("__MACOSX/10_zibo/._x.png", b"junk")
        made.writestr("notes.doc", b"hello")
    found = collected(workspace, tmp_path / "set.zip")
    (example,) = found.examples
    assert (example.image.name, example.caption, example.repeats) == ("Größe.png", "zibo, sea", 10)
    assert said(found.problems) == {
        "notes.doc": "is neither a picture nor a caption; it is left out"
    }
    before = example.image.stat().st_mtime_ns
    again = collected(workspace, tmp_path / "set.zip")
    assert again.examples[0].image.stat().st_mtime_ns == before
    assert said(again.problems) == said(found.problems)


def test_names_of_any_encoding_pair_a_picture_with_its_caption(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as made:
        for name, data in (("\u00e4\u00e4\u00e4", png(1)), ("bbb", png(2))):
            made.writestr(f"{name}.png", data)
            made.writestr(f"{name}.txt", "said")
    raw = (tmp_path / "set.zip").read_bytes()
    # latin-1 bytes that are not UTF-8, and no flag that says UTF-8
    old = raw.replace("\u00e4\u00e4\u00e4".encode(), b"\xe4\xe4\xe4\xe4\xe4\xe4")
    flagless = bytearray(old)
    for mark, at in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        place = flagless.find(mark)
        while place >= 0:
            flagless[place + at + 1] &= ~0x08
            place = flagless.find(mark, place + 4)
    (tmp_path / "set.zip").write_bytes(flagless)
    folder, problems = unpack(tmp_path / "set.zip", tmp_path / "out")
    examples, more = scan_folder(folder)
    assert [e.caption for e in examples] == ["said", "said"]
    assert problems == more == []


def test_what_does_not_belong_into_an_archive_stays_in_it(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "bad.zip", "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("good.png", png(1))
        made.writestr("../evil.png", png(2))
        made.writestr("/etc/evil.png", png(3))
        made.writestr("C:\\evil.png", png(4))
        made.writestr("a\\..\\..\\evil.png", png(5))
        made.writestr(link, "/etc/passwd")
        made.writestr("GOOD.png", png(6))
        made.writestr("con.png", png(7))
        made.writestr("bomb.png", b"\0" * 30_000_000)
        made.writestr("inner.zip", b"PK")
        made.writestr("x" * 300 + ".png", png(8))
    folder, problems = unpack(tmp_path / "bad.zip", tmp_path / "out")
    files = sorted(path.name for path in folder.rglob("*.png"))
    assert files[0] == "_con.png" and files[1] == "good.png" and len(files) == 3
    assert len(files[2]) < 130 and files[2].startswith("xxx")
    assert not list(tmp_path.rglob("*evil*"))
    words = said(problems)
    assert len(words) == 8
    assert "inflates" in words["bomb.png"] and "link" in words["link.png"]
    assert "another file" in words["GOOD.png"] and "neither" in words["inner.zip"]
    assert sum("leads out" in what for what in words.values()) == 4


@pytest.mark.parametrize("how", ["cut", "text", "many", "overlapping", "crc"])
def test_an_archive_made_to_do_damage_is_refused_by_name(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w") as made:
        for number in range(3):
            made.writestr(f"{number}.png", png(number))
    raw = bytearray(path.read_bytes())
    if how == "cut":
        raw = raw[:-30]
    elif how == "text":
        raw = bytearray(b"not a zip at all")
    elif how == "many":
        monkeypatch.setattr(zips, "MAX_MEMBERS", 2)
    elif how == "overlapping":  # every member says that it is as long as the whole archive
        place = raw.find(b"PK\1\2")
        while place >= 0:
            raw[place + 20 : place + 24] = struct.pack("<I", len(raw))
            place = raw.find(b"PK\1\2", place + 4)
    else:
        raw[raw.find(b"IDAT") + 6] ^= 0xFF
    path.write_bytes(raw)
    if how == "crc":  # only this member is lost
        folder, problems = unpack(path, tmp_path / "out")
        assert "damaged" in said(problems)["0.png"] and len(list(folder.glob("*.png"))) == 2
        return
    with pytest.raises(DataError, match=r"bad\.zip cannot be unpacked"):
        unpack(path, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


UNFIT_FOR_A_DISK = {
    "deep": "d/" * 1500 + "a.png",
    "deeper": "d/" * 60_00 + "a.png",
    "long": f"{'w' * 100}/" * 50 + "a.png",
    "below a picture": "0.png/a.png",
    "surrogate": "\udc80/a.png",
}


@pytest.mark.parametrize("name", UNFIT_FOR_A_DISK.values(), ids=UNFIT_FOR_A_DISK)
def test_a_member_with_a_name_that_no_disk_takes_is_left_out_alone(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("0.png", png(0))
        made.writestr(name.encode("utf-8", "replace").decode(), png(1))
        made.writestr("2.png", png(2))
    folder, problems = unpack(path, tmp_path / "out")
    assert {"0.png", "2.png"} <= {file.name for file in folder.iterdir()}
    assert len(list(folder.rglob("*.png"))) + len(problems) == 3
    assert all("left out" in problem.message for problem in problems)


def test_random_damage_never_gets_past_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for number in range(4):
            made.writestr(f"dir/{number}.png", png(number))
            made.writestr(f"dir/{number}.txt", "zibo")
    whole, rng = path.read_bytes(), random.Random(0)
    for trial in range(150):
        raw = bytearray(whole)
        for _ in range(rng.randrange(1, 6)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        path.write_bytes(raw)
        out = tmp_path / "out" / str(trial)
        try:
            folder, _ = unpack(path, out)
        except DataError:
            continue
        assert folder.parent == out
        assert all(p.resolve().is_relative_to(out.resolve()) for p in out.rglob("*"))
