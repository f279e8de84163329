"""Which files of a folder are looked at: links are followed, and what nobody meant is left out."""

import os
from pathlib import Path

import pytest

from picture_files import scene
from sdlora.data import listing
from sdlora.data.dataset import read_dataset
from sdlora.data.folder import list_captions, scan_folder
from sdlora.errors import DataError
from sdlora.settings.train import TrainSettings
from sdlora.workspace import Workspace


def picture(path: Path, seed: int = 1, caption: str = "zibo") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    scene(seed).save(path)
    path.with_suffix(".txt").write_text(caption)
    return path


def names(folder: Path) -> set[str]:
    return {e.image.relative_to(folder).as_posix() for e in scan_folder(folder)[0]}


def words(folder: Path) -> dict[str, str]:
    return {problem.path.name: problem.message for problem in scan_folder(folder)[1]}


def gathered(workspace: Path, *data: Path | str):  # type: ignore[no-untyped-def]
    first, *more = map(str, data)
    settings = TrainSettings.from_values({"data": first, "more_data": more, "name": "n"})
    return read_dataset(settings, Workspace.open(workspace))


def test_linked_folders_are_read_with_all_in_them(tmp_path: Path) -> None:
    picture(tmp_path / "elsewhere" / "10_zibo" / "a.png")
    picture(tmp_path / "set" / "b.png")
    (tmp_path / "set" / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "set" / "c.png").symlink_to(tmp_path / "set" / "b.png")
    examples, _ = scan_folder(tmp_path / "set")
    assert {e.image.name: e.repeats for e in examples} == {"a.png": 10, "b.png": 1, "c.png": 1}
    assert len(list_captions(tmp_path / "set")) == 3


def test_links_in_circles_and_to_everything_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    folder, other = tmp_path / "set", tmp_path / "other"
    picture(folder / "a.png")
    picture(other / "b.png")
    targets = {"self": folder, "up": tmp_path, "root": Path("/"), "home": tmp_path / "home"}
    targets |= {"once": other, "twice": other}
    for name, target in targets.items():
        (folder / name).symlink_to(target, target_is_directory=True)
    (other / "back").symlink_to(folder, target_is_directory=True)
    (folder / "loop").symlink_to(folder / "loop")
    assert names(folder) == {"a.png", "once/b.png"}
    said = words(folder)
    assert "loop" in said and said["twice"] == "is a link to a folder that is read already"
    assert all("not followed" in said[name] for name in ("self", "up", "root", "home", "back"))


def test_a_folder_without_end_is_read_to_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "MAX_FILES", 4)
    for number in range(8):
        picture(tmp_path / str(number) / "a.png")
    assert 0 < len(scan_folder(tmp_path)[0]) < 8
    assert "more than 4 files" in words(tmp_path)[tmp_path.name]


@pytest.mark.parametrize("name", ["@eaDir", "#recycle", "$RECYCLE.BIN", "thumbnails"])
def test_small_copies_and_deleted_files_are_no_pictures_to_learn(tmp_path: Path, name: str) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / name / "deep" / "b.png", 2)
    picture(tmp_path / ".thumbnails" / "c.png", 3)
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    assert names(tmp_path) == {"a.png"}
    assert words(tmp_path).keys() == {name}


@pytest.mark.parametrize("mark", ["-masklabel1", "-condlabel", "-condlabel2"])
def test_masks_and_conditions_are_no_pictures_to_learn(tmp_path: Path, mark: str) -> None:
    picture(tmp_path / "a.png")
    scene(2).save(tmp_path / f"a{mark}.png")
    assert names(tmp_path) == {"a.png"} and len(list_captions(tmp_path)) == 1
    assert "mask or a condition" in words(tmp_path)[f"a{mark}.png"]


def test_nothing_is_learnt_zero_times(tmp_path: Path, workspace: Path) -> None:
    picture(tmp_path / "set" / "0_old" / "a.png", 1)
    picture(tmp_path / "set" / "2_zibo" / "b.png", 2)
    picture(tmp_path / "more" / "c.png", 3)
    found = gathered(workspace, tmp_path / "set", f"0*{tmp_path / 'more'}")
    assert [(e.image.name, e.repeats) for e in found.examples] == [("b.png", 2)]
    said = {problem.path.name: problem.message for problem in found.problems}
    assert "repeated 0 times" in said["0_old"] and "repeated 0 times" in said["more"]
    with pytest.raises(DataError, match="repeated 0 times"):
        gathered(workspace, f"0*{tmp_path / 'more'}")


def test_a_folder_reg_holds_regularisation_pictures(tmp_path: Path, workspace: Path) -> None:
    picture(tmp_path / "img" / "5_zibo" / "a.png", 1, "zibo, sea")
    picture(tmp_path / "reg" / "1_robot" / "b.png", 2, "a robot")
    found = gathered(workspace, tmp_path)
    assert [(e.caption, e.regularisation) for e in found.examples] == [
        ("zibo, sea", False), ("a robot", True),
    ]  # fmt: skip
    said = {problem.path.name: problem.message for problem in found.problems}
    assert "learnt as regularisation pictures" in said["reg"]
    alone = gathered(workspace, tmp_path / "reg")
    assert [e.regularisation for e in alone.examples] == [False]


def test_a_single_file_is_told_for_what_it_is(tmp_path: Path, workspace: Path) -> None:
    path = picture(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png is a single picture, not a folder or a zip"):
        gathered(workspace, path)
    with pytest.raises(DataError, match=r"a\.txt is a single file, not a folder or a zip"):
        gathered(workspace, path.with_suffix(".txt"))


def test_advice_for_a_large_picture_is_to_make_it_smaller(tmp_path: Path) -> None:
    picture(tmp_path / "good.png")
    raw = bytearray(picture(tmp_path / "large.bmp", 2).read_bytes())
    raw[18:26] = (12_000).to_bytes(4, "little") + (9_000).to_bytes(4, "little")
    (tmp_path / "large.bmp").write_bytes(raw)
    (problem,) = scan_folder(tmp_path)[1]
    assert "108 million" in problem.message and "smaller" in problem.advice


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "closed" / "b.png")
    (tmp_path / "closed").chmod(0)
    try:
        assert "cannot be read" in words(tmp_path)["closed"]
    finally:
        (tmp_path / "closed").chmod(0o700)
