"""Child processes that outlive their parent, the same way on Linux, macOS and Windows."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parent.parent.parent
NICE = 10


_HELD = "SDLORA_HELD"  # in the environment of a process that waits for `release`


def start_detached(
    arguments: Sequence[str],
    log: Path,
    environment: Mapping[str, str] | None = None,
    held: bool = False,
) -> subprocess.Popen[bytes]:
    """Run `python ARGUMENTS` in a session of its own, so that it outlives us and our terminal.

    Both outputs are appended to `log`, not sent to a pipe: a pipe nobody reads stops the writer.
    `held`: it does nothing before `release`, and ends where we end before that.
    """
    own_session: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
        own_session = {"creationflags": flags}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process: subprocess.Popen[bytes] = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE if held else subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=ROOT,
            env={
                **{name: value for name, value in os.environ.items() if name != _HELD},
                **({_HELD: "1"} if held else {}),
                "PYTHONUNBUFFERED": "1",
                "PYTHONUTF8": "1",
                **(environment or {}),
            },
            **own_session,
        )
        return process


def release(child: subprocess.Popen[bytes]) -> None:
    """Let a process begin that was started held."""
    if child.stdin:
        with contextlib.suppress(OSError), child.stdin:  # it may have died already
            child.stdin.write(b"go")


def wait_for_release() -> None:
    """Wait to be let go of, where this process was started held; end where nobody is left to."""
    if os.environ.pop(_HELD, "") and sys.stdin.buffer.read() != b"go":
        raise SystemExit("the process that started this one ended before it could begin")


def identity(pid: int) -> str | None:
    """'pid:start' of a living process, so that a pid used again is not taken for it."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return f"{pid}:{_began(process)}"
    except (psutil.Error, OSError, OverflowError, ValueError):
        return None


def _began(process: psutil.Process) -> str:
    """Return the start time of a process: the same text for its whole life, also when the clock is
    set."""
    if not sys.platform.startswith("linux"):
        return f"{process.create_time():.2f}"
    # Linux: ticks since this boot. psutil would add the boot time, which moves with the clock.
    fields = Path(f"/proc/{process.pid}/stat").read_bytes().rpartition(b")")[2].split()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii")[:8]
    return f"{int(fields[19])}@{boot}"


def alive(process_identity: str) -> bool:
    """True while that very process lives."""
    pid = process_identity.partition(":")[0]
    is_number = pid.isascii() and pid.isdigit() and len(pid) < 12
    return is_number and identity(int(pid)) == process_identity


def end(process_identity: str, wait_s: float = 10.0, children: bool = True) -> None:
    """Ask the process and its `children` to end; after `wait_s` make them. When this
    returns the process itself is gone, unless the system holds it for `wait_s` more."""
    if not alive(process_identity):
        return
    parent = psutil.Process(int(process_identity.partition(":")[0]))
    try:
        tree = [*(parent.children(recursive=True) if children else ()), parent]
    except psutil.Error:
        return
    for process in tree:
        _quietly(process.terminate)
    _, left = psutil.wait_procs(tree, timeout=wait_s)
    for process in left:
        _quietly(process.kill)
    deadline = time.monotonic() + wait_s  # a killed process lives on until the system is done
    while alive(process_identity) and time.monotonic() < deadline:
        time.sleep(0.01)


def lower_priority(pid: int | None = None) -> None:
    """Lower the priority of this process, or of the process `pid` with the whole session that it
    leads, so that the page and other programs go first."""
    process = psutil.Process(pid)
    if sys.platform == "win32":
        process.nice(psutil.BELOW_NORMAL_PRIORITY_CLASS)
        return
    process.nice(max(NICE, process.nice()))
    # Linux gives every session the same share, and a process's nice counts inside of it alone:
    # the session has one of its own (man 7 sched, "The autogroup feature"). That of a terminal
    # that we were started from is not ours.
    with contextlib.suppress(OSError):
        if os.getsid(process.pid) == process.pid:
            Path(f"/proc/{process.pid}/autogroup").write_text(str(NICE), encoding="ascii")


def _quietly(act: Callable[[], None]) -> None:
    try:
        act()
    except psutil.Error:
        return
