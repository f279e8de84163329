"""Paths in a run's events that stay valid after the workspace was moved.

A path in the same workspace is written with a second one, relative to the run's folder. Lines of
earlier versions have only the absolute path: a file that does not exist any more is looked for at
the same place of this workspace.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePath
from typing import Any

KEY = "relative_path"
_IN_WORKSPACE = ("runs", "outputs", "loras", "datasets", "jobs")


def workspace_of(folder: Path) -> Path | None:
    """The workspace that a run's folder lies in; None: none."""
    parents = (above for above in folder.parents if (above / "outputs").is_dir())
    return next((above for above in parents if (above / "runs").is_dir()), None)


def relative_to_run(path: str, folder: Path, workspace: Path | None) -> dict[str, str]:
    """Return the relative path for an event line, for a path in the run's workspace; {} for any
    other."""
    if not path or not os.path.isabs(path):
        return {}
    if not any(Path(path).is_relative_to(root) for root in (folder, workspace) if root):
        return {}
    return {KEY: PurePath(os.path.relpath(path, folder)).as_posix()}


def with_present_path(row: dict[str, Any], folder: Path, workspace: Path | None) -> dict[str, Any]:
    """Return a parsed line with the path where the file is now."""
    path, relative = row.get("path"), row.get(KEY)
    if isinstance(relative, str):
        return {**row, "path": os.path.normpath(folder / relative)}
    if isinstance(path, str) and path and workspace:
        return {**row, "path": _path_in_workspace(path, workspace)}
    return row


def _path_in_workspace(path: str, workspace: Path) -> str:
    parts = PurePath(path).parts
    if not os.path.isabs(path) or "\0" in path or os.path.exists(path):
        return path
    tails = (parts[at:] for at, part in enumerate(parts) if part in _IN_WORKSPACE)
    places = (workspace.joinpath(*tail) for tail in tails)
    return next((str(place) for place in places if os.path.exists(place)), path)
