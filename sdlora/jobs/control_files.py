"""Control files: requests to a run that goes on, each a file in its folder."""

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


def write_request(folder: Path, request: Request, text: str = "") -> None:
    """Write a request into the run's folder. RunError: nothing can be written there."""
    try:
        (folder / request).write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise RunError(
            "{folder} does not take the request to {wish}: {why}",
            folder=folder,
            wish=REQUESTS[request],
            why=getattr(error, "strerror", None) or error,
        ) from None


def is_requested(folder: Path, request: Request) -> bool:
    """Return True while a request is in the folder and not carried out yet."""
    try:
        return (folder / request).exists()
    except (OSError, ValueError):  # a folder that cannot be looked into, or no name for one
        return False


def request_text(folder: Path, request: Request) -> str:
    """Return the text of a request; '' where there is none."""
    try:
        return (folder / request).read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return ""


def clear_requests(folder: Path, *requests: Request) -> None:
    """Delete requests that are carried out. RunError: one cannot be deleted."""
    for request in requests:
        file = folder / request
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise RunError(
                "{file} cannot be deleted: {why}; delete it by hand", file=file, why=error.strerror
            ) from None
