"""The head of a safetensors file, read and judged before anything is allocated; no torch.

A file is 8 bytes of length, a JSON header that names every tensor, and the tensors' bytes
(https://github.com/huggingface/safetensors#format). Only what a LoRA can be passes.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdlora.errors import LoraFileError

MAX_FILE, MAX_HEADER, MAX_TENSORS = 4 * 2**30, 16 * 2**20, 20_000
DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
HASH_BLOCK = 2**20


@dataclass(frozen=True)
class Header:
    """What a file says of itself: tensor name -> shape, and free text by name."""

    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]
    body_at: int  # offset of the first tensor byte


def read_header(path: Path) -> Header:
    """The header of `path`, fully checked. LoraFileError: one sentence that says what is wrong."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= min(MAX_HEADER, size - 8) or size > MAX_FILE:
                raise LoraFileError(f"{path.name} is not a safetensors file, or it is cut short")
            text = file.read(length)
    except OSError as error:
        raise LoraFileError(f"{path.name} cannot be read: {error.strerror}") from None
    try:
        entries = json.loads(text, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise LoraFileError(f"the header of {path.name} is damaged: {error}") from None
    if not isinstance(entries, dict):
        raise LoraFileError(f"the header of {path.name} is damaged: it is not a table")
    metadata = _metadata(entries.pop("__metadata__", {}), path)
    if not 1 <= len(entries) <= MAX_TENSORS:
        raise LoraFileError(
            f"{path.name} holds {len(entries)} tensors; a LoRA has 1 to {MAX_TENSORS}"
        )
    spans = sorted(_span(name, entry, path) for name, entry in entries.items())
    _check_body(spans, size - 8 - length, path)
    return Header({name: tuple(entries[name]["shape"]) for name in entries}, metadata, 8 + length)


def body_hash(path: Path) -> str:
    """sha256 of the tensor bytes, hex: kohya's model hash; its first 12 letters are AutoV3."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(8 + struct.unpack("<Q", file.read(8))[0])
        while block := file.read(HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name stands twice")
    return table


def _metadata(said: Any, path: Path) -> dict[str, str]:
    if isinstance(said, dict) and all(isinstance(value, str) for value in said.values()):
        return said
    raise LoraFileError(f"the header of {path.name} is damaged: metadata that is not text")


def _span(name: str, entry: Any, path: Path) -> tuple[int, int]:
    """(first, last + 1) byte of a tensor in the body."""
    refused = LoraFileError(f"{path.name}: the entry of tensor {name[:80]!r} is damaged")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise refused
    shape, offsets, dtype = entry["shape"], entry["data_offsets"], entry["dtype"]
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise refused
    if dtype not in DTYPE_BYTES:
        raise LoraFileError(f"{path.name}: tensor {name[:80]!r} is {dtype!r}, not floating numbers")
    if len(shape) > 4 or 0 in shape:
        raise LoraFileError(f"{path.name}: tensor {name[:80]!r} has the impossible shape {shape}")
    if offsets[1] - offsets[0] != math.prod(shape) * DTYPE_BYTES[dtype]:
        raise refused
    return offsets[0], offsets[1]


def _are_counts(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(n) is int and 0 <= n <= MAX_FILE for n in numbers)


def _check_body(spans: list[tuple[int, int]], size: int, path: Path) -> None:
    """Tensors must fill the body without hole or overlap: no byte hidden, none read twice."""
    reached = 0
    for first, end in spans:
        if first != reached:
            raise LoraFileError(f"{path.name} is damaged: its tensors overlap or leave a hole")
        reached = end
    if reached != size:
        raise LoraFileError(f"{path.name} is cut short or has bytes after its end")
