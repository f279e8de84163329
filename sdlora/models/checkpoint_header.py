"""Header of a checkpoint: names, shapes and number formats of its tensors, and its metadata.

Read and checked without torch and without the weights, so that a library of thousands of files is
listed from their first bytes (https://github.com/huggingface/safetensors#format; GGUF files:
gguf_header.py).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from sdlora.errors import ModelError
from sdlora.models.gguf_header import BY_NAME as GGUF_FORMATS
from sdlora.models.gguf_header import MAGIC as GGUF
from sdlora.models.gguf_header import read_gguf_header

MAX_HEADER = 64 * 2**20
MAX_TENSORS = 100_000
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
# bits of a value
DTYPE_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U8": 8,
    "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "U64": 64, "U32": 32, "U16": 16,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip

Shape = tuple[int, ...]


@dataclass(frozen=True)
class CheckpointHeader:
    """Tensor name -> shape and -> number format (safetensors' word, or ggml's), and metadata."""

    file: Path
    shapes: Mapping[str, Shape]
    dtypes: Mapping[str, str]
    metadata: Mapping[str, str] = field(default_factory=dict)
    body_at: int = 0  # offset of the first tensor byte
    table: bytes = b""  # digest of the tensors' names, shapes and formats, where it was asked for
    offsets: Mapping[str, int] = field(default_factory=dict)  # of a GGUF file's tensors

    @property
    def is_gguf(self) -> bool:
        """True for a GGUF file."""
        return bool(self.offsets)

    @property
    def is_in_blocks(self) -> bool:
        """True for a GGUF file of which some tensors are quantised, in blocks."""
        return self.is_gguf and any(
            GGUF_FORMATS[kind].values > 1 for kind in set(self.dtypes.values())
        )

    def __contains__(self, name: str) -> bool:
        return name in self.shapes


class TensorTable(NamedTuple):
    """The tensors of a header, and the metadata where it does not come before them."""

    shapes: Mapping[str, Shape]
    dtypes: Mapping[str, str]
    body_bytes: int  # at least so many
    metadata: Mapping[str, str]


TensorTables = dict[bytes, TensorTable]  # by digest of their text
_METADATA_FIRST = re.compile(rb'\s*\{\s*"__metadata__"\s*:\s*')
_JSON = json.JSONDecoder()


def read_checkpoint_header(path: Path, tables: TensorTables | None = None) -> CheckpointHeader:
    """Read and check the header of a safetensors or GGUF file. ModelError when it is neither.

    `tables` is a cache that this call adds to: checkpoints of a family differ in their weights and
    metadata, seldom in their tensors, and to parse those takes many times as long as to read them.
    """
    text, body_bytes = _header_text(path)
    if text == GGUF:
        return _of_gguf(path, tables is not None)
    metadata, rest = _split(text)
    digest = hashlib.blake2b(rest, digest_size=16).digest() if tables is not None else b""
    table = (tables or {}).get(digest)
    if table is None:
        table = _checked(path, text)
        if tables is not None:
            tables[digest] = table
    if table.body_bytes > body_bytes:
        raise ModelError(
            "{file} is cut short: {missing} MiB are missing at its end. Download or copy it again",
            file=path, missing=f"{(table.body_bytes - body_bytes) / 2**20:.1f}",
        )  # fmt: skip
    strings = table.metadata if metadata is None else _strings(metadata)
    return CheckpointHeader(path, table.shapes, table.dtypes, strings, 8 + len(text), digest)


def _header_text(path: Path) -> tuple[bytes, int]:
    """Return (header as JSON, bytes after it), of a GGUF file its magic word alone. ModelError: it
    is neither."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            if start.startswith(GGUF):  # no length that a header may have
                return GGUF, 0
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= min(MAX_HEADER, size - 8):
                raise other_kind(path, start)
            return file.read(length), size - 8 - length
    except OSError as error:
        raise _unreadable(path, error) from None


