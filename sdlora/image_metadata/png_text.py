"""Texts of a PNG that Pillow refuses: other chunks may be damaged and the texts intact.

Chunks are [length, type, data, checksum]; tEXt holds name NUL text in Latin-1, zTXt the same
deflated, iTXt UTF-8 (W3C PNG, 11.3.3). Checksums are not verified, as in most viewers.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MOST_CHUNKS = 10_000


def png_texts(path: Path, largest: int) -> dict[str, str]:
    """Return name -> text of the readable chunks, each up to a number of bytes. Empty for a file
    that is no PNG or cannot be read."""
    texts: dict[str, str] = {}
    try:
        with path.open("rb") as file:
            if file.read(8) != _SIGNATURE:
                return {}
            for _ in range(_MOST_CHUNKS):
                length, kind = struct.unpack(">I4s", file.read(8))
                data = file.read(length) if kind in _READERS and length <= largest else b""
                file.seek(length - len(data) + 4, 1)
                for name, text in _READERS[kind](data, largest) if data else ():
                    texts.setdefault(name, text)
    except (OSError, struct.error):
        return texts  # where the file ends
    return texts


def _decode_text(data: bytes, largest: int) -> Iterator[tuple[str, str]]:
    name, mark, text = data.partition(b"\0")
    if mark:
        yield name.decode("latin-1"), text.decode("latin-1")


def _decode_ztxt(data: bytes, largest: int) -> Iterator[tuple[str, str]]:
    name, _, rest = data.partition(b"\0")
    yield name.decode("latin-1"), _inflate(rest[1:], largest).decode("latin-1")


def _decode_itxt(data: bytes, largest: int) -> Iterator[tuple[str, str]]:
    name, _, rest = data.partition(b"\0")
    _, _, rest_of_it = rest[2:].partition(b"\0")
    text = rest_of_it.partition(b"\0")[2]
    text = _inflate(text, largest) if rest[:1] == b"\1" else text
    yield name.decode("latin-1"), text.decode("utf-8", "replace")


def _inflate(data: bytes, largest: int) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, largest)
    except zlib.error:
        return b""


_READERS = {b"tEXt": _decode_text, b"zTXt": _decode_ztxt, b"iTXt": _decode_itxt}
