"""Walk of folders that a user names: each once, links followed where that is safe; no torch."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from sdlora.messages import Message

MAX_FOLDERS = 20_000  # in all roots together; a link can lead to a whole disk


class SubFolder(NamedTuple):
    """A folder that a walk comes to: its path, and its path below the root, with '/'."""

    path: str
    below: str  # empty in the root itself


Visit = Callable[[SubFolder], Iterable[SubFolder]]  # lists one folder; returns those to go on to


def printable_name(name: str) -> str:
    """A file's name as valid text: each byte that is not UTF-8 becomes a question mark."""
    return name if name.isascii() else name.encode("utf-8", "replace").decode("utf-8")


def walk_folders(roots: Iterable[Path], visit: Visit, place: str, things: str) -> list[Message]:
    """Visit the folders of each root, breadth first; return messages about those not visited, in
    which a root is called `place` and what it holds `things`.

    A folder that several links lead to is visited once, so that links may go in circles. A link to
    a folder that contains a root is not followed, and a root that is a whole disk is not visited.
    """
    problems: list[Message] = []
    visited: set[str] = set()
    roots = list(roots)
    above = {os.path.realpath(parent) for root in roots for parent in root.absolute().parents}
    disks = {Path(parent).anchor for parent in above}
    above -= set(map(os.path.realpath, roots))
    terms = {"place": place, "things": things}
    for root in roots:
        waiting = deque([SubFolder(str(root), "")])
        while waiting:
            folder = waiting.popleft()
            if (real := os.path.realpath(folder.path)) in visited:
                continue
            if folder.below and real in above:
                problems.append(_link_above_root(folder.path, real, terms))
                continue
            if not folder.below and real in disks:
                problems.append(_whole_disk(folder.path, terms))
                continue
            if len(visited) == MAX_FOLDERS:
                return [*problems, _too_many_folders(folder.path, terms)]
            visited.add(real)
            try:
                waiting.extend(visit(folder))
            except OSError as error:
                template = "the folder {folder} cannot be read ({why})"
                path = Path(folder.path)
                problems.append(Message(template, folder=path, why=error.strerror))
    return problems


def _link_above_root(link: str, folder: str, terms: dict[str, str]) -> Message:
    return Message(
        "the link {link} is not followed: it leads to {folder}, in which the {place} itself lies; "
        "link to a folder that holds {things} alone",
        link=Path(link), folder=Path(folder), **terms,
    )  # fmt: skip


def _whole_disk(folder: str, terms: dict[str, str]) -> Message:
    return Message(
        "the {place} {folder} is not searched: it is the whole disk; name a folder that holds "
        "{things}",
        folder=printable_name(folder), **terms,
    )  # fmt: skip


def _too_many_folders(folder: str, terms: dict[str, str]) -> Message:
    return Message(
        "only the first {limit} folders are searched for {things}; {folder} and those after it are "
        "not listed; take links to folders without {things} away",
        limit=MAX_FOLDERS, folder=Path(folder), **terms,
    )  # fmt: skip
