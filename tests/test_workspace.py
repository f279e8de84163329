"""Names stay names, files are published whole, and nothing leaves the workspace."""

import errno
import json
import os
import tempfile
import threading
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sdlora.files
from sdlora.errors import SettingsError
from sdlora.file_names import checked_name
from sdlora.files import (
    free_path,
    make_folder,
    remove_stale_temp,
    write_atomically,
    write_if_absent,
    write_to_free_path,
)
from sdlora.models.registry import preset_family
from sdlora.starter.sets import SETS
from sdlora.workspace import SHIPPED_SETS, TRAINING_DATA, Workspace

BAD_NAMES = [
    *("", " ", ".", "..", ".hidden", "ends.", "a/b", "a\\b", "../x", "/etc", "C:x", "a\0b", "a\nb"),
    *("con", "CON", "nul.txt", "com1", "LPT9.safetensors", "a*b", "a?b", 'a"b', "a<b", "a|b"),
    *("x" * 81, "a\u202eb", "😀", "\u0301a", "a\u200db", "\u200dकष", "می\u200c"),
]
# Marks that no letter has with it, in most scripts that have such
MARKED_NAMES = [
    *("हिन्दी शैली", "ภาษาไทย ๑", "தமிழ்", "বাংলা", "ಕನ್ನಡ", "မြန်မာ", "ខ្មែរ", "සිංහල", "བོད་ཡིག"[:3]),
    *("עִבְרִית", "عَرَبِيّ", "می\u200cخواهم", "Tiếng Việt", "ẹ̀kọ́"),
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="cannot be a name"):
        checked_name(name)


def test_good_names_are_tidied() -> None:
    assert checked_name("  my style v1.0_b-2 ") == "my style v1.0_b-2"
    assert checked_name(unicodedata.normalize("NFD", "Größe")) == "Größe"
    assert checked_name("日本") == "日本"


@pytest.mark.parametrize("name", MARKED_NAMES)
def test_names_of_every_script_are_taken(name: str) -> None:
    assert checked_name(name) == unicodedata.normalize("NFC", name)


@pytest.mark.parametrize("letter", ["a", "é", "ß", "日", "字", "ก", "𠀀", "क्षि"])
def test_every_file_named_after_a_name_fits_on_the_disk(tmp_path: Path, letter: str) -> None:
    name = ""
    while True:
        try:
            name = checked_name(name + letter)
        except SettingsError as error:
            assert len(name + letter) > 80 or "200 at most leave room" in str(error)
            break
    for ending in ("-step-000123", "-step-000123-2", "-step-100123-12"):
        path = write_to_free_path(
            tmp_path / f"{name}{ending}.safetensors", lambda to: to.write_text("x")
        )
        assert path.is_file()
        left = tmp_path / f".{path.stem}"
        assert not left.exists()


@given(st.text(max_size=90))
def test_a_name_never_leads_anywhere(name: str) -> None:
    try:
        tidy = checked_name(name)
    except SettingsError:
        return
    root = Path("/root/of/all")
    assert Path(os.path.normpath(root / tidy)).parent == root


def test_publish_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "a.txt"
    write_atomically(path, lambda to: to.write_text("whole", encoding="utf-8") and None)

    def half(to: Path) -> None:
        to.write_text("half", encoding="utf-8")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write_atomically(path, half)
    assert path.read_text("utf-8") == "whole"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"], "no temporary file stays"


def test_free_path_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    assert free_path(path) == path
    path.touch()
    (tmp_path / "a-2.png").touch()
    assert free_path(path) == tmp_path / "a-3.png"


def test_a_workspace_makes_its_folders(tmp_path: Path) -> None:
    space = Workspace.open(tmp_path / "with space" / "ünï")
    folders = (space.models, space.loras, space.datasets, space.runs, space.outputs, space.jobs)
    assert all(folder.is_dir() and folder.parent == space.root for folder in folders)
    assert space.database.parent == space.root and space.uploads.parent == space.jobs


def test_a_workspace_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="cannot be written .*--workspace"):
        Workspace.open(tmp_path / "file" / "below")


