"""Picture sets as the page sees them: those on disk, and those dropped into the browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from sdlora.data.caption_files import is_caption_file
from sdlora.data.captions import common_trigger, read_caption
from sdlora.data.folder import list_captions, scan_folder
from sdlora.data.image_files import BROKEN
from sdlora.data.image_stats import PICTURE_SUFFIXES, read_image_stats
from sdlora.data.json_captions import read_sidecar
from sdlora.data.zips import unpack
from sdlora.errors import DataError, SdloraError
from sdlora.file_names import checked_name
from sdlora.files import write_to_free_path
from sdlora.messages import Message
from sdlora.workspace import TRAINING_DATA, Workspace


@dataclass(frozen=True)
class UploadedSet:
    """A folder of pictures, with the caption of each; '' where it has none."""

    folder: Path
    pictures: tuple[Path, ...]
    captions: tuple[str, ...]

    @cached_property
    def trigger_word(self) -> str:
        """Trigger word: the words that all captions begin with, else the folder's name with
        spaces."""
        shared = common_trigger(filter(None, self.captions))
        return shared or self.folder.name.replace("_", " ")


def read_set(folder: Path) -> UploadedSet:
    """The pictures of a folder and its subfolders with their captions, by name. No picture is
    opened: the dataset report and the training name the broken ones."""
    captions = list_captions(folder)
    return UploadedSet(folder, tuple(captions), tuple(captions.values()))


def set_path(workspace: Workspace, source: str) -> str:
    """Folder of a set that a field of the page names, perhaps after `3*`. DataError for any other
    text: the page reaches only the sets."""
    times, _, name = source.rpartition("*")
    folder = workspace.dataset_folders().get(name.strip())
    if folder is None:
        sets = ", ".join(sorted(workspace.dataset_folders()))
        raise DataError(
            "{source!r} is not one of the sets {sets}; add the pictures as a set",
            source=source[:80], sets=sets,
        )  # fmt: skip
    return f"{times}*{folder}" if times else str(folder)


@dataclass
class UploadResult:
    """Result of an upload: the set's folder, counts, and a sentence for each file left out."""

    folder: Path
    pictures: int = 0
    captions: int = 0
    problems: list[str] = field(default_factory=list)


def add_files(workspace: Workspace, name: str, files: Sequence[Path]) -> UploadResult:
    """Copy dropped pictures and captions, or the contents of one zip, into `datasets/NAME`;
    existing files stay.

    SettingsError for an invalid name, DataError when a set of that name ships with sdlora or no
    picture is usable. Files left out are named in `problems`.
    """
    name = checked_name(name)
    if (existing := TRAINING_DATA / name).exists():
        whose = "ships with sdlora" if workspace.ships(existing) else f"is in {TRAINING_DATA.name}/"
        raise DataError(
            "a set called {name!r} {whose}; choose another name for this one",
            name=name, whose=whose,
        )  # fmt: skip
    added = UploadResult(workspace.datasets / name)
    archives = [file for file in files if file.suffix.lower() == ".zip"]
    if archives:
        return _add_archive(added, archives, len(files), workspace.cache / "unpacked")
    stems: dict[str, str] = {}  # a picture that had to be renamed takes its caption along
    for file in (f for f in files if f.suffix.lower() in PICTURE_SUFFIXES):
        if copied := _copy_checked(file, added, check_picture):
            stems |= {file.stem: Path(copied).stem, file.name: copied}
            added.pictures += 1
    if not stems:
        first = (
            "none of the files is a picture that can be used" if files else "drop pictures first"
        )
        raise DataError(Message.of_lines([first, *added.problems]))
    for file in (f for f in files if f.suffix.lower() not in PICTURE_SUFFIXES):
        if not is_caption_file(file.name):
            added.problems.append(
                Message("{file} is neither a picture nor a caption", file=file.name)
            )
        elif file.stem not in stems:
            added.problems.append(
                Message("{file} does not belong to any of these pictures", file=file.name)
            )
        elif _copy_checked(file, added, _check_caption, stems[file.stem]):
            added.captions += 1
    return added


def _check_caption(file: Path) -> None:
    """Read a caption file. ValueError says what is wrong with it."""
    if file.suffix.lower() == ".json":
        read_sidecar(file)
    else:
        read_caption(file)


def _add_archive(
    added: UploadResult, archives: Sequence[Path], count: int, unpacked: Path
) -> UploadResult:
    """Make a zip a set of its own, subfolders included, after checking it in `unpacked`."""
    if count > 1 or added.folder.exists():
        reason = "there is a set of that name" if added.folder.exists() else "drop it by itself"
        raise DataError(
            "{file} is not added: {why}; a zip becomes a set of its own",
            file=archives[0],
            why=reason,
        )
    folder, problems = unpack(archives[0], unpacked)
    try:
        examples, wrong = scan_folder(folder)
        os.replace(folder, added.folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    added.pictures = len(examples)
    added.captions = sum(bool(example.caption) for example in examples)
    added.problems = [
        Message("{file} {fault}", file=problem.path.name, fault=problem.message)
        for problem in [*problems, *wrong]
    ]
    return added


def _copy_checked(
    file: Path, added: UploadResult, check: Callable[[Path], object], stem: str = ""
) -> str | None:
    """Copy a file that passes `check`; its new name, None when it does not pass."""
    try:
        check(file)
        name = checked_name(f"{stem or file.stem}{file.suffix.lower()}")
    except (*BROKEN, SdloraError) as error:
        added.problems.append(Message("{file} is left out: {why}", file=file.name, why=error))
        return None
    path = write_to_free_path(added.folder / name, lambda to: shutil.copyfile(file, to))
    return path.name


def check_picture(path: Path) -> None:
    """Read a picture completely. DataError, with the reason, when it cannot be used."""
    seen = read_image_stats(path)
    if not seen.digest:
        raise DataError("it {why}", why=seen.problem or "is not a picture")
