"""LoRA files in folders, with what lies beside them: listed, never opened; no torch."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from sdlora.lora.format.file_types import PICKLES, READABLE
from sdlora.messages import Message

# A1111 keeps what its user wrote in name.json, the Civitai extensions their download's page beside
SIDECARS = (".json", ".civitai.info")
PREVIEWS = tuple(
    before + ending for ending in (".png", ".jpg", ".jpeg", ".webp") for before in (".preview", "")
)
Entry = os.DirEntry[str]
MAX_FOLDERS = 20_000  # in all roots together; a link can lead to a whole disk


class ScannedFile(NamedTuple):
    """A file as it is listed. A stamp is `size mtime_ns`: the same stamp, the same content."""

    path: str
    name: str  # its stem
    folder: str  # below the root, with '/'; empty in the root itself
    stamp: str
    sidecars: tuple[str, ...]  # the path of each of SIDECARS; empty: not there
    beside: str  # the stamps of those that are
    preview: str  # the path of a picture of its name; empty: none


def walk(roots: Iterable[Path]) -> tuple[list[ScannedFile], list[Message]]:
    """The files of each root, those nearest to it first; and what cannot be listed, in words.

    A folder that several ways lead to is listed once, so that links may go in circles. A link to a
    folder that a root lies in is not followed, and the disk that a root lies on is none itself: it
    would be listed as a whole.
    """
    found: list[ScannedFile] = []
    problems: list[Message] = []
    visited: set[str] = set()
    roots = list(roots)
    above = {os.path.realpath(parent) for root in roots for parent in root.absolute().parents}
    disks = {Path(parent).anchor for parent in above}
    above -= set(map(os.path.realpath, roots))
    for root in roots:
        waiting = deque([(str(root), "")])
        while waiting:
            path, below = waiting.popleft()
            if (real := os.path.realpath(path)) in visited:
                continue
            if below and real in above:
                problems.append(_leads_above(path, real))
                continue
            if not below and real in disks:
                problems.append(_whole_disk(path))
                continue
            if len(visited) == MAX_FOLDERS:
                return found, [*problems, _too_many(path)]
            visited.add(real)
            try:
                files, folders = _listed(path)
            except OSError as error:
                template = "the folder {folder} cannot be read ({why})"
                problems.append(Message(template, folder=Path(path), why=error.strerror))
                continue
            found.extend(_loras(files, shown(below)))
            waiting.extend((one.path, f"{below}/{one.name}".strip("/")) for one in folders)
    return found, problems


def _leads_above(link: str, folder: str) -> Message:
    return Message(
        "the link {link} is not followed: it leads to {folder}, in which the LoRA folder itself "
        "lies; link to a folder that holds LoRAs alone",
        link=Path(link),
        folder=Path(folder),
    )


def _whole_disk(folder: str) -> Message:
    return Message(
        "the LoRA folder {folder} is not searched: it is the whole disk; name a folder that holds "
        "LoRAs",
        folder=shown(folder),
    )


def _too_many(folder: str) -> Message:
    return Message(
        "only the first {most} folders are searched for LoRAs; {folder} and those after it are not "
        "listed; take links to folders without LoRAs away",
        most=MAX_FOLDERS,
        folder=Path(folder),
    )


def _listed(path: str) -> tuple[list[Entry], list[Entry]]:
    """(files, folders) in a folder, without the hidden ones."""
    files: list[Entry] = []
    folders: list[Entry] = []
    with os.scandir(path) as listing:
        for entry in listing:
            if entry.name[0] == ".":
                continue
            try:
                if entry.is_dir():
                    folders.append(entry)
                # of a dead link there is something to say, but a pipe would never end
                elif entry.is_file() or not os.path.exists(entry.path):
                    files.append(entry)
            except OSError:  # a link to itself
                files.append(entry)
    return files, sorted(folders, key=lambda entry: (entry.name.lower(), entry.name))


def _loras(files: list[Entry], folder: str) -> Iterator[ScannedFile]:
    # some systems list a name twice
    entries = {entry.name: entry for entry in files}
    named = sorted((name.lower(), name) for name in entries)
    by_name = {lowered: entries[name] for lowered, name in named}
    stems: set[str] = set()
    for endings in (READABLE, PICKLES):
        for lowered, name in named:
            stem, dot, ending = lowered.rpartition(".")
            if dot + ending in endings and not (stem in stems and endings is PICKLES):
                stems.add(stem)
                yield _found(entries[name], stem, folder, by_name)


def _found(entry: Entry, stem: str, folder: str, by_name: dict[str, Entry]) -> ScannedFile:
    sidecars = [by_name.get(stem + ending) for ending in SIDECARS]
    return ScannedFile(
        entry.path,
        shown(entry.name[: entry.name.rindex(".")]),
        folder,
        _stamp(entry),
        tuple([one.path if one else "" for one in sidecars]),
        ",".join([_stamp(one) if one else "" for one in sidecars]),
        _preview(stem, by_name),
    )


def _preview(stem: str, by_name: dict[str, Entry]) -> str:
    for ending in PREVIEWS:
        if picture := by_name.get(stem + ending):
            return picture.path
    return ""


def shown(name: str) -> str:
    """A file's name as text; what of it is none becomes a question mark."""
    return name if name.isascii() else name.encode("utf-8", "replace").decode("utf-8")


def _stamp(entry: Entry) -> str:
    try:
        stat = entry.stat()
    except OSError:  # a link to nowhere, or gone since it was listed
        return "0 0"
    return f"{stat.st_size} {stat.st_mtime_ns}"
