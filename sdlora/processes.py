"""Child processes that outlive their parent, the same way on Linux, macOS and Windows."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent


def start_detached(
    arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> int:
    """Run `python ARGUMENTS` in a session of its own, both outputs appended to `log`; returns its pid.

    Output goes to a file, not a pipe: a pipe nobody reads stops the writer. What the page keeps from
    importing it keeps from its children too only where it says so in `environment`.
    """
    own_session: dict[str, object] = {"start_new_session": True}
    if sys.platform == "win32":
        flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
        own_session = {"creationflags": flags}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1", **(environment or {})},
            **own_session,  # type: ignore[call-overload]
        )
    return int(process.pid)


def identity(pid: int) -> str | None:
    """'pid:start time' of a living process, so that a pid used again is not taken for it."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return f"{pid}:{process.create_time():.2f}"
    except psutil.Error:
        return None


def alive(process_identity: str) -> bool:
    """True while that very process lives."""
    pid = process_identity.partition(":")[0]
    return pid.isdigit() and identity(int(pid)) == process_identity


def end(process_identity: str, wait_s: float = 10.0) -> None:
    """Ask the process and its children to end; after `wait_s` make them."""
    if not alive(process_identity):
        return
    parent = psutil.Process(int(process_identity.partition(":")[0]))
    try:
        tree = [*parent.children(recursive=True), parent]
    except psutil.Error:
        return
    for process in tree:
        _quietly(process.terminate)
    _, left = psutil.wait_procs(tree, timeout=wait_s)
    for process in left:
        _quietly(process.kill)


def _quietly(act) -> None:  # type: ignore[no-untyped-def]
    try:
        act()
    except psutil.Error:
        return
