"""Plan of a download: which files, from where, of which size, and what is claimed of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sdlora.assets.http_errors import Resource
from sdlora.settings.download import AssetKind


@dataclass(frozen=True)
class RemoteFile:
    """A file at an address. `path` is its place below the download's folder, or its name. An empty
    hash is not known. `size` is exact; None: not known."""

    url: str
    path: str
    resource: Resource
    size: int | None = None
    sha256: str = ""
    git_oid: str = ""  # git's hash of a small file of a repository

    @property
    def has_hash(self) -> bool:
        """True if the content can be verified."""
        return bool(self.sha256 or self.git_oid)


def _nothing(folder: Path) -> None:
    """Leave a folder as it is."""


@dataclass(frozen=True)
class DownloadPlan:
    """All that is decided before the first byte. `claims` is what the page of the model says of it,
    not verified. `folder`: name of a diffusers folder, which the files lie in; '': one file."""

    source: str
    kind: AssetKind
    files: tuple[RemoteFile, ...]
    claims: Mapping[str, Any] = field(default_factory=dict)
    folder: str = ""
    version: str = ""  # commit, or id of the version
    notes: tuple[str, ...] = ()
    finish: Callable[[Path], None] = _nothing  # done to a folder before it gets its name

    def with_file(self, file: RemoteFile) -> DownloadPlan:
        """Return the plan of one file, with that file known better."""
        return replace(self, files=(file,))

    @property
    def size(self) -> int | None:
        """Bytes of all files; None: not known."""
        sizes = [file.size for file in self.files]
        return None if None in sizes else sum(size or 0 for size in sizes)
