"""Files of a picture folder and of the folders in it, links followed; those that systems and file
servers put there unasked are left out."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sdlora.data.problems import Problem
from sdlora.messages import Message

MAX_FILES = 200_000
# Folders of file servers and systems: small copies of pictures, and what was deleted.
_SERVER_FOLDERS = frozenset((
    "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "$recycle.bin",
    "system volume information", "lost+found", "thumbnails", "_thumbnails",
))  # fmt: skip
_SERVER_FILES = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"))
_UNASKED = (".", "__")  # how the names of hidden files and of what archives add begin
Identity = tuple[int, int]  # device and inode: one folder, by whichever way it is reached


@dataclass
class Listing:
    """Files in the order of their names, and what is wrong with links and folders."""

    files: list[Path] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def list_files(root: Path, excluded: Sequence[Path] = ()) -> Listing:
    """Every visible file below `root`, but not below the `excluded` folders. A folder that several
    links lead to is read once."""
    return _Walk(root, excluded).listing()


def is_system_file(name: str) -> bool:
    """Return True for a hidden file or one that a system adds by itself."""
    return name.startswith(_UNASKED) or name.lower() in _SERVER_FILES


def is_server_folder(name: str) -> bool:
    """Return True for a folder in which a file server has thumbnails or deleted files."""
    return name.lower() in _SERVER_FOLDERS


class _Walk:
    def __init__(self, root: Path, excluded: Sequence[Path]) -> None:
        self.root, self.excluded = root, tuple(excluded)
        self.result = Listing()
        self.seen: set[Identity] = set()
        self.links: deque[Path] = deque()

    def listing(self) -> Listing:
        self._folder(self.root)
        while self.links:  # after the folders themselves, so that these keep their places
            link = self.links.popleft()
            try:
                self._link(link)
            except OSError as error:
                self._problem(link, Message("cannot be read: {why}", why=error.strerror))
        self.result.files.sort(key=Path.as_posix)  # the same on systems that ignore case
        return self.result

    def _problem(self, path: Path, message: str, advice: str = "") -> None:
        self.result.problems.append(Problem(path, message, advice))

    def _folder(self, folder: Path) -> None:
        pending = [folder]
        while pending:
            current = pending.pop()
            try:
                self.seen.add(_identity(current))
                entries = sorted(os.scandir(current), key=lambda entry: entry.name)
            except OSError as error:
                self._problem(current, Message("cannot be read: {why}", why=error.strerror))
                continue
            folders = (self._entry(entry) for entry in entries if not is_system_file(entry.name))
            pending += [path for path in folders if path]
            if len(self.result.files) > MAX_FILES:
                message = Message(
                    "holds more than {count} files; the rest is left out", count=MAX_FILES
                )
                self._problem(folder, message, "give the folder that the pictures are in")
                return

    def _entry(self, entry: os.DirEntry[str]) -> Path | None:
        """Note a file or a link; a folder to be read is returned."""
        path = Path(entry.path)
        if any(path.is_relative_to(folder) for folder in self.excluded):
            return None
        try:
            is_link, is_folder = entry.is_symlink(), entry.is_dir()
            if not is_folder:
                if entry.is_file():
                    self.result.files.append(path)
                elif is_link:
                    self._problem(path, "is a link to a file that is not there")
                return None
        except OSError as error:  # such as a link that leads to itself
            self._problem(path, Message("cannot be read: {why}", why=error.strerror))
            return None
        if is_server_folder(entry.name):
            message = "is left out: it holds small copies or deleted files of a file server"
            self._problem(path, message)
            return None
        if is_link:
            self.links.append(path)
            return None
        return path if _identity(path) not in self.seen else None

    def _link(self, link: Path) -> None:
        target = link.resolve()
        if self.root.resolve().is_relative_to(target) or target == Path.home().resolve():
            message = (
                "is a link to a folder that this one lies in, or to a home; it is not followed"
            )
            self._problem(link, message, "link to the folder that the pictures are in")
        elif _identity(target) in self.seen:
            self._problem(link, "is a link to a folder that is read already")
        else:
            self._folder(link)


def _identity(folder: Path) -> Identity:
    about = folder.stat()
    return about.st_dev, about.st_ino
