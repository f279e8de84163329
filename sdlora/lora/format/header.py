"""The head of a safetensors file, read and judged before anything is allocated; no torch.

A file is 8 bytes of length, a JSON header that names every tensor, and the tensors' bytes
(https://github.com/huggingface/safetensors#format). Only what a LoRA can be passes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdlora.errors import LoraFileError
from sdlora.lora.format.errors import PICKLE, refusal
from sdlora.lora.format.file_types import is_pickle
from sdlora.lora.format.keys import is_known

MAX_FILE, MAX_HEADER, MAX_TENSORS = 4 * 2**30, 16 * 2**20, 20_000
DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
WHOLE_BYTES = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
MOST_WHOLE = 4  # whole numbers are flags or a shape, such as IA3's `on_input`
_ANY_BYTES = DTYPE_BYTES | WHOLE_BYTES
HASH_BLOCK = 2**20
_FIELDS = {"dtype", "shape", "data_offsets"}
_METADATA_FIRST = re.compile(rb'\s*\{\s*"__metadata__"\s*:\s*')
METADATA_BYTES = 2**15  # within which that of most files ends


class _Twice(dict[str, Any]):
    """A table in which a name stands twice."""


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    return table if len(table) == len(pairs) else _Twice(table)


_JSON = json.JSONDecoder(object_pairs_hook=_table)
# Metadata decides nothing, so that whatever stands there is read: tabs in texts, endless numbers
_LENIENT = json.JSONDecoder(strict=False, parse_int=float)


@dataclass(frozen=True)
class Head:
    """A file's header, its tensors not judged yet."""

    file: str  # its name, for what is said of it
    table: bytes  # JSON: name -> dtype, shape, place
    metadata: dict[str, str]
    metadata_end: int  # in `table`, where that comes first; else 0, for it is not in there
    body_at: int  # offset of the first tensor byte
    body_bytes: int

    @property
    def layout(self) -> tuple[int, int, int]:
        """The same for files that one program made of models of one shape: their tensors are
        written alike, letter for letter."""
        rest = memoryview(self.table)[self.metadata_end :]
        return hash(rest), len(rest), self.body_bytes


@dataclass(frozen=True)
class Header:
    """What a file says of itself: tensor name -> shape, and free text by name."""

    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]
    body_at: int  # offset of the first tensor byte


def read_header(path: Path) -> Header:
    """The header of `path`, fully checked. LoraFileError: one sentence that says what is wrong."""
    head = read_head(path)
    return Header(shapes_in(head), head.metadata, head.body_at)


def read_head(path: str | Path) -> Head:
    """The head of `path`, its tensors not looked at. LoraFileError when it has none."""
    name = os.path.basename(path)
    if is_pickle(name):
        made = f"{os.path.splitext(name)[0]}.safetensors"
        raise LoraFileError(PICKLE, code="pickle", file=name, made=made)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= min(MAX_HEADER, size - 8) or size > MAX_FILE:
                raise refusal("not_safetensors", file=name)
            text = file.read(length)
    except OSError as error:
        raise refusal("unreadable", file=name, why=error.strerror) from None
    try:
        table, metadata, end = _cut(text)
    except (ValueError, RecursionError) as error:
        raise refusal("damaged_header", file=name, why=error) from None
    return Head(name, table, metadata, end, 8 + length, size - 8 - length)


def _cut(header: bytes) -> tuple[bytes, dict[str, str], int]:
    """What Head holds of a header. ValueError: where its metadata ends cannot be told.

    The metadata stands first in all files but odd ones, so that the long rest is not parsed here.
    """
    metadata: Any = {}
    end = 0
    if first := _METADATA_FIRST.match(header):
        metadata, end = _first_value(header, first.end())
    elif b"__metadata__" in header and isinstance(table := _decoded(header), dict):
        metadata = table.pop("__metadata__", {})
        header = json.dumps(table).encode("utf-8") if type(table) is dict else header
    texts = metadata.items() if isinstance(metadata, dict) else ()
    return header, {key: text for key, text in texts if isinstance(text, str)}, end


