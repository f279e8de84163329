"""Tensors of a GGUF file, dequantised into a model's number format by the `gguf` package.

That package is only needed for quantised formats. A tensor is read in runs of blocks, of which a
few hundred thousand values are there in float32 at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any, BinaryIO

import torch
from torch import Tensor

from sdlora.errors import ModelError
from sdlora.models.checkpoint_header import CheckpointHeader
from sdlora.models.gguf_header import BY_NAME, needs_gguf

VALUES_AT_ONCE = 2**18  # the fastest; they stay in a processor's cache
_PLAIN = {
    "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64,
}  # fmt: skip
_WHOLE_NUMBERS = {"I8", "I16", "I32", "I64"}


def read_gguf_tensor(
    file: BinaryIO, header: CheckpointHeader, name: str, dtype: torch.dtype
) -> Tensor:
    """Return a tensor in `dtype`. ModelError: its number format cannot be read here."""
    stored = BY_NAME[header.dtypes[name]]
    decode = _decoder(header, name)
    shape = header.shapes[name]
    flat = torch.empty(math.prod(shape), dtype=dtype)
    blocks, step = len(flat) // stored.values, max(1, VALUES_AT_ONCE // stored.values)
    file.seek(header.offsets[name])
    for first in range(0, blocks, step):
        count = min(step, blocks - first)
        held = bytearray(count * stored.bytes)
        if file.readinto(held) < len(held):  # type: ignore[attr-defined]
            raise ModelError("{file} has changed while it was read", file=header.file)
        flat[first * stored.values : (first + count) * stored.values] = decode(held)
    return flat.view(shape)


def _decoder(header: CheckpointHeader, name: str) -> Callable[[bytearray], Tensor]:
    """Return a function that makes numbers of blocks."""
    kind = header.dtypes[name]
    if kind in _PLAIN:
        return lambda held: torch.frombuffer(held, dtype=_PLAIN[kind])
    if kind in _WHOLE_NUMBERS:
        raise _unread(header, name)
    try:
        numpy: Any = import_module("numpy")
        quants: Any = import_module("gguf.quants")
        quantization = import_module("gguf.constants").GGMLQuantizationType[kind]
    except ImportError:
        raise needs_gguf(header.file, kind) from None
    except KeyError:
        raise _unread(header, name) from None

    def dequantized(held: bytearray) -> Tensor:
        try:
            with numpy.errstate(all="ignore"):
                blocks = numpy.frombuffer(held, dtype=numpy.uint8)[None]  # as one row
                return torch.from_numpy(quants.dequantize(blocks, quantization)[0])
        except NotImplementedError:
            raise _unread(header, name) from None

    return dequantized


def _unread(header: CheckpointHeader, name: str) -> ModelError:
    return ModelError(
        "{file} holds {key!r} as {dtype}, which cannot be read; take a file of the same model in "
        "another format, such as Q8_0",
        file=header.file, key=name[:80], dtype=header.dtypes[name],
    )  # fmt: skip
