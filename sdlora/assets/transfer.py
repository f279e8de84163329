"""Transfer of one file: into `NAME.part` beside its place, resumable, verified, then renamed.

`NAME.part.json` says of which file the part is: address, size, ETag, hash, and how many bytes are
surely on the disk. A part goes on where it ended (RFC 9110, 13.1.5 and 14: Range with If-Range); it
begins anew where the server ignores that or has another file by now.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit, urlunsplit

import httpx

from sdlora.assets.download_clock import DownloadClock, Retries, TransferRate
from sdlora.assets.download_plan import RemoteFile
from sdlora.assets.http_client import HttpClient, chunks
from sdlora.assets.model_file_check import HEAD_BYTES, check_head, check_model_file
from sdlora.assets.sites import host_of
from sdlora.disk_room import DISK_RESERVE, free_bytes
from sdlora.errors import BusyError, DownloadError
from sdlora.events import BytesReceived, Event, Progress, Warned
from sdlora.files import DISK_FULL, make_folder, write_atomically, write_if_absent
from sdlora.jobs.processes import alive, identity
from sdlora.messages import Message, size_in_words

REPORT_EVERY_S = 1.0
SYNC_EVERY = 64 * 2**20  # bytes
_BLOCK = 2**20
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


@dataclass
class DownloadSession:
    """Network, clock and disk, as all transfers of a download share them."""

    client: HttpClient
    clock: DownloadClock
    free_bytes: Callable[[Path], int] = free_bytes


def public_url(url: str) -> str:
    """Return an address without its query, which may hold a signature."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, host_of(url), parts.path, "", ""))


