"""Folders of LoRA files of any shape: of other programs, linked, endless, or not to be listed."""

import os
from pathlib import Path

import pytest

from raw_lora import lora
from sdlora.errors import LoraFileError
from sdlora.lora.library import scan as walk_module
from sdlora.lora.library.library import Library
from sdlora.lora.library.scan import walk
from sdlora.workspace import Workspace


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "loras"
    lora(root / "neon.safetensors", ss_output_name="old neon")
    lora(root / "My_style-v1.0.safetensors", 2048)
    lora(root / "people" / "zibo.safetensors", 128)
    return root


def test_links_that_go_in_circles_are_followed_once(folder: Path) -> None:
    (folder / "people" / "up").symlink_to(folder, target_is_directory=True)
    (folder / "again").symlink_to(folder / "people", target_is_directory=True)
    (folder / "itself").symlink_to(folder / "itself")
    entries = Library([folder, folder / "people"]).list()
    assert sorted(entry.name for entry in entries) == ["My_style-v1.0", "neon", "zibo"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("up", [1, 2, 99])
def test_a_link_to_what_the_folder_lies_in_is_not_followed(tmp_path: Path, up: int) -> None:
    loras = tmp_path / "space" / "loras"
    loras.mkdir(parents=True)
    (loras / "a.safetensors").touch()
    above = loras.parents[min(up, len(loras.parents)) - 1]
    (loras / "all").symlink_to(above)
    (tmp_path / "space" / "other.safetensors").touch()
    found, problems = walk([loras])
    assert [one.name for one in found] == ["a"]
    assert len(problems) == 1 and f"leads to {above}, in which" in problems[0]
    # unless it is a place of LoRAs in its own right
    if up == 1:
        found, problems = walk([loras, loras.parent])
        assert {one.name for one in found} == {"a", "other"} and not problems


def test_a_search_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(9):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "a.safetensors").touch()
    monkeypatch.setattr("sdlora.folder_walk.MAX_FOLDERS", 5)
    found, problems = walk([tmp_path])
    assert len(found) == 4 and "only the first 5 folders are searched" in problems[0]


def test_a_pipe_is_no_file(folder: Path) -> None:
    os.mkfifo(folder / "pipe.safetensors")
    os.mkfifo(folder / "neon.json")
    assert len(Library([folder]).list()) == 3


def test_names_that_are_no_text_can_be_shown_and_found(folder: Path) -> None:
    strange = os.fsencode(folder) + b"/caf\xe9.safetensors"
    try:
        os.rename(folder / "neon.safetensors", strange)
    except (OSError, UnicodeError):
        pytest.skip("this disk keeps text only")
    library = Library([folder], folder.parent / "index.db")
    assert "caf?" in [entry.name for entry in library.list()]
    again = Library([folder], folder.parent / "index.db").find("caf?")
    assert os.fsencode(again.path) == strange and again.family == "sd1"


def test_a_folder_that_cannot_be_listed_is_named(folder: Path) -> None:
    library = Library([folder, folder / "none"])
    assert len(library.list()) == 3
    with pytest.raises(LoraFileError, match="folder .*none cannot be read"):
        library.find("neom")


def test_further_folders_are_read_in_place(tmp_path: Path) -> None:
    space = Workspace.open(tmp_path / "space")
    library = Library.for_workspace(space)
    shipped = {entry.name for entry in library.list()}
    assert shipped and not library.problems
    a1111, comfy, plain_one = (tmp_path / name for name in ("a 1111", "comfy", "mine"))
    lora(a1111 / "models" / "Lora" / "styles" / "one.safetensors")
    lora(a1111 / "models" / "LyCORIS" / "two.safetensors")
    lora(a1111 / "outputs" / "not_this.safetensors")
    lora(comfy / "models" / "loras" / "three.safetensors")
    lora(plain_one / "four.safetensors")
    lora(space.root / "near" / "five.safetensors")
    lines = ["\ufeff# my folders", f'"{a1111}"', "", f"{comfy}\r", f"  {plain_one}  ", "near"]
    lines.append(str(tmp_path / "gone"))
    (space.root / "lora_folders.txt").write_text("\n".join(lines), "utf-8")
    names = {entry.full_name for entry in library.list()}
    assert names - shipped == {"styles/one", "two", "three", "four", "five"}
    assert [str(tmp_path / "gone") in problem for problem in library.problems] == [True]


@pytest.mark.parametrize("way", ["Models/Lora", "MODELS/loras", "models/lycoris", "models/Lora"])
def test_folders_of_other_programs_are_found_in_any_case(way: str, tmp_path: Path) -> None:
    space, program = Workspace.open(tmp_path / "space"), tmp_path / "program"
    lora(program / way / "one.safetensors")
    lora(program / Path(way).parent / "Stable-diffusion" / "checkpoint.safetensors")
    for named in (program, program / Path(way).parent):
        (space.root / "lora_folders.txt").write_text(str(named), "utf-8")
        assert program / way in space.lora_folders
        names = {entry.full_name for entry in Library.for_workspace(space).list()}
        assert "one" in names and not any("checkpoint" in name for name in names)


def test_a_folder_that_is_the_whole_disk_is_not_searched(tmp_path: Path) -> None:
    found, problems = walk([Path(tmp_path.anchor), tmp_path])
    assert not found and len(problems) == 1 and "whole disk" in problems[0]


def test_a_name_that_a_system_lists_twice_is_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.safetensors").touch()
    real = walk_module._list_folder
    monkeypatch.setattr(walk_module, "_list_folder", lambda path: (real(path)[0] * 2, []))
    assert [one.name for one in walk([tmp_path])[0]] == ["a"]