def _of_gguf(path: Path, with_digest: bool) -> CheckpointHeader:
    try:
        header = read_gguf_header(path)
    except OSError as error:
        raise _unreadable(path, error) from None
    if not header.shapes:
        raise ModelError("{file} holds {count} tensors", file=path, count=0)
    metadata = dict(header.texts)
    if name := metadata.get("general.name"):
        metadata.setdefault("modelspec.title", name)
    rows = [(name, shape, header.dtypes[name]) for name, shape in header.shapes.items()]
    digest = hashlib.blake2b(repr(rows).encode(), digest_size=16).digest() if with_digest else b""
    return CheckpointHeader(
        path, header.shapes, header.dtypes, metadata, header.body_at, digest, header.offsets
    )


def _unreadable(path: Path, error: OSError) -> ModelError:
    return ModelError("{file} cannot be read: {why}", file=path, why=error.strerror or error)


def _split(text: bytes) -> tuple[Any, bytes]:
    """Return (metadata, the rest of the header) where the metadata comes first, as most programs
    write it; else (None, the header)."""
    if (start := _METADATA_FIRST.match(text)) and text.isascii():
        try:
            metadata, end = _JSON.raw_decode(text.decode("ascii"), start.end())
            return metadata, text[end:]
        except (ValueError, RecursionError):
            pass  # `_checked` says what is wrong
    return None, text


def is_pickle(start: bytes) -> bool:
    """Return True if a file may be PyTorch's, by its first bytes: a zip, or a pickle of the
    protocols 2 to 5."""
    return start.startswith((b"PK\x03\x04", b"PK\x05\x06")) or (
        start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05" and len(start) > 1
    )


def other_kind(path: Path, start: bytes) -> ModelError:
    """Return what a file that is not a safetensors file is, by its first bytes: a safetensors file
    may begin with any of them too."""
    if is_pickle(start):
        return ModelError(
            "{file} is a pickle, which can run code when it is opened, and is not opened; convert "
            "it with {command}, which reads its weights only, or look for a .safetensors file of "
            "the same model",
            file=path, command=f"launch.py models convert {path.name}",
        )  # fmt: skip
    if start.lstrip()[:1] == b"<":
        return ModelError(
            "{file} is a web page, not a model: a download that asked for a login leaves such "
            "files. Download it again",
            file=path,
        )
    if path.suffix.lower() in PICKLES:
        return ModelError(
            "{file} is neither a safetensors file nor a PyTorch file: it is damaged, or something "
            "else. Download or copy it again",
            file=path,
        )
    return ModelError("{file} is not a safetensors or GGUF file, or it is cut short", file=path)


def _checked(path: Path, text: bytes) -> TensorTable:
    """Parse a header and check every entry. ModelError: damaged."""
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError("the header of {file} is damaged: {why}", file=path, why=error) from None
    if not isinstance(table, dict):
        raise ModelError("the header of {file} is damaged: it is not a table", file=path)
    metadata = table.pop("__metadata__", {})
    if not 1 <= len(table) <= MAX_TENSORS:
        raise ModelError("{file} holds {count} tensors", file=path, count=len(table))
    shapes: dict[str, Shape] = {}
    dtypes: dict[str, str] = {}
    end = 0
    for name, entry in table.items():
        try:
            shape, dtype = tuple(map(int, entry["shape"])), str(entry["dtype"])
            first, last = map(int, entry["data_offsets"])
        except (KeyError, TypeError, ValueError):
            raise _damaged(path, name) from None
        bits = DTYPE_BITS.get(dtype)
        if bits is None:
            raise ModelError(
                "{file} holds numbers of the kind {dtype!r} in {key!r}, which are not known",
                file=path, dtype=dtype[:20], key=name[:80],
            )  # fmt: skip
        if min((*shape, first, last), default=0) < 0 or (
            last - first != -(-math.prod(shape) * bits // 8)
        ):
            raise _damaged(path, name)
        shapes[name], dtypes[name] = shape, dtype
        end = max(end, last)
    return TensorTable(shapes, dtypes, end, _strings(metadata))


def _strings(metadata: Any) -> dict[str, str]:
    texts = metadata.items() if isinstance(metadata, dict) else ()
    return {key: value for key, value in texts if isinstance(value, str)}


def _damaged(path: Path, name: str) -> ModelError:
    return ModelError(
        "the header of {file} is damaged: its entry {key!r} is wrong", file=path, key=name[:80]
    )
