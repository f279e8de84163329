"""Zip archives of pictures: unpacked once, into a folder of their own, without trusting the
archive.

Only pictures, captions and tables come out. A member that leads elsewhere, is a link, is locked, is
too large or inflates too much, or has a name that an earlier one has on some system, is left out
and named.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from sdlora.data.caption_files import is_caption_file
from sdlora.data.image_stats import PICTURE_SUFFIXES
from sdlora.data.listing import is_server_folder, is_system_file
from sdlora.data.problems import Problem
from sdlora.errors import DataError
from sdlora.messages import Message

MAX_MEMBERS = 20_000
MAX_INFLATED_BYTES = 20 * 2**30  # inflated, all together
MAX_INFLATE_RATIO = 200  # inflated to packed, of members above 1 MiB
MAX_NAME_BYTES = 120  # of one part of a path
MAX_PATH_BYTES = 400  # of all its parts: with the folder before them, below what a disk takes
_BLOCK = 2**20
_FORBIDDEN_CHARACTERS = re.compile(r'[<>:"|?*\x00-\x1f\x7f]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_TOO_DEEP = Message("has a path of more than {limit} bytes", limit=MAX_PATH_BYTES)
_PROBLEMS = ".left_out.json"
# Of one member; what a full or failing disk does ends the whole
_NAME_ERRNOS = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.ENOTDIR, errno.EEXIST)
_UNPACK_ERRORS = (
    zipfile.BadZipFile,
    NotImplementedError,
    EOFError,
    OSError,
    ValueError,
    RuntimeError,
)


def unpack(archive: Path, into: Path) -> tuple[Path, list[Problem]]:
    """Return the folder below `into` that holds the archive's pictures, made unless it exists
    already, and the problems of members that are left out. DataError: the archive cannot be
    unpacked."""
    folder = into / f"{archive.stem[:60]}-{_digest(archive)}"
    if not (folder / _PROBLEMS).is_file():
        into.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=into) as temporary:
            made = Path(temporary) / "made"
            made.mkdir()
            left_out = _extract_members(archive, made)
            rows = [(name, reason.to_json()) for name, reason in left_out]
            (made / _PROBLEMS).write_text(json.dumps(rows), encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)  # what was cut off before it was whole
            os.replace(made, folder)
    rows = json.loads((folder / _PROBLEMS).read_text(encoding="utf-8"))
    return folder, [Problem(archive / name, Message.from_json(reason)) for name, reason in rows]


def _digest(archive: Path) -> str:
    try:
        with archive.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise DataError("{file} cannot be read: {why}", file=archive, why=error.strerror) from None


def _extract_members(archive: Path, into: Path) -> list[tuple[str, Message]]:
    """Write the members that may come out; returns (name, reason) of all others."""
    left_out: list[tuple[str, Message]] = []
    written: set[str] = set()
    budget = MAX_INFLATED_BYTES
    try:
        with zipfile.ZipFile(archive) as opened:
            for member in _members(archive, opened):
                name, reason = _target_path(member)
                if not reason and _case_folded(name) in written:
                    reason = Message("has a name that another file has on some systems")
                if not reason and name.parts:
                    written.add(_case_folded(name))
                    reason, size = _extract_member(opened, member, into / name, budget)
                    budget -= size
                if reason:
                    message = Message("{reason}; it is left out", reason=reason)
                    left_out.append((_printable_name(member), message))
    except _UNPACK_ERRORS as error:
        raise DataError("{file} cannot be unpacked: {why}", file=archive, why=error) from None
    return left_out


def _members(archive: Path, opened: zipfile.ZipFile) -> Iterator[zipfile.ZipInfo]:
    members = opened.infolist()
    if len(members) > MAX_MEMBERS:
        template = "{file} cannot be unpacked: it has {count} files; {limit} at most are taken out"
        raise DataError(template, file=archive, count=len(members), limit=MAX_MEMBERS)
    packed = sum(member.compress_size for member in members)
    if packed > archive.stat().st_size:
        raise ValueError("its files lie over one another, as in an archive made to do damage")
    return (member for member in members if not member.is_dir())


def _target_path(member: zipfile.ZipInfo) -> tuple[PurePosixPath, Message]:
    """Return (path of a member below the folder, reason to leave it out); neither for a hidden or
    system file."""
    nowhere = PurePosixPath()
    name = _member_name(member)
    parts = name.replace("\\", "/").split("/")
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
        return nowhere, Message("is a link or a device")
    if not parts[0] or re.match(r"[A-Za-z]:", parts[0]) or ".." in parts:
        return nowhere, Message("leads out of the archive")
    parts = [part for part in parts if part not in ("", ".")]
    if any(is_system_file(part) or is_server_folder(part) for part in parts):
        return nowhere, Message("")  # what systems put into archives unasked
    if len(parts) > MAX_PATH_BYTES:
        return nowhere, _TOO_DEEP
    path = PurePosixPath(*map(_portable_part, parts))
    if len(path.as_posix().encode("utf-8", "replace")) > MAX_PATH_BYTES:
        return nowhere, _TOO_DEEP
    if path.suffix.lower() not in PICTURE_SUFFIXES and not is_caption_file(path.name):
        return nowhere, Message("is neither a picture nor a caption")
    return path, Message("")


def _member_name(member: zipfile.ZipInfo) -> str:
    """Return a member's name; UTF-8 written without the flag for it, as by many tools, is read as
    UTF-8 too."""
    if member.flag_bits & 0x800:
        return member.filename
    try:
        return member.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return member.filename


def _portable_part(part: str) -> str:
    """Return a part of a path as every system takes it; its end, where the suffix is, stays."""
    tidy = _FORBIDDEN_CHARACTERS.sub("_", unicodedata.normalize("NFC", part)).rstrip(" .") or "_"
    if _RESERVED.fullmatch(tidy):
        tidy = f"_{tidy}"
    raw = tidy.encode("utf-8", "replace")
    if len(raw) > MAX_NAME_BYTES:
        mark = hashlib.sha256(PurePosixPath(tidy).stem.encode("utf-8", "replace")).hexdigest()[:8]
        suffix = PurePosixPath(tidy).suffix[:12]
        tidy = f"{raw[: MAX_NAME_BYTES - 24].decode('utf-8', 'ignore')}~{mark}{suffix}"
    return tidy


def _case_folded(path: PurePosixPath) -> str:
    return path.as_posix().casefold()


def _printable_name(member: zipfile.ZipInfo) -> str:
    """Return a member's name without characters that a terminal or page cannot show."""
    plain = _member_name(member).encode("utf-8", "replace").decode("utf-8")
    return "".join(c if c.isprintable() else "_" for c in plain).replace("/", "_")[:120]


def _extract_member(
    opened: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, budget: int
) -> tuple[Message, int]:
    """Write a member to `path`; returns (reason that it is left out, bytes written). Bytes are
    counted as they come, since the size that an archive claims need not be true."""
    if member.flag_bits & 1:
        return Message("is locked with a password"), 0
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return Message("is packed in a way that is not read"), 0
    limit = min(budget, max(_BLOCK, MAX_INFLATE_RATIO * member.compress_size))
    written = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with opened.open(member) as source, path.open("xb") as file:
            while block := source.read(_BLOCK):
                written += len(block)
                if written > limit:
                    raise ValueError("inflates to more than a picture does")
                file.write(block)
    except OSError as error:
        if error.errno not in _NAME_ERRNOS:
            raise
        template = "has a name that this disk does not take ({why})"
        return Message(template, why=error.strerror), written
    except ValueError as error:
        path.unlink(missing_ok=True)
        return Message(str(error)), limit
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        path.unlink(missing_ok=True)
        return Message("is damaged: {why}", why=error), min(written, limit)
    return Message(""), written
