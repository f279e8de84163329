"""Captions changed by the many: seen first, written whole, taken back byte for byte."""

import json
from pathlib import Path
from typing import Any

import pytest

from picture_files import scene
from sdlora.cli.main import main
from sdlora.data import caption_editing
from sdlora.data.caption_editing import (
    CaptionSettings,
    caption_editor,
    plan_changes,
    undo,
    write_changes,
)
from sdlora.data.folder import scan_folder
from sdlora.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Captions in files of several makes, in a table, and nowhere."""
    folder = tmp_path / "set"
    (folder / "sub").mkdir(parents=True)
    for number, name in enumerate(("a", "b", "sub/c", "d", "e")):
        scene(number).save(folder / f"{name}.png")
    (folder / "a.txt").write_bytes("zibo, red ball,  sea\r\nzibo, night".encode("utf-16"))
    (folder / "b.caption").write_text("zibo, blue ball")
    (folder / "sub" / "c.txt").write_text("zibo, Sea, moon\n")
    row = {"file_name": "d.png", "text": "zibo, from a table, sea"}
    (folder / "metadata.jsonl").write_text(json.dumps(row))
    return folder


def state(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def changed(folder: Path, **values: Any) -> dict[str, str]:
    settings = CaptionSettings.from_values({"data": str(folder), **values})
    return {c.path.name: c.after for c in plan_changes(folder, caption_editor(settings))}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"find": "ball", "replace": "cube (1+1)"}, {
            "a.txt": "zibo, red cube (1+1), sea\nzibo, night", "b.caption": "zibo, blue cube (1+1)",
        }),
        ({"find": r"(red|blue) ball", "replace": r"ball, \1", "regex": True}, {
            "a.txt": "zibo, ball, red, sea\nzibo, night", "b.caption": "zibo, ball, blue",
        }),
        ({"remove_tag": ["SEA", "moon"]}, {
            "a.txt": "zibo, red ball\nzibo, night", "c.txt": "zibo", "d.txt": "zibo, from a table",
        }),
        ({"prefix": "zibo", "suffix": ", sharp"}, {
            "a.txt": "zibo, red ball, sea, sharp\nzibo, night, sharp",
            "b.caption": "zibo, blue ball, sharp", "c.txt": "zibo, Sea, moon, sharp",
            "d.txt": "zibo, from a table, sea, sharp", "e.txt": "zibo, sharp",
        }),
        ({"find": "nobody says this", "replace": "x"}, {}),
    ],
)  # fmt: skip
def test_what_would_change_is_shown_and_nothing_is_touched(
    folder: Path, values: dict[str, Any], expected: dict[str, str]
) -> None:
    before = state(folder)
    assert changed(folder, **values) == expected
    assert state(folder) == before


def test_what_was_written_is_taken_back_byte_for_byte(folder: Path) -> None:
    before = state(folder)
    for number in range(2):
        settings = CaptionSettings.from_values({"data": str(folder), "prefix": f"{number} "})
        write_changes(folder, plan_changes(folder, caption_editor(settings)))
    captions = {e.image.name: e.caption for e in scan_folder(folder)[0]}
    assert captions["b.png"] == "1 0 zibo, blue ball"
    assert captions["d.png"] == "1 0 zibo, from a table, sea" and captions["e.png"] == "1 0"
    assert len(undo(folder)) == 5
    assert {e.image.name: e.caption for e in scan_folder(folder)[0]}["e.png"] == "0"
    undo(folder)
    assert state(folder) == before
    with pytest.raises(DataError, match="no change"):
        undo(folder)


def test_what_other_hands_changed_since_stays(folder: Path) -> None:
    settings = CaptionSettings.from_values({"data": str(folder), "prefix": "new "})
    write_changes(folder, plan_changes(folder, caption_editor(settings)))
    (folder / "b.caption").write_text("mine now")
    assert {change.path.name for change in undo(folder)} == {"a.txt", "c.txt", "d.txt", "e.txt"}
    assert (folder / "b.caption").read_text() == "mine now"


def test_killed_at_any_write_the_captions_are_whole_and_come_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state(folder)
    settings = CaptionSettings.from_values({"data": str(folder), "prefix": "new "})
    real, left = caption_editing.write_atomically, 0

    def dying(*given: Any) -> Path:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(caption_editing, "write_atomically", dying)
    after = {p: s for p, s in changed(folder, prefix="new ").items()}
    for writes in range(9):  # three copies, the list, five captions
        left = writes
        with pytest.raises(KeyboardInterrupt):
            write_changes(folder, plan_changes(folder, caption_editor(settings)))
        for name, raw in state(folder).items():
            if name.endswith((".txt", ".caption")) and not name.startswith("."):
                whole = after[Path(name).name] + "\n"
                assert raw == before.get(name) or raw.decode() == whole
        left = 100
        if writes >= 4:
            undo(folder)
        now = {name: raw for name, raw in state(folder).items() if not name.startswith(".")}
        assert now == before


def test_a_caption_that_cannot_be_read_stops_all(folder: Path) -> None:
    (folder / "b.caption").write_bytes(b"\xff\xfa\xf0 no text")
    with pytest.raises(
        DataError, match=r"b\.caption is not UTF-8 text.*save it as UTF-8 text first"
    ):
        changed(folder, prefix="x ")
    with pytest.raises(DataError, match="no regular expression"):
        changed(folder, find="(", regex=True)


def test_the_command_shows_writes_and_takes_back(
    folder: Path, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state(folder)
    line = ["dataset", "captions", str(folder), "--workspace", str(workspace)]
    assert main([*line, "--find", "zibo", "--replace", "robo"]) == 0
    said = capsys.readouterr().out
    assert "- zibo, blue ball\n  + robo, blue ball" in said and "not written yet" in said
    assert state(folder) == before
    assert main([*line, "--find", "zibo", "--replace", "robo", "--write"]) == 0
    assert (folder / "b.caption").read_text() == "robo, blue ball\n"
    assert main([*line, "--undo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"changed": 4}
    assert state(folder) == before
