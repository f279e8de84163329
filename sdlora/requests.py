"""What a run can be asked while it goes on: a file in its folder, for whoever may write there."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Request = Literal["stop", "pause", "save", "sample"]
REQUESTS: dict[Request, str] = {
    "stop": "end after the present step and keep the LoRA",
    "pause": "let go of the device after the present step, to go on later",
    "save": "write a checkpoint now",
    "sample": "draw samples now",
}


def ask(folder: Path, request: Request, words: str = "") -> None:
    """Ask the run in `folder`."""
    (folder / request).write_text(words, encoding="utf-8")


def asked(folder: Path, request: Request) -> bool:
    """Whether somebody asked, and it is not answered yet."""
    try:
        return (folder / request).exists()
    except (OSError, ValueError):  # a folder that cannot be looked into, or no name for one
        return False


def content(folder: Path, request: Request) -> str:
    """The text of a request that was asked; '' where there is none."""
    try:
        return (folder / request).read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return ""


def answered(folder: Path, *requests: Request) -> None:
    """Take the requests off the table."""
    for request in requests:
        (folder / request).unlink(missing_ok=True)