def _first_value(header: bytes, at: int) -> tuple[Any, int]:
    """(the JSON value that begins at `at`, where it ends). A letter each for the bytes tells where
    it ends, also where they are no text."""
    try:
        _, length = _LENIENT.raw_decode(header[at : at + METADATA_BYTES].decode("latin-1"))
    except ValueError:  # it is longer
        _, length = _LENIENT.raw_decode(header[at:].decode("latin-1"))
    end = at + length
    return _LENIENT.decode(header[at:end].decode("utf-8", "replace")), end


def _decoded(table: bytes) -> Any:
    return _JSON.decode(table.decode("utf-8"))


def shapes_in(head: Head) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape, every entry judged. LoraFileError: what is wrong."""
    try:
        entries = _decoded(_tensors_only(head))
    except (ValueError, RecursionError) as error:
        raise refusal("damaged_header", file=head.file, why=error) from None
    if not isinstance(entries, dict):
        raise refusal("damaged_header", file=head.file, why="it is not a table")
    if any(isinstance(table, _Twice) for table in (entries, *entries.values())):
        raise refusal("damaged_header", file=head.file, why="a name stands twice")
    if not 1 <= len(entries) <= MAX_TENSORS:
        raise refusal("tensor_count", file=head.file, count=len(entries), most=MAX_TENSORS)
    _check_body(sorted(_span(name, entry, head.file) for name, entry in entries.items()), head)
    return {name: tuple(entry["shape"]) for name, entry in entries.items()}


def _tensors_only(head: Head) -> bytes:
    rest = head.table[head.metadata_end :]
    return b"{" + rest.lstrip().removeprefix(b",") if head.metadata_end else rest


def without_metadata(path: Path) -> bytes:
    """The whole file with its tensors alone, for readers that ask for metadata of texts."""
    head = read_head(path)
    table = _tensors_only(head)
    with path.open("rb") as file:
        file.seek(head.body_at)
        return struct.pack("<Q", len(table)) + table + file.read()


def body_hash(path: Path) -> str:
    """sha256 of the tensor bytes, hex: kohya's model hash; its first 12 letters are AutoV3."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(8 + struct.unpack("<Q", file.read(8))[0])
        while block := file.read(HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _span(key: str, entry: Any, file: str) -> tuple[int, int]:
    """(first, last + 1) byte of a tensor in the body."""
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise refusal("damaged_entry", file=file, key=key)
    shape, offsets, dtype = entry["shape"], entry["data_offsets"], entry["dtype"]
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise refusal("damaged_entry", file=file, key=key)
    count = math.prod(shape)
    known = DTYPE_BYTES if count > MOST_WHOLE else _ANY_BYTES
    is_number = isinstance(dtype, str) and dtype in _ANY_BYTES
    if not is_number or (dtype not in known and is_known(key)):
        raise refusal("not_numbers", file=file, key=key, dtype=dtype)
    if (len(shape) > 4 or 0 in shape) and is_known(key):  # of what is not read anything may be
        raise refusal("impossible_shape", file=file, key=key, shape=shape)
    if offsets[1] - offsets[0] != count * _ANY_BYTES[dtype]:
        raise refusal("damaged_entry", file=file, key=key)
    return offsets[0], offsets[1]


def _are_counts(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(n) is int and 0 <= n <= MAX_FILE for n in numbers)


def _check_body(spans: list[tuple[int, int]], head: Head) -> None:
    """Tensors must fill the body without hole or overlap: no byte hidden, none read twice."""
    reached = 0
    for first, end in spans:
        if first != reached:
            raise refusal("overlap", file=head.file)
        reached = end
    if reached != head.body_bytes:
        raise refusal("cut_short", file=head.file)
