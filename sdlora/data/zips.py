"""Zip archives of pictures: unpacked once, into a folder of their own, and with nothing believed.

Only pictures, captions and tables come out. A member that leads elsewhere, is a link, is locked,
is too large or inflates too much, or has a name that an earlier one has on some system, is left out
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
from sdlora.data.listing import is_server_folder, is_unasked
from sdlora.data.problems import Problem
from sdlora.errors import DataError
from sdlora.messages import Message

MOST_MEMBERS = 20_000
MOST_BYTES = 20 * 2**30  # inflated, all together
MOST_RATIO = 200  # inflated to packed, of members above 1 MiB
LONGEST_NAME = 120  # bytes of one part of a path
MAX_PATH_BYTES = 400  # of all its parts: with the folder before them, below what a disk takes
_BLOCK = 2**20
_UNFIT = re.compile(r'[<>:"|?*\x00-\x1f\x7f]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_TOO_DEEP = Message("has a path of more than {most} bytes", most=MAX_PATH_BYTES)
_PROBLEMS = ".left_out.json"
# Of one member; what a full or failing disk does ends the whole
_OF_ITS_NAME = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.ENOTDIR, errno.EEXIST)
_WRONG = (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, ValueError, RuntimeError)


def unpack(archive: Path, into: Path) -> tuple[Path, list[Problem]]:
    """The folder below `into` that holds the archive's pictures, made unless it is there already;
    and what of the archive is not in it. DataError: it is no archive that can be used at all."""
    folder = into / f"{archive.stem[:60]}-{_digest(archive)}"
    if not (folder / _PROBLEMS).is_file():
        into.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=into) as temporary:
            made = Path(temporary) / "made"
            made.mkdir()
            left_out = _take_out(archive, made)
            rows = [(name, what.to_json()) for name, what in left_out]
            (made / _PROBLEMS).write_text(json.dumps(rows), encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)  # what was cut off before it was whole
            os.replace(made, folder)
    said = json.loads((folder / _PROBLEMS).read_text(encoding="utf-8"))
    return folder, [Problem(archive / name, Message.from_json(what)) for name, what in said]


def _digest(archive: Path) -> str:
    try:
        with archive.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise DataError("{file} cannot be read: {why}", file=archive, why=error.strerror) from None


def _take_out(archive: Path, into: Path) -> list[tuple[str, Message]]:
    """Write the members that may come out; (name, why not) of all others."""
    left_out: list[tuple[str, Message]] = []
    taken: set[str] = set()
    room = MOST_BYTES
    try:
        with zipfile.ZipFile(archive) as opened:
            for member in _members(archive, opened):
                name, what = _place(member)
                if not what and _same(name) in taken:
                    what = Message("has a name that another file has on some systems")
                if not what and name.parts:
                    taken.add(_same(name))
                    what, size = _write(opened, member, into / name, room)
                    room -= size
                if what:
                    left_out.append((_shown(member), Message("{what}; it is left out", what=what)))
    except _WRONG as error:
        raise DataError("{file} cannot be unpacked: {why}", file=archive, why=error) from None
    return left_out


def _members(archive: Path, opened: zipfile.ZipFile) -> Iterator[zipfile.ZipInfo]:
    members = opened.infolist()
    if len(members) > MOST_MEMBERS:
        template = "{file} cannot be unpacked: it has {count} files; {most} at most are taken out"
        raise DataError(template, file=archive, count=len(members), most=MOST_MEMBERS)
    packed = sum(member.compress_size for member in members)
    if packed > archive.stat().st_size:
        raise ValueError("its files lie over one another, as in an archive made to do damage")
    return (member for member in members if not member.is_dir())


def _place(member: zipfile.ZipInfo) -> tuple[PurePosixPath, Message]:
    """(where a member goes, why it does not); no place and no reason for what nobody misses."""
    nowhere = PurePosixPath()
    name = _decoded(member)
    parts = name.replace("\\", "/").split("/")
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
        return nowhere, Message("is a link or a device")
    if not parts[0] or re.match(r"[A-Za-z]:", parts[0]) or ".." in parts:
        return nowhere, Message("leads out of the archive")
    parts = [part for part in parts if part not in ("", ".")]
    if any(is_unasked(part) or is_server_folder(part) for part in parts):
        return nowhere, Message("")  # what systems put into archives unasked
    if len(parts) > MAX_PATH_BYTES:
        return nowhere, _TOO_DEEP
    path = PurePosixPath(*map(_fit, parts))
    if len(path.as_posix().encode("utf-8", "replace")) > MAX_PATH_BYTES:
        return nowhere, _TOO_DEEP
    if path.suffix.lower() not in PICTURE_SUFFIXES and not is_caption_file(path.name):
        return nowhere, Message("is neither a picture nor a caption")
    return path, Message("")


def _decoded(member: zipfile.ZipInfo) -> str:
    """Its name; UTF-8 written without saying so, as by many tools, is read as UTF-8 too."""
    if member.flag_bits & 0x800:
        return member.filename
    try:
        return member.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return member.filename


def _fit(part: str) -> str:
    """A part of a path as every system takes it; its end, where the suffix is, stays."""
    tidy = _UNFIT.sub("_", unicodedata.normalize("NFC", part)).rstrip(" .") or "_"
    if _RESERVED.fullmatch(tidy):
        tidy = f"_{tidy}"
    raw = tidy.encode("utf-8", "replace")
    if len(raw) > LONGEST_NAME:
        mark = hashlib.sha256(PurePosixPath(tidy).stem.encode("utf-8", "replace")).hexdigest()[:8]
        suffix = PurePosixPath(tidy).suffix[:12]
        tidy = f"{raw[: LONGEST_NAME - 24].decode('utf-8', 'ignore')}~{mark}{suffix}"
    return tidy


def _same(path: PurePosixPath) -> str:
    return path.as_posix().casefold()


def _shown(member: zipfile.ZipInfo) -> str:
    """A name that is safe to say."""
    plain = _decoded(member).encode("utf-8", "replace").decode("utf-8")
    return "".join(c if c.isprintable() else "_" for c in plain).replace("/", "_")[:120]


def _write(
    opened: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, room: int
) -> tuple[Message, int]:
    """(why it is not written, bytes written). Bytes are counted as they come, since what an archive
    says of itself need not be so."""
    if member.flag_bits & 1:
        return Message("is locked with a password"), 0
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return Message("is packed in a way that is not read"), 0
    most = min(room, max(_BLOCK, MOST_RATIO * member.compress_size))
    written = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with opened.open(member) as source, path.open("xb") as file:
            while block := source.read(_BLOCK):
                written += len(block)
                if written > most:
                    raise ValueError("inflates to more than a picture does")
                file.write(block)
    except OSError as error:
        if error.errno not in _OF_ITS_NAME:
            raise
        template = "has a name that this disk does not take ({why})"
        return Message(template, why=error.strerror), written
    except ValueError as error:
        path.unlink(missing_ok=True)
        return Message(str(error)), most
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        path.unlink(missing_ok=True)
        return Message("is damaged: {why}", why=error), min(written, most)
    return Message(""), written
