"""Picture sets as the page sees them: those on disk, and those dropped into the browser."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from PIL import Image

from sdlora.data.captions import CAPTION_SUFFIXES, common_trigger, read_caption
from sdlora.errors import DataError, SdloraError
from sdlora.workspace import TRAINING_DATA, Workspace, checked_name, free_path, publish
from webui.media import BROKEN, FORMATS

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
MOST_PIXELS = 80_000_000


@dataclass(frozen=True)
class PictureSet:
    """A folder of pictures, with the caption of each; '' where there is none."""

    folder: Path
    pictures: tuple[Path, ...]
    captions: tuple[str, ...]

    @cached_property
    def trigger_word(self) -> str:
        """What all captions begin with, else the folder's name in words."""
        shared = common_trigger(filter(None, self.captions))
        return shared or self.folder.name.replace("_", " ")


def look(folder: Path) -> PictureSet:
    """The pictures of a folder and of the folders in it, by name."""
    files = (p for p in folder.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES)
    pictures = sorted(p for p in files if p.name[0] != ".")
    return PictureSet(folder, tuple(pictures), tuple(_caption(p) for p in pictures))


def _caption(picture: Path) -> str:
    for suffix in CAPTION_SUFFIXES:
        path = picture.with_suffix(suffix)
        if path.is_file():
            try:
                return read_caption(path)
            except ValueError:
                return ""  # the training says what is wrong with it
    return ""


@dataclass
class Added:
    """What became of dropped files."""

    folder: Path
    pictures: int = 0
    captions: int = 0
    problems: list[str] = field(default_factory=list)


def add(workspace: Workspace, name: str, files: Sequence[Path]) -> Added:
    """Copy dropped pictures and captions into `datasets/NAME`; files that are there stay.

    SettingsError for a name that cannot be one, DataError when it belongs to a set that ships or no
    picture is good. What is left out is named in `problems`.
    """
    name = checked_name(name)
    if (TRAINING_DATA / name).exists():
        raise DataError(f"a set called {name!r} ships with sdlora; choose another name for yours")
    added = Added(workspace.datasets / name)
    stems: dict[str, str] = {}  # a picture that had to be renamed takes its caption along
    for file in (f for f in files if f.suffix.lower() in PICTURE_SUFFIXES):
        stems |= _keep(file, added, check_picture) or {}
        added.pictures = len(stems)
    if not stems:
        reasons = "\n".join(added.problems)
        raise DataError(f"none of the files is a picture that can be used\n{reasons}".strip())
    for file in (f for f in files if f.suffix.lower() not in PICTURE_SUFFIXES):
        if file.suffix.lower() not in CAPTION_SUFFIXES:
            added.problems.append(f"{file.name} is neither a picture nor a caption")
        elif file.stem not in stems:
            added.problems.append(f"{file.name} belongs to none of these pictures")
        elif _keep(file, added, read_caption, stems[file.stem]):
            added.captions += 1
    return added


def _keep(
    file: Path, added: Added, check: Callable[[Path], object], stem: str = ""
) -> dict[str, str] | None:
    """Copy a file that passes its check: {its stem: the stem it has now}; None when it does not."""
    try:
        check(file)
        name = checked_name(f"{stem or file.stem}{file.suffix.lower()}")
    except (*BROKEN, SdloraError) as error:
        added.problems.append(f"{file.name} is left out: {error}")
        return None
    path = free_path(added.folder / name)
    publish(path, lambda to: shutil.copyfile(file, to))
    return {file.stem: path.stem}


def check_picture(path: Path) -> None:
    """Read a picture to its end. Raises one of BROKEN, with the reason, when it is damaged."""
    with Image.open(path, formats=FORMATS) as image:
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"it has more than {MOST_PIXELS // 1_000_000} million pixels")
        image.load()
