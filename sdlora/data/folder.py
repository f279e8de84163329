"""A picture folder: the examples in it, and every file that is not used as its owner meant.

Pictures lie in the folder or in folders of it, each with its caption in a `.txt` or `.caption` file
of the same name, else in a metadata.jsonl or metadata.csv. A folder named the way kohya's trainers
want it, `10_zibo robot`, repeats its pictures ten times, and `zibo robot` is the caption of those
that have none. `NAME-masklabel.png` is the mask of NAME.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from sdlora.data.captions import CAPTION_SUFFIXES, read_lines, said_lines
from sdlora.data.images import BROKEN, FORMATS_SAID, load_alpha, load_mask
from sdlora.data.looks import PICTURE_SUFFIXES, Look, look_at
from sdlora.data.metadata import TABLES, read_table
from sdlora.errors import DataError
from sdlora.events import Warned
from sdlora.messages import Message
from sdlora.settings import CaptionLines, MissingCaptions

MASK_MARK = "-masklabel"
_KOHYA_FOLDER = re.compile(r"(\d{1,3})_(.+)")
_NUMBER = re.compile(r"^\d+\s+|\s*\(?\d+\)?$")
ADVICE = "write one into a .txt file of its name beside it"


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
class Problem:
    """A file that is not used as its owner meant: the sentence is 'NAME WHAT', then the advice."""

    path: Path
    what: str
    advice: str = ""

    def warned(self) -> Warned:
        """The problem as a run says it."""
        return Warned(Message("{file} {fault}", file=self.path.name, fault=self.what), self.advice)


@dataclass(frozen=True)
class Reading:
    """How a folder is read. Files below `besides` belong to somebody else."""

    missing: MissingCaptions = "folder"
    lines: CaptionLines = "joined"
    masks: Path | None = None
    alpha_masks: bool = False
    besides: tuple[Path, ...] = ()


def grouped(problems: Iterable[Problem], most: int = 3) -> list[Warned]:
    """The problems as a run says them; one that many files have is said once."""
    alike: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        alike.setdefault((problem.what, problem.advice), []).append(problem)
    said: list[Warned] = []
    for (what, advice), some in alike.items():
        if len(some) <= most:
            said += [problem.warned() for problem in some]
        else:
            names = ", ".join(problem.path.name for problem in some[:most])
            template = "{count} files ({names} ...): each {fault}"
            message = Message(template, count=len(some), names=names, fault=what)
            said.append(Warned(message, advice))
    return said


def scan_folder(
    path: Path,
    reading: Reading = Reading(),  # noqa: B008
) -> tuple[list[Example], list[Problem]]:
    """The examples in the folder, in the order of their names, and what is wrong with the rest.

    Every picture is decoded to its end once, since only that finds a truncated one.
    DataError: there is no such folder, no usable picture in it, or captions that must not be
    missing are.
    """
    if not path.is_dir():
        raise DataError(f"there is no folder {path}; give a folder with pictures and captions")
    files, problems = _visible_files(path, reading.besides)
    scan = _Scan(path, files, reading, problems)
    examples = scan.examples()
    if not examples:
        raise DataError(_nothing_usable(path, files, scan.problems))
    return examples, sorted(scan.problems, key=lambda problem: problem.path)


def list_pictures(path: Path) -> list[Path]:
    """The files of a folder that look like pictures by their names, unopened."""
    return [
        file
        for file in _visible_files(path, ())[0]
        if file.suffix.lower() in PICTURE_SUFFIXES and MASK_MARK not in file.stem
    ]


def list_captions(path: Path) -> dict[Path, str]:
    """Those files and the caption of each, '' where there is none; nothing is said of problems."""
    files, _ = _visible_files(path, ())
    scan = _Scan(path, files, Reading(), [])
    return {file: scan.caption(file)[0] for file in list_pictures(path)}


def _visible_files(path: Path, besides: Sequence[Path]) -> tuple[list[Path], list[Problem]]:
    def hidden(file: Path) -> bool:
        return any(part.startswith((".", "__")) for part in file.relative_to(path).parts)

    def others(file: Path) -> bool:
        return any(file.is_relative_to(folder) for folder in besides)

    found = sorted(path.rglob("*"), key=Path.as_posix)  # the same on systems that ignore case
    kept = [file for file in found if not hidden(file) and not others(file)]
    lost = [f for f in kept if f.is_symlink() and not f.exists()]
    problems = [Problem(file, "is a link to a file that is not there") for file in lost]
    return [file for file in kept if file.is_file()], problems


def _is_caption(file: Path) -> bool:
    return file.suffix.lower() in CAPTION_SUFFIXES


def _key(file: Path, stem: str) -> tuple[Path, str]:
    """What a picture and its caption share, however a Mac or an archive wrote the letters."""
    return file.parent, unicodedata.normalize("NFC", stem)


def _as_words(stem: str) -> str:
    """'01_red_ball (2)' -> 'red ball'."""
    return _NUMBER.sub("", " ".join(re.split(r"[\s_]+", stem))).strip()


class _Scan:
    """One reading of one folder."""

    def __init__(
        self, root: Path, files: list[Path], reading: Reading, problems: list[Problem]
    ) -> None:
        self.root, self.reading, self.problems = root, reading, problems
        self.bare: list[Path] = []  # pictures left out for want of a caption
        tables = [file for file in files if file.name.lower() in TABLES]
        texts = [file for file in files if _is_caption(file) and file not in tables]
        masks = [file for file in files if file.stem.endswith(MASK_MARK)]
        apart = {*tables, *texts, *masks}
        self.files = [file for file in files if file not in apart]
        self.masks = {_key(f, f.stem.removesuffix(MASK_MARK)): f for f in masks}
        if reading.masks:
            for file in list_pictures(reading.masks):
                place = root / file.relative_to(reading.masks)
                self.masks[_key(place, file.stem)] = file
        self.texts: dict[tuple[Path, str], Path] = {}
        for file in sorted(texts, key=lambda f: CAPTION_SUFFIXES.index(f.suffix.lower())):
            first = self.texts.setdefault(_key(file, file.stem), file)
            if first != file:
                self.problem(file, f"is not read: {first.name} is")
        self.told: dict[Path, str] = {}
        for table in map(read_table, tables):
            self.told |= table.captions
            for problem in table.problems:
                self.problem(table.path, problem)

    def problem(self, file: Path, what: str, advice: str = "") -> None:
        self.problems.append(Problem(file, what, advice))

    def examples(self) -> list[Example]:
        """Every usable picture, and problems of all others."""
        with ThreadPoolExecutor() as threads:  # decoding lets go of Python's lock
            looks = list(threads.map(look_at, self.files))
        found = [self._example(*row) for row in zip(self.files, looks, strict=True)]
        self._lonely()
        if self.bare and self.reading.missing == "refuse":
            names = ", ".join(file.name for file in self.bare[:5])
            raise DataError(
                f"{len(self.bare)} pictures have no caption, such as {names}; {ADVICE}, or choose "
                "with missing_captions what is read instead"
            )
        return [example for example in found if example]

    def _example(self, file: Path, look: Look) -> Example | None:
        if look.what:
            self.problem(file, look.what, look.advice)
        if not look.digest:
            return None
        kohya = _KOHYA_FOLDER.fullmatch(file.parent.name)
        repeats, words = (max(1, int(kohya[1])), kohya[2]) if kohya else (1, "")
        given, fault = self.caption(file)
        caption = given or self._instead(file, words, fault)
        if caption is None:
            return None
        mask = self._mask(file, look)
        return Example(file, caption, look.size, repeats, mask=mask, digest=look.digest)

    def caption(self, file: Path) -> tuple[str, Problem | None]:
        """What a caption file or a table says; '' for nothing, and what is wrong with the file."""
        keys = _key(file, file.stem), _key(file, file.name)  # cat.txt, or cat.png.txt
        beside = next((self.texts[key] for key in keys if key in self.texts), None)
        lines: list[str] = []
        fault = Problem(beside, "is empty") if beside else None
        if beside is not None:
            try:
                lines = read_lines(beside)
            except ValueError as error:
                fault = Problem(beside, str(error))
        told = said_lines(self.told.get(file, ""))
        if beside is not None and told and told != lines:
            which = beside.name if lines else "that of its folder's table"
            self.problem(file, f"has two captions; {which} is read")
        return self._joined(lines or told), fault

    def _joined(self, lines: list[str]) -> str:
        if self.reading.lines == "joined":
            return " ".join(lines)
        return "\n".join(lines if self.reading.lines == "random" else lines[:1])

    def _instead(self, file: Path, words: str, fault: Problem | None) -> str | None:
        """The caption of a picture that has none; None when it is not used."""
        missing, caption = self.reading.missing, None
        if missing in ("leave_out", "refuse"):
            self.bare.append(file)
            said = "left out"
        elif missing == "folder" and words:
            caption, said = words, f"captioned {words!r} after its folder"
        elif missing == "file_name" and (named := _as_words(file.stem)):
            caption, said = named, f"captioned {named!r} after its name"
        else:
            caption, said = "", "learnt by the trigger word alone, if any"
        if fault:
            self.problem(fault.path, f"{fault.what}; {file.name} is {said}", ADVICE)
        else:
            self.problem(file, f"has no caption; {said}", ADVICE)
        return caption

    def _mask(self, file: Path, look: Look) -> Path | None:
        """The file that masks a picture, if there is one and it can be used."""
        mask = self.masks.get(_key(file, file.stem))
        if mask is None:
            return file if self.reading.alpha_masks and look.see_through else None
        theirs = look_at(mask)
        if not theirs.digest:
            self.problem(mask, f"{theirs.what}; {file.name} is learnt without a mask")
            return None
        shape = theirs.size[0] * look.size[1], theirs.size[1] * look.size[0]
        if abs(shape[0] - shape[1]) > 0.02 * max(shape):
            what = f"has another shape than {file.name}, which is learnt without a mask"
            self.problem(mask, what, "save the mask in the picture's size")
            return None
        return mask

    def _lonely(self) -> None:
        """Captions and masks of pictures that are not there."""
        there = {_key(f, stem) for f in self.files for stem in (f.stem, f.name)}
        for (folder, stem), file in (*self.texts.items(), *self.masks.items()):
            if (folder, stem) not in there and file.is_relative_to(self.root):
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
            continue  # said where it is used
        if brightest == 0:
            problems.append(Problem(example.image, "is masked altogether: nothing of it is learnt"))
    return problems


def _nothing_usable(path: Path, files: list[Path], problems: list[Problem]) -> str:
    kinds = Counter(file.suffix.lower() or "no suffix" for file in files)
    found = ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items())) or "no files"
    first = f" {problems[0].path.name} {problems[0].what}." if problems else ""
    return (
        f"no usable picture in {path}: found {found}.{first} Put {FORMATS_SAID} pictures there, "
        f"each with a caption of the same name in a {CAPTION_SUFFIXES[0]} file"
    )
