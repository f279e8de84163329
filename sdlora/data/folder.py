"""A picture folder: the examples in it, and every file that is not used as its owner meant.

Pictures lie in the folder or in folders of it, each with its caption in a `.txt` or `.caption` file
of the same name. A folder named the way kohya's trainers want it, `10_zibo robot`, repeats its
pictures ten times, and `zibo robot` is the caption of those that have no file.
"""

from __future__ import annotations

import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import UnidentifiedImageError

from sdlora.data.captions import CAPTION_SUFFIXES, read_caption
from sdlora.data.images import BROKEN, FORMATS_SAID, open_picture, upright_size
from sdlora.errors import DataError
from sdlora.events import Warned

# Files that their owner surely takes for pictures, whether or not we can read them.
PICTURE_SUFFIXES = frozenset((
    ".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".heif",
    ".avif", ".jxl", ".jp2", ".psd",
))  # fmt: skip
_MOVING = frozenset({"PNG", "WEBP"})
_KOHYA_FOLDER = re.compile(r"(\d{1,3})_(.+)")


@dataclass(frozen=True)
class Example:
    """A readable picture and its caption. `size` is (width, height) upright, in pixels; it counts
    `repeats` times in every round through the folder."""

    image: Path
    caption: str
    size: tuple[int, int]
    repeats: int = 1


@dataclass(frozen=True)
class Problem:
    """A file that is not used as its owner meant: the sentence is 'NAME WHAT', then the advice."""

    path: Path
    what: str
    advice: str

    def warned(self) -> Warned:
        """The problem as a run says it."""
        return Warned(f"{self.path.name} {self.what}", self.advice)


def scan_folder(path: Path) -> tuple[list[Example], list[Problem]]:
    """The examples in the folder, in the order of their names, and what is wrong with the rest.

    Every picture is decoded to its end once, since only that finds a truncated one.
    DataError: there is no such folder, or no usable picture in it.
    """
    if not path.is_dir():
        raise DataError(f"there is no folder {path}; give a folder with pictures and captions")
    files = _visible_files(path)
    with ThreadPoolExecutor() as threads:  # decoding lets go of Python's lock
        found = list(threads.map(_look_at, (f for f in files if not _is_caption(f))))
    examples = [example for example, _ in found if example]
    problems = [problem for _, problem in found if problem]
    problems += _lonely_captions(files)
    if not examples:
        raise DataError(_nothing_usable(path, files, problems))
    return examples, sorted(problems, key=lambda problem: problem.path)


def _visible_files(path: Path) -> list[Path]:
    def hidden(file: Path) -> bool:
        return any(part.startswith((".", "__")) for part in file.relative_to(path).parts)

    files = (file for file in path.rglob("*") if file.is_file() and not hidden(file))
    return sorted(files, key=Path.as_posix)  # the same on systems that ignore case


def _is_caption(file: Path) -> bool:
    return file.suffix.lower() in CAPTION_SUFFIXES


def _look_at(file: Path) -> tuple[Example | None, Problem | None]:
    """The example that a file is, and what is wrong with it; neither when it is no picture."""
    try:
        with open_picture(file) as image:
            size = upright_size(image)
            moves = image.format in _MOVING and getattr(image, "is_animated", False)
            image.load()
    except UnidentifiedImageError:
        if file.suffix.lower() not in PICTURE_SUFFIXES:
            return None, None
        return None, Problem(file, "is not a picture we can read", f"save it as {FORMATS_SAID}")
    except BROKEN as error:
        return None, Problem(file, f"cannot be read: {error}", f"save it again as {FORMATS_SAID}")
    caption, repeats, problem = _caption_of(file)
    if moves and not problem:
        problem = Problem(file, "is a moving picture; only its first frame is used", "")
    return Example(file, caption, size, repeats), problem


def _caption_of(image: Path) -> tuple[str, int, Problem | None]:
    """(caption, repeats, what is wrong with the caption)."""
    kohya = _KOHYA_FOLDER.fullmatch(image.parent.name)
    repeats, words = (max(1, int(kohya[1])), kohya[2]) if kohya else (1, "")
    instead = f"captioned {words!r} after its folder" if words else "learnt without a caption"
    advice = f"write one into {image.stem}{CAPTION_SUFFIXES[0]} beside it"
    sidecar = next((s for s in map(image.with_suffix, CAPTION_SUFFIXES) if s.is_file()), None)
    if sidecar is None:
        return words, repeats, Problem(image, f"has no caption; {instead}", advice)
    try:
        caption = read_caption(sidecar)
    except ValueError as error:
        return words, repeats, Problem(sidecar, f"{error}; {image.name} is {instead}", advice)
    if not caption:
        return words, repeats, Problem(sidecar, f"is empty; {image.name} is {instead}", advice)
    return caption, repeats, None


def _lonely_captions(files: list[Path]) -> list[Problem]:
    pictures = {file.with_suffix("") for file in files if not _is_caption(file)}
    lonely = (f for f in files if _is_caption(f) and f.with_suffix("") not in pictures)
    return [Problem(file, "has no picture of the same name beside it", "") for file in lonely]


def _nothing_usable(path: Path, files: list[Path], problems: list[Problem]) -> str:
    kinds = Counter(file.suffix.lower() or "no suffix" for file in files)
    found = ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items())) or "no files"
    first = f" {problems[0].path.name} {problems[0].what}." if problems else ""
    return (
        f"no usable picture in {path}: found {found}.{first} Put {FORMATS_SAID} pictures there, "
        f"each with a caption of the same name in a {CAPTION_SUFFIXES[0]} file"
    )