def file_sha256(path: Path, clock: DownloadClock) -> str:
    """Return a file's SHA256. DownloadInterrupted: a stop is requested meanwhile."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            clock.check_stop()
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def sole_writer(part: Path) -> Iterator[None]:
    """Keep other processes from the same part. BusyError: one is at it."""
    lock = part.with_name(part.name + ".lock")
    me = identity(os.getpid()) or ""
    while True:
        try:
            write_if_absent(lock, lambda to: to.write_text(me, encoding="utf-8"))
            break
        except FileExistsError:
            holder = ""
            with suppress(OSError):
                holder = lock.read_text("utf-8", "replace").strip()
            if alive(holder) and holder != me:
                raise BusyError("{file} is being downloaded already", file=part) from None
            lock.unlink(missing_ok=True)  # its process was killed
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


@dataclass
class WholeDownload:
    """The download that a file is part of, for the events: bytes of all its files, and of those
    that were finished before this one."""

    name: str
    rate: TransferRate
    total: int | None
    before: int = 0

    def progress(self, done: int) -> BytesReceived:
        """Return the present state, with `done` bytes of the present file."""
        done += self.before
        left = None if self.total is None else self.rate.seconds_left(self.total - done)
        of = "" if self.total is None else Message(" of {total}", total=size_in_words(self.total))
        text = Message(
            "downloading {name}: {done}{of}, {rate} a second",
            name=self.name, done=size_in_words(done), of=of,
            rate=size_in_words(round(self.rate.bytes_per_s)),
        )  # fmt: skip
        return BytesReceived(text, done, self.total or 0, self.rate.bytes_per_s, left)


class FileTransfer:
    """Transfer of a file into its part. After `run` the part is whole, verified and flushed."""

    def __init__(
        self, remote: RemoteFile, target: Path, session: DownloadSession, whole: WholeDownload
    ) -> None:
        self.remote, self.session, self.whole = remote, session, whole
        self.part = target.with_name(target.name + ".part")
        self.record = target.with_name(target.name + ".part.json")
        self.name = target.name
        self.host = host_of(remote.url)
        self.total = remote.size
        self.done, self.etag, self.synced = 0, "", 0
        self.sha256 = hashlib.sha256()
        self.resumed = False  # the part begins with bytes of an earlier process or try
        self.complete = False

    def run(self) -> Iterator[Event]:
        """Receive the file, go on where it broke off, and verify it. DownloadError: it did not
        come, or is not what it should be; DownloadInterrupted; BusyError."""
        make_folder(self.part.parent)
        with sole_writer(self.part), self._disk_errors():
            try:
                yield from self._load_part()
                yield from self._receive_all()
                yield from self._verify()
            except DownloadError:
                if not self.done:
                    self.discard()
                raise

    def discard(self) -> None:
        """Delete the part and its record."""
        self.part.unlink(missing_ok=True)
        self.record.unlink(missing_ok=True)

    def _verify(self) -> Iterator[Event]:
        """Check hash and header. A part that was resumed is received anew, once."""
        problem = self._wrong_content()
        if problem and self.resumed:
            yield Warned(problem.message, "it begins anew: the part of an earlier try was wrong")
            self._begin_anew()
            yield from self._receive_all()
            problem = self._wrong_content()
        try:
            if problem:
                raise problem
            check_model_file(self.part, self.name)
        except DownloadError:
            self._begin_anew()
            raise

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            raise DownloadError(
                "the disk of {folder} is full; make room and start the download again: what is "
                "here stays",
                folder=self.part.parent,
            ) from None

    # The part of an earlier process

    def _load_part(self) -> Iterator[Event]:
        record = self._read_record()
        if record is None:
            self._begin_anew()
            return
        size = self.part.stat().st_size
        # Without a hash, bytes that a power loss may have left out would stay unnoticed
        self.done = size if self.remote.has_hash else min(size, int(record["synced"]))
        if self.total is not None and self.done > self.total:
            self._begin_anew()
            return
        self.etag, self.synced, self.resumed = str(record["etag"]), self.done, self.done > 0
        self.total = self.total if self.total is not None else record["size"]
        yield from self._hash_part()

    def _read_record(self) -> dict[str, Any] | None:
        """Return the record of a part of the same file; None: there is none."""
        try:
            record = json.loads(self.record.read_text("utf-8"))
            same = all(record[name] == value for name, value in self._of_file().items())
            sound = isinstance(record["synced"], int) and isinstance(record["etag"], str)
            sound = sound and (record["size"] is None or isinstance(record["size"], int))
            return record if same and sound and self.part.is_file() else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def _of_file(self) -> dict[str, Any]:
        """Facts by which a part is known to be of this file."""
        if self.remote.has_hash:
            return {"sha256": self.remote.sha256, "git_oid": self.remote.git_oid}
        return {"url": public_url(self.remote.url), "sha256": "", "git_oid": ""}

    def _hash_part(self) -> Iterator[Event]:
        reading, left = TransferRate(self.session.clock), self.done
        with self.part.open("r+b") as file:
            file.truncate(self.done)
            while left and (block := file.read(min(_BLOCK, left))):
                self.session.clock.check_stop()
                self.sha256.update(block)
                left -= len(block)
                if reading.measured(len(block), REPORT_EVERY_S):
                    percent = 100 * (self.done - left) // self.done
                    yield Progress("checking what is here already", percent, 100)

    def _begin_anew(self) -> None:
        self.part.write_bytes(b"")
        self.done, self.etag, self.synced, self.resumed = 0, "", 0, False
        self.total, self.complete = self.remote.size, False
        self.sha256 = hashlib.sha256()

    def _write_record(self) -> None:
        row = {
            "url": public_url(self.remote.url), "size": self.total, "etag": self.etag,
            "sha256": self.remote.sha256, "git_oid": self.remote.git_oid, "synced": self.synced,
        }  # fmt: skip
        write_atomically(self.record, lambda to: to.write_text(json.dumps(row), encoding="utf-8"))

    # Bytes from the server

    def _receive_all(self) -> Iterator[Event]:
        retries = Retries(self.session.clock)
        self.complete = self.total is not None and self.done == self.total and self.done > 0
        if self.total == 0:
            raise DownloadError("{name} is empty at {host}", name=self.name, host=self.host)
        farthest = (
            self.done
        )  # so far: a file that breaks off at one place again and again is given up
        while not self.complete:
            self.session.clock.check_stop()
            try:
                yield from self._receive()
            except DownloadError as error:
                yield from retries.wait_after(
                    error, progressed=self.done > farthest, begun=self.done > 0
                )
                farthest, self.resumed = max(farthest, self.done), self.done > 0

    def _receive(self) -> Iterator[Event]:
        """Receive from where the part ends to the end of the file, or to where it breaks off."""
        try:
            with self.session.client.get(
                self.remote.url, self.remote.resource, self._range_headers()
            ) as response:
                yield from self._accept(response)
                with self.part.open("r+b", buffering=0) as file:
                    file.seek(self.done)
                    file.truncate()
                    try:
                        yield from self._write_chunks(response, file)
                    finally:
                        self._sync(file)
        except DownloadError as error:
            if error.http_status == 416:
                self._begin_anew()
            raise

    def _range_headers(self) -> dict[str, str]:
        if not self.done:
            return {}
        headers = {"Range": f"bytes={self.done}-"}
        if self.etag.startswith('"') and not self.remote.has_hash:  # a weak one cannot say so
            headers["If-Range"] = self.etag
        return headers

    def _accept(self, response: httpx.Response) -> Iterator[Event]:
        """Take in what the answer's headers say of the file. DownloadError: it is not the one that
        was asked for."""
        etag = response.headers.get("etag", "")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise DownloadError(
                "{host} sends {name} compressed, which was not asked for",
                host=self.host, name=self.name,
            )  # fmt: skip
        if response.status_code == 206:
            total = self._range_total(response)
            changed = self.etag and etag and etag != self.etag
            if changed and self.done and not self.remote.has_hash:
                self._begin_anew()
                raise self._another_file()
        else:
            length = response.headers.get("content-length", "")
            total = int(length) if length.isdigit() else None
            if self.done:
                message = Message("{host} does not go on where {name} ended, or has another file "
                    "of that name by now", host=self.host, name=self.name)  # fmt: skip
                yield Warned(message, "it begins anew")
                self._begin_anew()
        self._check_total(total)
        self.etag = etag
        self._check_room()
        self._write_record()

    def _range_total(self, response: httpx.Response) -> int | None:
        match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", "").strip())
        if match is None or int(match[1]) != self.done:
            self._begin_anew()
            raise DownloadError(
                "{host} sends another part of {name} than the one asked for",
                host=self.host, name=self.name, transient=True,
            )  # fmt: skip
        return None if match[3] == "*" else int(match[3])

    def _another_file(self) -> DownloadError:
        return DownloadError(
            "{name} at {host} has changed since its download began; it begins anew",
            name=self.name, host=self.host, transient=True,
        )  # fmt: skip

    def _check_total(self, total: int | None) -> None:
        if total is None:
            return
        if self.remote.size is not None and total != self.remote.size:
            raise DownloadError(
                "{host} sends {given} bytes as {name}, which should have {size}: it is "
                "another file; try again later",
                host=self.host, given=total, name=self.name, size=self.remote.size,
            )  # fmt: skip
        if self.total is not None and total != self.total and self.done:
            self._begin_anew()
            raise self._another_file()
        self.total = total

    def _check_room(self) -> None:
        left = (self.total or 0) - self.done
        check_room(self.part.parent, left, self.session)

    def _write_chunks(self, response: httpx.Response, file: IO[bytes]) -> Iterator[Event]:
        kind = response.headers.get("content-type", "")
        head = b"" if self.done == 0 else None  # the first bytes, until they are judged
        for chunk in chunks(response, self.remote.resource):
            self.session.clock.check_stop()
            if head is not None:
                head += chunk[:HEAD_BYTES]
                if len(head) >= HEAD_BYTES:
                    self._check_head(head, kind)
                    head = None
            if self.total is not None and self.done + len(chunk) > self.total:
                self._begin_anew()
                raise DownloadError(
                    "{host} sends more bytes of {name} than it said; nothing was kept",
                    host=self.host, name=self.name,
                )  # fmt: skip
            self._write(file, chunk)
            if self.whole.rate.measured(len(chunk), REPORT_EVERY_S):
                yield self.whole.progress(self.done)
        if head is not None:
            self._check_head(head, kind)
        self._check_end(response)

    def _check_head(self, head: bytes, content_type: str) -> None:
        try:
            check_head(head, self.name, content_type)
        except DownloadError:
            self._begin_anew()
            raise

    def _write(self, file: IO[bytes], chunk: bytes) -> None:
        view = memoryview(chunk)
        while view:
            view = view[file.write(view) :]
        self.sha256.update(chunk)
        self.done += len(chunk)
        if self.done - self.synced >= SYNC_EVERY:
            self._sync(file)

    def _sync(self, file: IO[bytes]) -> None:
        if self.done > self.synced:
            os.fsync(file.fileno())
            self.synced = self.done
            self._write_record()

    def _check_end(self, response: httpx.Response) -> None:
        if self.total is not None and self.done < self.total:
            host, status = self.host, response.status_code
            raise DownloadError(
                "{host} ended {name} early, at {done} of {total} bytes ({status})",
                host=host, name=self.name, done=self.done, total=self.total, status=status,
                transient=True,
            )  # fmt: skip
        self.total, self.complete = self.done, True

    def _wrong_content(self) -> DownloadError | None:
        """Return an error where the part's hash is not the expected one."""
        if self.remote.sha256:
            good = self.sha256.hexdigest() == self.remote.sha256
        elif self.remote.git_oid:
            good = _git_oid(self.part) == self.remote.git_oid
        else:
            good = True
        if good:
            return None
        return DownloadError(
            "{name} is not the file that {page} promises: its hash is another one; it was deleted. "
            "Try again; if it happens again, the file there is damaged",
            name=self.name, page=self.remote.resource.page,
        )  # fmt: skip


def _git_oid(path: Path) -> str:
    """Return git's hash of a file's content (git hash-object)."""
    content = path.read_bytes()
    header = f"blob {len(content)}\0".encode()
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()


def check_room(folder: Path, needed: int, session: DownloadSession) -> None:
    """Check that a disk has room for so many bytes. DownloadError: it has not."""
    free = session.free_bytes(folder)
    if needed + DISK_RESERVE > free and needed:
        raise DownloadError(
            "the download needs {needed} more, and the disk of {folder} has {free} free; make "
            "room, {reserve} of it to spare",
            needed=size_in_words(needed), folder=folder, free=size_in_words(free),
            reserve=size_in_words(DISK_RESERVE),
        )  # fmt: skip
