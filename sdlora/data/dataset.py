"""Dataset of a training: the folders and archives that its settings name, together.

`gather` is what a training starts from and what `dataset check` shows: the same list, made here.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sdlora.data.caption_augmentation import WordLists, find_wildcard_lists
from sdlora.data.captions import common_trigger, contains_trigger, with_trigger
from sdlora.data.folder import Example, FolderReading, Problem, black_masks, scan_folder
from sdlora.data.image_stats import PICTURE_SUFFIXES, read_image_stats
from sdlora.data.near_duplicates import BLURRED_PX, near_duplicates
from sdlora.data.zips import unpack
from sdlora.errors import DataError
from sdlora.messages import Message, Setting
from sdlora.prompt.wildcard_lists import WildcardFolder
from sdlora.settings.train import TrainSettings
from sdlora.workspace import Workspace

_TIMES = re.compile(r"(\d{1,3})\*(.+)")
_PROMPT_LANGUAGE = re.compile(
    r"<[A-Za-z]\w*:[^<>\n]+>|\([^()\n]*:[0-9.]+\)|\[[^\[\]\n]*:[0-9.]+\]|(?<!\w)BREAK(?!\w)"
)
_CHOICE = re.compile(r"\{[^{}|\n]*\|[^{}\n]*\}")


@dataclass(frozen=True)
class Dataset:
    """Examples in their order; the trigger words of the LoRA ('' for none), which are in every
    caption but those of regularisation pictures; all problems; and the lists that wildcards in
    captions are drawn from."""

    examples: list[Example]
    trigger: str
    problems: list[Problem]
    lists: WordLists


@dataclass(frozen=True)
class _DatasetSource:
    """A folder, and how often and as what its pictures count."""

    folder: Path
    repeats: int = 1
    regularisation: bool = False
    problems: tuple[Problem, ...] = ()


def read_dataset(settings: TrainSettings, workspace: Workspace) -> Dataset:
    """Every example of every source. DataError: a source is not there, or nothing can be used."""
    own = [settings.data, *settings.more_data]
    sources = [_source(name, workspace, False) for name in own]
    sources += [_source(name, workspace, True) for name in settings.regularisation]
    masks = _find_source(settings.masks, workspace) if settings.masks else None
    reading = FolderReading(
        settings.missing_captions, settings.caption_lines, masks, settings.transparency == "mask"
    )
    examples: list[Example] = []
    problems: list[Problem] = []
    for source in sources:
        scanned, scan_problems = _scan(source, sources, reading)
        examples += scanned
        problems += [*source.problems, *scan_problems]
    if not examples:
        raise DataError(
            "nothing is left to learn from: every folder that was given is repeated 0 times; "
            "give one without 0* before it"
        )
    ours = [example for example in examples if not example.regularisation]
    captions = (e.caption.partition("\n")[0] for e in ours if e.caption)
    trigger = settings.trigger_word or common_trigger(captions)
    problems += [
        *_missing_trigger_problems(ours, trigger),
        *duplicate_problems(ours),
        *blur_problems(examples),
    ]
    problems += black_masks(examples)
    lists = find_wildcard_lists((e.caption for e in examples), WildcardFolder(workspace.wildcards))
    problems += wildcard_problems(
        examples, lists, settings.caption_wildcards
    ) + prompt_syntax_problems(examples)
    drawn = lists if settings.caption_wildcards else {}
    return Dataset([_add_trigger(e, trigger) for e in examples], trigger, problems, drawn)


def wildcard_problems(
    examples: Iterable[Example], lists: WordLists, expanded: bool
) -> list[Problem]:
    """Return problems of captions with wildcards that are not expanded: their list does not exist,
    or `expanded` (the setting) is off."""
    advice = Message("{setting} draws one each time", setting=Setting("caption_wildcards"))
    problems = []
    for example in examples:
        named = find_wildcard_lists([example.caption], lists.get)
        lost = sorted(name for name, lines in named.items() if not lines)
        if expanded and lost:
            template = "names {lists} in its caption, and there is no such list, or it is empty"
            message = Message(template, lists=[f"__{name}__" for name in lost])
            problems.append(Problem(example.image, message, "it is learnt as it stands"))
        elif not expanded and (any(named.values()) or _CHOICE.search(example.caption)):
            message = Message("has wildcards in its caption, which are learnt as they stand")
            problems.append(Problem(example.image, message, advice))
    return problems


def _missing_trigger_problems(examples: Iterable[Example], trigger: str) -> list[Problem]:
    """Return problems of captions that do not hold the trigger."""
    message = Message(
        "does not say {trigger!r} in its caption; it is put before it", trigger=trigger
    )
    spoken = (e for e in examples if e.caption)
    silent = (e for e in spoken if not all(contains_trigger(line, trigger) for line in _lines(e)))
    return [Problem(example.image, message) for example in silent]


def prompt_syntax_problems(examples: Iterable[Example]) -> list[Problem]:
    """Return problems of captions with prompt syntax, which a training reads as text."""
    message = "has prompt language in its caption, such as a LoRA tag, a weight or BREAK"
    advice = "it is learnt as the text that stands there; take it out unless that is meant"
    marked = (e for e in examples if _PROMPT_LANGUAGE.search(e.caption))
    return [Problem(example.image, message, advice) for example in marked]


def _lines(example: Example) -> list[str]:
    return example.caption.split("\n")


def _add_trigger(example: Example, trigger: str) -> Example:
    """Return the example with the trigger in every line of its caption; a regularisation picture
    stays without it."""
    if example.regularisation:
        return example
    lines = (with_trigger(line, trigger) for line in _lines(example))
    return replace(example, caption="\n".join(lines))


def _source(name: str, workspace: Workspace, regularisation: bool) -> _DatasetSource:
    """Return the folder that a name, a path, or either after `3*` (repeats), means."""
    times = _TIMES.fullmatch(name)
    repeats, place = (int(times[1]), times[2]) if times else (1, name)
    path = _find_source(place.strip(), workspace)
    if path.is_dir():
        return _DatasetSource(path, repeats, regularisation)
    if path.suffix.lower() != ".zip" and not zipfile.is_zipfile(path):
        kind = "a single picture" if path.suffix.lower() in PICTURE_SUFFIXES else "a single file"
        raise DataError(
            "{file} is {kind}, not a folder or a zip of pictures; give the folder it lies in, "
            "{folder}, or put it into a folder of its own",
            file=path,
            kind=kind,
            folder=path.absolute().parent,
        )
    folder, problems = unpack(path, workspace.cache / "unpacked")
    return _DatasetSource(folder, repeats, regularisation, tuple(problems))


def _find_source(name: str, workspace: Workspace) -> Path:
    path = Path(name).expanduser()
    named = path if path.exists() else workspace.dataset_folders().get(name, path)
    if not named.exists():
        sets = ", ".join(sorted(workspace.dataset_folders()))
        raise DataError(
            "there is no folder {name}, nor a zip; give one with pictures and captions, or one "
            "of the sets {sets}",
            name=name,
            sets=sets,
        )
    return named


def _scan(
    source: _DatasetSource, sources: list[_DatasetSource], reading: FolderReading
) -> tuple[list[Example], list[Problem]]:
    """Return a source's own examples: not those of another source or of the masks inside its
    folder."""
    if source.repeats == 0:
        message = "is left out, since it is to be repeated 0 times"
        return [], [Problem(source.folder, message, "give it without 0* if it is to be learnt")]
    others = {other.folder for other in sources} | {reading.masks}
    inside = (o for o in others if o and o != source.folder and o.is_relative_to(source.folder))
    examples, problems = scan_folder(source.folder, replace(reading, besides=tuple(inside)))
    counted = (
        replace(
            example,
            repeats=example.repeats * source.repeats,
            regularisation=source.regularisation or example.regularisation,
        )
        for example in examples
    )
    return [*counted], problems


def duplicate_problems(examples: list[Example]) -> list[Problem]:
    """Return problems of pictures that are the same file as another, or look the same."""
    first: dict[str, Example] = {}
    problems = []
    for example in examples:
        other = first.setdefault(example.digest, example)
        if other is not example:
            message = Message(
                "is the same file as {file}; it counts twice", file=_name_beside(example, other)
            )
            problems.append(Problem(example.image, message, "leave one out, or mean it"))
    different = list(first.values())
    alike = near_duplicates([read_image_stats(example.image).print for example in different])
    for place, (before, mirrored) in alike.items():
        example, other = different[place], different[before]
        template = "looks the same as {file}, mirrored" if mirrored else "looks the same as {file}"
        message = Message(template, file=_name_beside(example, other))
        problems.append(Problem(example.image, message, "leave one out, or mean it"))
    return problems


def _name_beside(example: Example, other: Example) -> str:
    """Return the name of another picture, with its folder where the folders differ."""
    same = example.image.parent == other.image.parent
    return other.image.name if same else f"{other.image.parent.name}/{other.image.name}"


def blur_problems(examples: Iterable[Example]) -> list[Problem]:
    """Return problems of pictures without a sharp edge anywhere."""
    widths: Mapping[Path, float] = {e.image: read_image_stats(e.image).edges for e in examples}
    return [
        Problem(
            image,
            Message("looks blurred: its sharpest edges are {width:.0f} pixels wide", width=width),
            "use a sharper picture, unless the blur is what you want to teach",
        )
        for image, width in widths.items()
        if width > BLURRED_PX
    ]
