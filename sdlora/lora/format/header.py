"""Header of a safetensors file, read and checked before anything is allocated; no torch.

A file is 8 bytes of length, a JSON header that names every tensor, and the tensors' bytes
(https://github.com/huggingface/safetensors#format). Files that cannot be a LoRA are refused.
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
INTEGER_BYTES = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
MAX_INTEGERS = 4  # values in an integer tensor: flags or a shape, such as IA3's `on_input`
_BYTES_PER_VALUE = DTYPE_BYTES | INTEGER_BYTES
HASH_BLOCK = 2**20
_FIELDS = {"dtype", "shape", "data_offsets"}
_METADATA_FIRST = re.compile(rb'\s*\{\s*"__metadata__"\s*:\s*')
METADATA_BYTES = 2**15  # enough for the metadata of most files


class _DuplicateKeys(dict[str, Any]):
    """A JSON object with a duplicate key."""


def _object_from_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    return table if len(table) == len(pairs) else _DuplicateKeys(table)


_JSON = json.JSONDecoder(object_pairs_hook=_object_from_pairs)
# Metadata is informative only, so odd values in it are accepted: tabs in texts, very long numbers
_LENIENT = json.JSONDecoder(strict=False, parse_int=float)


@dataclass(frozen=True)
class RawHeader:
    """A file's header with the entries of its tensors not parsed yet."""

    file: str  # the file's name, for messages
    table: bytes  # JSON: name -> dtype, shape, offsets
    metadata: dict[str, str]
    metadata_end: int  # end of the metadata in `table` if it comes first; else 0: not in `table`
    body_at: int  # offset of the first tensor byte
    body_bytes: int

    @property
    def layout(self) -> tuple[int, int, int]:
        """Cache key: equal for files whose tensor entries are the same text, such as those that one
        program made of models of one shape."""
        rest = memoryview(self.table)[self.metadata_end :]
        return hash(rest), len(rest), self.body_bytes


@dataclass(frozen=True)
class Header:
    """Checked header: tensor name -> shape, and metadata."""

    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]
    body_at: int  # offset of the first tensor byte


def read_header(path: Path) -> Header:
    """Read and check the header of `path`. LoraFileError when it is refused."""
    head = read_raw_header(path)
    return Header(checked_shapes(head), head.metadata, head.body_at)


def read_raw_header(path: str | Path) -> RawHeader:
    """Read the header of `path` without its tensors' entries. LoraFileError when it has none."""
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
        table, metadata, end = _split_metadata(text)
    except (ValueError, RecursionError) as error:
        raise refusal("damaged_header", file=name, why=error) from None
    return RawHeader(name, table, metadata, end, 8 + length, size - 8 - length)


def _split_metadata(header: bytes) -> tuple[bytes, dict[str, str], int]:
    """Return (table, metadata, end of the metadata in the table) of a header.

    Most files have the metadata first, so that the long rest is not parsed here. ValueError when
    the end of the metadata cannot be found.
    """
    metadata: Any = {}
    end = 0
    if first := _METADATA_FIRST.match(header):
        metadata, end = _value_at(header, first.end())
    elif b"__metadata__" in header and isinstance(table := _parse_table(header), dict):
        metadata = table.pop("__metadata__", {})
        header = json.dumps(table).encode("utf-8") if type(table) is dict else header
    texts = metadata.items() if isinstance(metadata, dict) else ()
    return header, {key: text for key, text in texts if isinstance(text, str)}, end


def _value_at(header: bytes, at: int) -> tuple[Any, int]:
    """Return (JSON value that begins at `at`, its end). The end is found in the bytes as Latin-1,
    one letter per byte, since they may not be UTF-8."""
    try:
        _, length = _LENIENT.raw_decode(header[at : at + METADATA_BYTES].decode("latin-1"))
    except ValueError:  # it is longer
        _, length = _LENIENT.raw_decode(header[at:].decode("latin-1"))
    end = at + length
    return _LENIENT.decode(header[at:end].decode("utf-8", "replace")), end


def _parse_table(table: bytes) -> Any:
    return _JSON.decode(table.decode("utf-8"))


def checked_shapes(head: RawHeader) -> dict[str, tuple[int, ...]]:
    """Return tensor name -> shape, every entry checked. LoraFileError when one is refused."""
    try:
        entries = _parse_table(_table_without_metadata(head))
    except (ValueError, RecursionError) as error:
        raise refusal("damaged_header", file=head.file, why=error) from None
    if not isinstance(entries, dict):
        raise refusal("damaged_header", file=head.file, why="it is not a table")
    if any(isinstance(table, _DuplicateKeys) for table in (entries, *entries.values())):
        raise refusal("damaged_header", file=head.file, why="a name occurs twice")
    if not 1 <= len(entries) <= MAX_TENSORS:
        raise refusal("tensor_count", file=head.file, count=len(entries), limit=MAX_TENSORS)
    _check_body(
        sorted(_checked_byte_range(name, entry, head.file) for name, entry in entries.items()), head
    )
    return {name: tuple(entry["shape"]) for name, entry in entries.items()}


def _table_without_metadata(head: RawHeader) -> bytes:
    rest = head.table[head.metadata_end :]
    return b"{" + rest.lstrip().removeprefix(b",") if head.metadata_end else rest


def without_metadata(path: Path) -> bytes:
    """Return the file's bytes without metadata, for readers that refuse other values than text."""
    head = read_raw_header(path)
    table = _table_without_metadata(head)
    with path.open("rb") as file:
        file.seek(head.body_at)
        return struct.pack("<Q", len(table)) + table + file.read()


def body_hash(path: Path) -> str:
    """Return sha256 of the tensor bytes in hex: kohya's model hash; the first 12 are AutoV3."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(8 + struct.unpack("<Q", file.read(8))[0])
        while block := file.read(HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _checked_byte_range(key: str, entry: Any, file: str) -> tuple[int, int]:
    """Return (first, last + 1) byte of a tensor in the body. LoraFileError when it is refused."""
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise refusal("damaged_entry", file=file, key=key)
    shape, offsets, dtype = entry["shape"], entry["data_offsets"], entry["dtype"]
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise refusal("damaged_entry", file=file, key=key)
    count = math.prod(shape)
    known = DTYPE_BYTES if count > MAX_INTEGERS else _BYTES_PER_VALUE
    is_number = isinstance(dtype, str) and dtype in _BYTES_PER_VALUE
    if not is_number or (dtype not in known and is_known(key)):
        raise refusal("not_numbers", file=file, key=key, dtype=dtype)
    if (len(shape) > 4 or 0 in shape) and is_known(key):  # an unread tensor may have any shape
        raise refusal("impossible_shape", file=file, key=key, shape=shape)
    if offsets[1] - offsets[0] != count * _BYTES_PER_VALUE[dtype]:
        raise refusal("damaged_entry", file=file, key=key)
    return offsets[0], offsets[1]


def _are_counts(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(n) is int and 0 <= n <= MAX_FILE for n in numbers)


def _check_body(spans: list[tuple[int, int]], head: RawHeader) -> None:
    """Check that tensors fill the body without gap or overlap. LoraFileError otherwise."""
    reached = 0
    for first, end in spans:
        if first != reached:
            raise refusal("overlap", file=head.file)
        reached = end
    if reached != head.body_bytes:
        raise refusal("cut_short", file=head.file)
