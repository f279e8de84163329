"""Uploads of the browser: files only, in one private folder, with a limit on their total size,
deleted after some hours."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from gradio import route_utils
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, Headers
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from webui.calls import disk_error

PATH = "/gradio_api/upload"
MIB = 1024 * 1024
MAX_UPLOAD_MIB = 512  # per request
MAX_WAITING_MIB = 4096  # total of the uploads not used yet
FREE_MIB = 256  # disk space that uploads leave free
UNUSED_S = 2 * 3600.0
SWEEP_EVERY_S = 600.0


class UploadParser(route_utils.GradioMultiPartParser):  # type: ignore[misc]
    """Gradio's multipart parser, which keeps a field without a file in memory at any length, and
    leaves the files of an interrupted upload behind; this one does neither."""

    def on_headers_finished(self) -> None:
        """Refuse a field that is not a file."""
        super().on_headers_finished()
        if self._current_part.file is None:
            raise route_utils.MultiPartException("only files are taken here, each with its name")

    async def parse(self) -> FormData:
        """The form; the files of an interrupted upload are deleted."""
        begun = self._files_to_close_on_error
        try:
            form = await super().parse()
            begun = []
        finally:
            for file in begun:
                file.close()
                Path(file.name).unlink(missing_ok=True)
        received: FormData = form
        return received


route_utils.GradioMultiPartParser = UploadParser


def empty_uploads(folder: Path) -> None:
    """Make the private folder for uploads, or empty it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.environ["GRADIO_TEMP_DIR"] = str(folder)


def sweep_uploads(folder: Path, unused_s: float = UNUSED_S) -> None:
    """Delete uploads that were not used for `unused_s` seconds, and empty folders."""
    before = time.time() - unused_s
    for path in sorted(folder.rglob("*"), reverse=True):  # contents of a folder before the folder
        with suppress(OSError):  # used or deleted meanwhile
            if path.lstat().st_mtime < before:
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def sweep_for_ever(folder: Path) -> None:
    """Sweep at intervals, in a thread that ends with the page."""

    def sweeping() -> None:
        while True:
            time.sleep(SWEEP_EVERY_S)
            sweep_uploads(folder)

    threading.Thread(target=sweeping, daemon=True).start()


def discard(paths: Iterable[Path], folder: Path) -> None:
    """Delete uploads that have been used."""
    for path in paths:
        if path.is_relative_to(folder):
            with suppress(OSError):
                path.unlink()
                path.parent.rmdir()


def waiting_bytes(folder: Path) -> int:
    """Total size of all uploads in bytes."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.lstat().st_size
    return total


class UploadCheck:
    """ASGI middleware before Gradio's upload route: it refuses uploads that exceed the limits or
    the disk space."""

    def __init__(self, app: ASGIApp, folder: Path) -> None:
        self.app, self.folder = app, folder
        self._expected = 0  # bytes of the uploads in progress

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check an upload; pass every other request on."""
        if scope["type"] != "http" or scope["path"] != PATH:
            await self.app(scope, receive, send)
            return
        length = int(Headers(scope=scope).get("content-length", MAX_UPLOAD_MIB * MIB))
        answer = _HeldBack(send)
        self._expected += length
        try:
            if refused := await run_in_threadpool(self._refusal, self._expected):
                await PlainTextResponse(*refused)(scope, receive, send)
                return
            await self.app(scope, receive, answer.send)
            await answer.release()
        except ClientDisconnect:
            pass
        except OSError as error:
            await PlainTextResponse(disk_error(error), 507)(scope, receive, send)
        finally:
            self._expected -= length

    def _refusal(self, expected: int) -> tuple[str, int] | None:
        """Reason for refusing `expected` more bytes, and the status of the response; None: they are
        accepted."""
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)  # without its parents
            free = shutil.disk_usage(self.folder).free
        except OSError:
            return "the workspace folder is gone; start sdlora again", 507
        if free < expected + FREE_MIB * MIB:
            return (
                f"the disk has {free // MIB} MiB left; free some, then choose the files again",
                507,
            )
        sweep_uploads(self.folder)
        if expected + waiting_bytes(self.folder) <= MAX_WAITING_MIB * MIB:
            return None
        return (
            f"there are {MAX_WAITING_MIB} MiB of unused uploads already; add those to a set first, "
            f"or wait: unused uploads are deleted after {UNUSED_S / 3600:g} hours",
            413,
        )


class _HeldBack:
    """Sender that holds a response with status 500 until `release`, so that a better answer may
    replace it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._held: list[Message] = []

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 500 or self._held:
            self._held.append(message)
        else:
            await self._send(message)

    async def release(self) -> None:
        for message in self._held:
            await self._send(message)
