"""Scan of folders for LoRA files and their sidecars: files are listed, never opened; no torch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from sdlora.folder_walk import SubFolder, printable_name, walk_folders
from sdlora.lora.format.file_types import PICKLES, READABLE
from sdlora.messages import Message

# A1111 keeps its user's notes in name.json, the Civitai extensions the model's page in the other
SIDECARS = (".json", ".civitai.info")
PREVIEWS = tuple(
    before + ending for ending in (".png", ".jpg", ".jpeg", ".webp") for before in (".preview", "")
)
Entry = os.DirEntry[str]


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
    """Return (LoRA files of each root, breadth first; messages about folders not listed), see
    `walk_folders`."""
    scanned: list[ScannedFile] = []

    def visit(folder: SubFolder) -> list[SubFolder]:
        files, folders = _list_folder(folder.path)
        scanned.extend(_scan_loras(files, printable_name(folder.below)))
        return [SubFolder(e.path, f"{folder.below}/{e.name}".strip("/")) for e in folders]

    problems = walk_folders(roots, visit, "LoRA folder", "LoRAs")
    return scanned, problems


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


def _stamp(entry: Entry) -> str:
    try:
        stat = entry.stat()
    except OSError:  # a link to nowhere, or gone since it was listed
        return "0 0"
    return f"{stat.st_size} {stat.st_mtime_ns}"
