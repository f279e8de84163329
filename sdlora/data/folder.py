"""Picture folder: the examples in it, and every file that is not used as its owner meant.

Pictures lie in the folder or in folders of it, each with its caption in a file of its name or in a
table (see `caption_files`). A folder named as kohya's trainers name it, `10_zibo robot`, repeats
its pictures ten times, and `zibo robot` is the caption of those that have none; `0_zibo` is left
out. Pictures in a folder `reg` are regularisation pictures of those beside it. `NAME-masklabel.png`
is the mask of NAME.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from sdlora.data.caption_files import EMPTY, CaptionFiles, keys_of
from sdlora.data.captions import CAPTION_SUFFIXES
from sdlora.data.image_files import BROKEN, FORMATS_TEXT
from sdlora.data.image_stats import PICTURE_SUFFIXES, ImageStats, read_image_stats
from sdlora.data.images import load_alpha, load_mask
from sdlora.data.listing import list_files
from sdlora.data.problems import Problem, to_warnings
from sdlora.errors import DataError
from sdlora.messages import Message, Setting, readable
from sdlora.settings.train import CaptionLines, MissingCaptions

__all__ = ["Example", "FolderReading", "Problem", "black_masks", "list_captions"]
__all__ += ["list_pictures", "open_captions", "scan_folder", "to_warnings"]
MASK_MARK = "-masklabel"
_LABEL = re.compile(r"-(mask|cond)label\d*")  # how OneTrainer ends the names of what is no picture
_KOHYA_FOLDER = re.compile(r"(\d{1,3})_(.+)")
_REGULARISATION = frozenset(("reg", "reg_images", "regularization", "regularisation"))
_NUMBER = re.compile(r"^\d+\s+|\s*\(?\d+\)?$")
ADVICE = "write one into a .txt file of its name beside it"
UNUSED = "is not used: it is neither a picture nor a caption"
_FILM = ("is not used: it is a film, and only pictures are learnt", "save single pictures of it")
_TEXT = ("is not used: captions have other suffixes", "name it NAME.txt or NAME.caption")
# Suffix -> (why a file of it is not used, what to do).
_UNUSED_KINDS = {
    **dict.fromkeys((".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v"), _FILM),
    **dict.fromkeys((".captions", ".cap", ".tags", ".text"), _TEXT),
    ".json": (UNUSED, "captions are read from NAME.json, beside the picture NAME"),
}


@dataclass(frozen=True)
class Example:
    """A readable picture and its caption, lines with newlines between if one of them is to be
    drawn. `size` is (width, height) upright, in pixels; it counts `repeats` times in every round
    through the folder. `mask` is the file that says where the loss counts, the picture itself when
    what can be seen of it does."""

    image: Path
    caption: str
    size: tuple[int, int]
    repeats: int = 1
    regularisation: bool = False
    mask: Path | None = None
    digest: str = ""  # sha256 of the file


@dataclass(frozen=True)
class FolderReading:
    """Options of reading a folder. Files below `besides` belong to other sources."""

    missing: MissingCaptions = "folder"
    lines: CaptionLines = "joined"
    masks: Path | None = None
    alpha_masks: bool = False
    besides: tuple[Path, ...] = ()


def scan_folder(
    path: Path,
    reading: FolderReading = FolderReading(),  # noqa: B008
) -> tuple[list[Example], list[Problem]]:
    """The examples in the folder, in the order of their names, and what is wrong with the rest.

    Every picture is decoded to its end once, since only that finds a truncated one.
    DataError: there is no such folder, no usable picture in it, or captions that must not be
    missing are.
    """
    if not path.is_dir():
        raise DataError(
            "there is no folder {folder}; give one of pictures and captions", folder=path
        )
    scan = _Scan(path, reading)
    examples = scan.examples()
    if not examples:
        raise DataError(_nothing_usable(path, scan.files, scan.problems))
    return examples, sorted(scan.problems, key=lambda problem: problem.path)


def list_pictures(path: Path) -> list[Path]:
    """The files of a folder that look like pictures by their names, unopened."""
    return [file for file in list_files(path).files if _may_be_picture(file)]


def open_captions(path: Path) -> CaptionFiles:
    """The captions of a folder, as a training reads them, and its pictures, unopened."""
    files = list_files(path).files
    return CaptionFiles(files, [file for file in files if _may_be_picture(file)])


def list_captions(path: Path) -> dict[Path, str]:
    """Return the pictures of a folder and the caption of each, '' where there is none; problems are
    not reported."""
    captions = open_captions(path)
    return {picture: captions.read(picture).text for picture in captions.pictures}


def _may_be_picture(file: Path) -> bool:
    return file.suffix.lower() in PICTURE_SUFFIXES and not _is_label(file)


def _is_label(file: Path) -> bool:
    return bool(_LABEL.search(file.stem)) and file.suffix.lower() in PICTURE_SUFFIXES


def _repeats(file: Path) -> tuple[int, str]:
    """Return (repeats, caption text) from the name of the folder that a picture is in."""
    kohya = _KOHYA_FOLDER.fullmatch(file.parent.name)
    return (int(kohya[1]), readable(kohya[2])) if kohya else (1, "")


def _as_words(stem: str) -> str:
    """'01_red_ball (2)' -> 'red ball'."""
    return _NUMBER.sub("", " ".join(re.split(r"[\s_]+", readable(stem)))).strip()


class _Scan:
    """One reading of one folder."""

    def __init__(self, root: Path, reading: FolderReading) -> None:
        listing = list_files(root, reading.besides)
        self.root, self.reading, self.problems = root, reading, listing.problems
        self.bare: list[Path] = []  # pictures left out for want of a caption
        self.files = self._without_zero_repeats(listing.files)
        self.masks = {
            keys_of(f.with_name(f.stem.removesuffix(MASK_MARK)))[1]: f
            for f in self.files
            if f.stem.endswith(MASK_MARK) and _is_label(f)
        }
        self.labels = [file for file in self.files if _is_label(file)]
        for file in (f for f in self.labels if f not in self.masks.values()):
            message = (
                "is not used: it is a mask or a condition by its name, and no picture to learn"
            )
            self.problem(
                file, message, Message("a mask is read from NAME{mark}.png", mark=MASK_MARK)
            )
        if reading.masks:
            for file in list_pictures(reading.masks):
                self.masks[keys_of(root / file.relative_to(reading.masks))[0]] = file
        others = [file for file in self.files if file not in {*self.labels}]
        self.captions = CaptionFiles(self.files, others)
        self.problems += self.captions.problems
        self.candidates = [file for file in others if file not in self.captions.used]

    def problem(self, file: Path, message: str, advice: str = "") -> None:
        self.problems.append(Problem(file, message, advice))

    def examples(self) -> list[Example]:
        """Every usable picture, and problems of all others."""
        with ThreadPoolExecutor() as threads:  # decoding lets go of Python's lock
            looks = list(threads.map(read_image_stats, self.candidates))
        scanned = [self._example(*row) for row in zip(self.candidates, looks, strict=True)]
        self._lonely(looks)
        if self.bare and self.reading.missing == "refuse":
            raise DataError(
                "{count} pictures have no caption, such as {names}; " + ADVICE + ", or choose "
                "with {setting} what is read instead",
                count=len(self.bare),
                names=[file.name for file in self.bare[:5]],
                setting=Setting("missing_captions"),
            )
        return self._regularised([example for example in scanned if example])

    def _without_zero_repeats(self, files: list[Path]) -> list[Path]:
        folders = {file.parent for file in files if _repeats(file)[0] == 0}
        for folder in folders:
            message = (
                "is left out: its name begins with 0, so that its pictures are repeated 0 times"
            )
            self.problem(folder, message, "begin it with 1_ if they are to be learnt")
        return [file for file in files if file.parent not in folders]

    def _regularised(self, examples: list[Example]) -> list[Example]:
        """Return the examples with those in folders `reg` marked as regularisation pictures, where
        there are others to learn."""
        places = {e.image: e.image.relative_to(self.root).parts[0] for e in examples}
        folders = {p for p in places.values() if p.lower() in _REGULARISATION}
        if not folders or folders >= {*places.values()}:
            return examples
        for folder in folders:
            message = "is learnt as regularisation pictures, which the trigger word does not call"
            self.problem(
                self.root / folder, message, "give it another name if it shows the subject"
            )
        return [replace(e, regularisation=places[e.image] in folders) for e in examples]

    def _example(self, file: Path, look: ImageStats) -> Example | None:
        if look.problem:
            self.problem(file, look.problem, look.advice)
        elif not look.digest:
            message, advice = _UNUSED_KINDS.get(file.suffix.lower(), (UNUSED, ""))
            self.problem(file, message, advice)
        if not look.digest:
            return None
        repeats, folder_name = _repeats(file)
        text, fault = self.caption(file)
        caption = text or self._instead(file, folder_name, fault)
        if caption is None:
            return None
        mask = self._mask(file, look)
        return Example(file, caption, look.size, repeats, mask=mask, digest=look.digest)

    def caption(self, file: Path) -> tuple[str, Problem | None]:
        """Return (caption of a picture from its caption file or table, '' for none; the problem of
        that file). Problems are noted."""
        caption = self.captions.read(file)
        self.problems += caption.problems
        lines = caption.learnt
        if lines != [*caption.lines]:
            message = "has escapes such as \\( in its caption, which are learnt as the signs alone"
            self.problem(file, message, "a prompt that says \\( means the same")
        if caption.fault and caption.lines and caption.fault.message != EMPTY:
            self.problem(caption.fault.path, caption.fault.message)
        return self._joined(lines), caption.fault

    def _joined(self, lines: list[str]) -> str:
        if self.reading.lines == "joined":
            return " ".join(lines)
        return "\n".join(lines if self.reading.lines == "random" else lines[:1])

    def _instead(self, file: Path, folder_name: str, fault: Problem | None) -> str | None:
        """The caption of a picture that has none; None when it is not used."""
        missing, caption = self.reading.missing, None
        if missing in ("leave_out", "refuse"):
            self.bare.append(file)
            done = Message("left out")
        elif missing == "folder" and folder_name:
            caption = folder_name
            done = Message("captioned {caption!r} after its folder", caption=caption)
        elif missing == "file_name" and (named := _as_words(file.stem)):
            caption, done = named, Message("captioned {caption!r} after its name", caption=named)
        else:
            caption, done = "", Message("learnt by the trigger word alone, if any")
        if fault:
            message = Message("{why}; its picture is {done}", why=fault.message, done=done)
            self.problem(fault.path, message, ADVICE)
        else:
            self.problem(file, Message("has no caption; {done}", done=done), ADVICE)
        return caption

    def _mask(self, file: Path, look: ImageStats) -> Path | None:
        """The file that masks a picture, if there is one and it can be used."""
        mask = self.masks.get(keys_of(file)[0])
        if mask is None:
            return file if self.reading.alpha_masks and look.see_through else None
        mask_stats = read_image_stats(mask)
        if not mask_stats.digest:
            message = "{why}; {picture} is learnt without a mask"
            self.problem(mask, Message(message, why=mask_stats.problem, picture=file.name))
            return None
        shape = mask_stats.size[0] * look.size[1], mask_stats.size[1] * look.size[0]
        if abs(shape[0] - shape[1]) > 0.02 * max(shape):
            message = "has another shape than {picture}, which is learnt without a mask"
            advice = "save the mask in the picture's size"
            self.problem(mask, Message(message, picture=file.name), advice)
            return None
        return mask

    def _lonely(self, looks: Iterable[ImageStats]) -> None:
        """Captions and masks of pictures that are not there."""
        pictures = [
            file
            for file, look in zip(self.candidates, looks, strict=True)
            if look.digest or look.problem
        ]
        known = {key for picture in pictures for key in keys_of(picture)}
        for key, file in (*self.captions.texts.items(), *self.masks.items()):
            if key not in known and file.is_relative_to(self.root):
                self.problem(file, "has no picture of the same name beside it")


def black_masks(examples: Iterable[Example]) -> list[Problem]:
    """Pictures of which their mask leaves nothing to learn."""
    problems = []
    for example in examples:
        if example.mask is None:
            continue
        load = load_alpha if example.mask == example.image else load_mask
        try:
            brightest = load(example.mask).getextrema()[1]
        except BROKEN:
            continue  # reported where the mask is used
        if brightest == 0:
            problems.append(Problem(example.image, "is masked altogether: nothing of it is learnt"))
    return problems


def _nothing_usable(path: Path, files: list[Path], problems: list[Problem]) -> str:
    kinds = Counter(file.suffix.lower() or "no suffix" for file in files)
    counts = [f"{count} x {kind}" for kind, count in sorted(kinds.items())]
    first = next((p for p in problems if p.message != UNUSED), None)
    return Message(
        "no usable picture in {folder}: found {kinds}.{first} Put {formats} pictures there, each "
        "with a caption of the same name in a {suffix} file",
        folder=path,
        kinds=counts or ["no files"],
        first=Message(" {file} {problem}.", file=first.path.name, problem=first.message)
        if first
        else "",
        formats=FORMATS_TEXT,
        suffix=CAPTION_SUFFIXES[0],
    )
