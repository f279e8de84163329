"""What a run can be asked while it goes on: a file in its folder, for whoever may write there."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from sdlora.errors import RunError

Request = Literal["stop", "pause", "save", "sample"]
REQUESTS: dict[Request, str] = {
    "stop": "end after the present step and keep the LoRA",
    "pause": "let go of the device after the present step, to go on later",
    "save": "write a checkpoint now",
    "sample": "draw samples now",
}


def ask(folder: Path, request: Request, words: str = "") -> None:
    """Ask the run in `folder`. RunError: nothing can be written there."""
    try:
        (folder / request).write_text(words, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise RunError(
            "{folder} does not take the request to {wish}: {why}",
            folder=folder,
            wish=REQUESTS[request],
            why=getattr(error, "strerror", None) or error,
        ) from None


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
    """Take the requests off the table. RunError: one cannot be."""
    for request in requests:
        file = folder / request
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise RunError(
                "{file} cannot be taken away: {why}; delete it", file=file, why=error.strerror
            ) from None