def test_a_workspace_that_became_read_only_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Workspace.open(tmp_path)

    def read_only(self: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(Path, "touch", read_only)
    with pytest.raises(SettingsError, match=r"cannot be written \(Read-only file system\)"):
        Workspace.open(tmp_path)


def test_own_sets_and_models_are_on_offer(workspace: Path) -> None:
    space = Workspace.open(workspace)
    (space.datasets / "cats").mkdir()
    assert {"cats", "zibo", "neon_lighting"} <= space.dataset_folders().keys()
    (space.models / "mine").mkdir()
    assert space.model_names() == ["starter", "mine"]
    assert space.model_source("mine") == str(space.models / "mine")
    assert space.model_source("someone/model") == "someone/model"


def test_what_ships_is_told_from_a_set_of_ones_own_beside_it(workspace: Path) -> None:
    space = Workspace.open(workspace)
    assert sorted(SETS) == sorted(SHIPPED_SETS)
    assert all(space.ships(space.dataset_folders()[name]) for name in SETS)
    assert not space.ships(TRAINING_DATA / "my_style")
    assert not space.ships(space.datasets / "zibo")


@pytest.mark.parametrize(
    ("name", "family"),
    [("StableDiffusionXLPipeline", "sdxl"), ("StableDiffusionPipeline", "sd1"), (None, "any")],
)
def test_a_models_presets_are_told_by_its_index(
    workspace: Path, name: str | None, family: str
) -> None:
    space = Workspace.open(workspace)
    folder = space.models / "mine"
    folder.mkdir()
    if name:
        (folder / "model_index.json").write_text(json.dumps({"_class_name": name}), "utf-8")
    assert preset_family(space.model_source("mine")) == family
    assert preset_family(space.model_source("starter")) == "starter"


def test_what_a_killed_writer_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    path, seen = tmp_path / "a [b].safetensors", []
    write_atomically(path, lambda temporary: seen.append(temporary))
    others = [tmp_path / ".a [b]-x.part.safetensors", tmp_path / ".ab-12345678.part.safetensors"]
    for file in (*seen, *others):
        file.touch()
    remove_stale_temp(path)
    assert sorted(tmp_path.iterdir()) == sorted([*others, path])


def test_a_new_folder_is_known_to_the_disk_with_those_that_it_lies_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[Path] = []
    monkeypatch.setattr(sdlora.files, "sync_folder", flushed.append)
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    assert flushed == [tmp_path, tmp_path / "a"], "where a name is new, once"


def test_what_a_killed_writer_of_a_long_name_left_is_swept(tmp_path: Path) -> None:
    path, seen = tmp_path / f"{'字' * 66}.safetensors", []
    write_atomically(path, lambda temporary: seen.append(temporary))
    seen[0].touch()
    remove_stale_temp(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture(params=[0o022, 0o002, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def by_a_private_file(to: Path) -> None:
    """As writers do that put a file of their own in the place of the one that they are given."""
    handle, name = tempfile.mkstemp(dir=to.parent)
    os.close(handle)
    os.replace(name, to)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no umask")
@pytest.mark.parametrize("how", [write_atomically, write_to_free_path, write_if_absent])
@pytest.mark.parametrize("write", [Path.touch, by_a_private_file])
def test_files_have_the_permissions_of_the_umask(
    tmp_path: Path, umask: int, how: Any, write: Any
) -> None:
    path = how(tmp_path / "a.txt", write)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("has_links", [True, False])
def test_writers_of_one_name_at_once_get_a_file_each(
    tmp_path: Path, has_links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError("no links on this disk")

    if not has_links:
        monkeypatch.setattr(os, "link", no_links)
    together = threading.Barrier(8)

    def save(number: int) -> Path:
        def write(to: Path) -> None:
            to.write_text(str(number))
            together.wait(10)

        return write_to_free_path(tmp_path / "a.png", write)

    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(save, range(8)))
    names = {"a.png", *(f"a-{number}.png" for number in range(2, 9))}
    assert {path.name for path in paths} == names == {path.name for path in tmp_path.iterdir()}
    assert [path.read_text() for path in paths] == [str(number) for number in range(8)]
    with pytest.raises(FileExistsError):
        write_if_absent(tmp_path / "a.png", lambda to: to.write_text("mine"))
    assert (tmp_path / "a.png").read_text() != "mine"


def test_a_link_to_nowhere_keeps_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "gone")
    assert write_to_free_path(tmp_path / "a.png", Path.touch).name == "a-2.png"
    assert (tmp_path / "a.png").is_symlink()
