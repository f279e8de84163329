"""Side data of an image file, beside its pixels: orientation, texts, resolution. It never decides
whether the pixels are used.

EXIF is laid out as TIFF (CIPA DC-008-2019, 4.6): a header of 8 bytes that names the byte order and
the place of a directory, which has a count and then rows of tag, type, count and value.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator

ORIENTATION = 0x0112
_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_VALUES = {1: "B", 3: "H", 4: "I"}  # byte, short, long
_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"))
_AVIF_EXIF = re.compile(rb"(infe.{8})Exif", re.DOTALL)


def orientation_of(exif: bytes) -> int:
    """Orientation 1 to 8 as EXIF bytes have it; 1 where it cannot be read."""
    starts = [place for mark in _ORDERS if (place := exif.find(mark)) >= 0]
    if not starts:
        return 1
    tiff = exif[min(starts) :]
    order = _ORDERS[tiff[:4]]
    try:
        (place,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, place)
        for row in range(place + 2, place + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", tiff, row)
            if tag == ORIENTATION and kind in _VALUES:
                (value,) = struct.unpack_from(order + _VALUES[kind], tiff, row + 8)
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass  # the directory ends before the row
    return 1


def exif_bytes(raw: bytes) -> bytes:
    """EXIF of a picture file, found without a parser of the whole; empty where there is none."""
    if raw.startswith(_PNG):
        return next((body for kind, body, _ in _png_chunks(raw) if kind == b"eXIf"), b"")
    place = raw.find(b"Exif\0\0")
    return raw[place + 6 : place + 6 + 2**16] if place >= 0 else b""


def without_side_data(raw: bytes) -> bytes:
    """Return the file's bytes with its pixels alone; the colour profile of a JPEG stays, and so
    does what a PNG needs to be shown."""
    if raw.startswith(_JPEG):
        return _bare_jpeg(raw)
    if raw.startswith(_PNG):
        rows = [row for kind, _, row in _png_chunks(raw) if kind in _PNG_PIXELS]
        return b"".join([_PNG, *rows])
    if (
        raw[4:8] == b"ftyp"
    ):  # AVIF: its entry (ISO 14496-12, 8.11.6) becomes one that no reader knows
        return _AVIF_EXIF.sub(rb"\1none", raw, count=1)
    return raw


def _bare_jpeg(raw: bytes) -> bytes:
    """Markers up to the scan (ITU T.81, B.1.1.2), of the application segments only JFIF, a colour
    profile and Adobe's, which says how the colours are coded."""
    segments, place = [raw[:2]], 2
    while place + 4 <= len(raw) and raw[place] == 0xFF:
        marker = raw[place + 1]
        (length,) = struct.unpack_from(">H", raw, place + 2)
        segment = raw[place : place + 2 + length]
        beside = 0xE0 <= marker <= 0xEF or marker == 0xFE
        if not beside or marker in (0xE0, 0xEE) or segment[4:15] == b"ICC_PROFILE":
            segments.append(segment)
        place += 2 + length
        if marker == 0xDA:
            break
    return b"".join([*segments, raw[place:]])


def _png_chunks(raw: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """(type, content, whole chunk) of every chunk that is whole (PNG specification, 5.3). What is
    not needed to show the picture is given only with a right checksum."""
    place = len(_PNG)
    while place + 12 <= len(raw):
        length, kind = struct.unpack_from(">I4s", raw, place)
        row = raw[place : place + 12 + length]
        whole = zlib.crc32(row[4:-4]).to_bytes(4, "big") == row[-4:]
        if whole or kind[:1].isupper():
            yield kind, row[8:-4], row
        place += 12 + length
