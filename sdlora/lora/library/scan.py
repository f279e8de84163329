"""Scan of folders for LoRA files and their sidecars: files are listed, never opened; no torch."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from sdlora.lora.format.file_types import PICKLES, READABLE
from sdlora.messages import Message

# A1111 keeps its user's notes in name.json, the Civitai extensions the model's page in the other
SIDECARS = (".json", ".civitai.info")
PREVIEWS = tuple(
    before + ending for ending in (".png", ".jpg", ".jpeg", ".webp") for before in (".preview", "")
)
Entry = os.DirEntry[str]
MAX_FOLDERS = 20_000  # in all roots together; a link can lead to a whole disk


class ScannedFile(NamedTuple):
    """A LoRA file as listed. A stamp is `size mtime_ns`: the same stamp, the same content."""

    path: str
    name: str  # its stem
    folder: str  # below the root, with '/'; empty in the root itself
    stamp: str
    sidecars: tuple[str, ...]  # the path of each of SIDECARS; empty: it does not exist
    beside: str  # the stamps of the sidecars
    preview: str  # the path of a picture of the same name; empty: none


def walk(roots: Iterable[Path]) -> tuple[list[ScannedFile], list[Message]]:
    """Return (LoRA files of each root, breadth first; messages about folders not listed).

    A folder that several links lead to is listed once, so that links may go in circles. A link to
    a folder that contains a root is not followed, and a root that is a whole disk is not listed.
    """
    scanned: list[ScannedFile] = []
    problems: list[Message] = []
    visited: set[str] = set()
    roots = list(roots)
    root_parents = {
        os.path.realpath(parent) for root in roots for parent in root.absolute().parents
    }
    disks = {Path(parent).anchor for parent in root_parents}
    root_parents -= set(map(os.path.realpath, roots))
    for root in roots:
        waiting = deque([(str(root), "")])
        while waiting:
            path, below = waiting.popleft()
            if (real := os.path.realpath(path)) in visited:
                continue
            if below and real in root_parents:
                problems.append(_link_above_root(path, real))
                continue
            if not below and real in disks:
                problems.append(_whole_disk(path))
                continue
            if len(visited) == MAX_FOLDERS:
                return scanned, [*problems, _too_many_folders(path)]
            visited.add(real)
            try:
                files, folders = _list_folder(path)
            except OSError as error:
                template = "the folder {folder} cannot be read ({why})"
                problems.append(Message(template, folder=Path(path), why=error.strerror))
                continue
            scanned.extend(_scan_loras(files, printable_name(below)))
            waiting.extend((entry.path, f"{below}/{entry.name}".strip("/")) for entry in folders)
    return scanned, problems


def _link_above_root(link: str, folder: str) -> Message:
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
        folder=printable_name(folder),
    )


def _too_many_folders(folder: str) -> Message:
    return Message(
        "only the first {limit} folders are searched for LoRAs; {folder} and those after it are "
        "not listed; take links to folders without LoRAs away",
        limit=MAX_FOLDERS,
        folder=Path(folder),
    )


def _list_folder(path: str) -> tuple[list[Entry], list[Entry]]:
    """Return (files, folders) of a folder, without the hidden ones."""
    files: list[Entry] = []
    folders: list[Entry] = []
    with os.scandir(path) as listing:
        for entry in listing:
            if entry.name[0] == ".":
                continue
            try:
                if entry.is_dir():
                    folders.append(entry)
                # a dead link gets a message later; a pipe is left out, as reading it never ends
                elif entry.is_file() or not os.path.exists(entry.path):
                    files.append(entry)
            except OSError:  # a link to itself
                files.append(entry)
    return files, sorted(folders, key=lambda entry: (entry.name.lower(), entry.name))


def _scan_loras(files: list[Entry], folder: str) -> Iterator[ScannedFile]:
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
                yield _scanned_file(entries[name], stem, folder, by_name)


def _scanned_file(entry: Entry, stem: str, folder: str, by_name: dict[str, Entry]) -> ScannedFile:
    sidecars = [by_name.get(stem + ending) for ending in SIDECARS]
    return ScannedFile(
        entry.path,
        printable_name(entry.name[: entry.name.rindex(".")]),
        folder,
        _stamp(entry),
        tuple([sidecar.path if sidecar else "" for sidecar in sidecars]),
        ",".join([_stamp(sidecar) if sidecar else "" for sidecar in sidecars]),
        _preview(stem, by_name),
    )


def _preview(stem: str, by_name: dict[str, Entry]) -> str:
    for ending in PREVIEWS:
        if picture := by_name.get(stem + ending):
            return picture.path
    return ""


def printable_name(name: str) -> str:
    """A file's name as valid text: each byte that is not UTF-8 becomes a question mark."""
    return name if name.isascii() else name.encode("utf-8", "replace").decode("utf-8")


def _stamp(entry: Entry) -> str:
    try:
        stat = entry.stat()
    except OSError:  # a link to nowhere, or gone since it was listed
        return "0 0"
    return f"{stat.st_size} {stat.st_mtime_ns}"
