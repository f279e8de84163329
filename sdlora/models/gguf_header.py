"""Header of a GGUF file: names, shapes, number formats and offsets of its tensors, and its texts.

Read here and not by the `gguf` package: that one maps the file, makes two arrays for every number
of its metadata, and goes on past the end of a damaged file for as long as a count in it says. No
torch, and nothing is allocated by a number in the file that the file's size does not bear out.

Format: github.com/ggml-org/ggml, docs/gguf.md; the reshaped tensors of image models:
github.com/city96/ComfyUI-GGUF, tools/convert.py.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from sdlora.errors import ModelError

MAGIC = b"GGUF"
MAX_HEADER = 64 * 2**20
MAX_ENTRIES = 100_000  # of tensors, and of metadata
_MAX_NAME, _MAX_KEY, _MAX_SIDES = 2**10, 2**16, 8
_MAX_TEXTS = 2**20  # in a list, such as a vocabulary
_PIECE_BYTES = 2**16
_VERSIONS = (2, 3)
_ORIGINAL_SHAPE = "comfy.gguf.orig_shape."
_ALIGNMENT = "general.alignment"
_WIDTHS = ((1024,), (2048,))  # of the texts that Stable Diffusion 2 and XL read
_UINT32, _INT32, _STRING, _ARRAY = 4, 5, 8, 9
_VALUE_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


class GgufFormat(NamedTuple):
    """A number format of ggml: blocks of so many values in so many bytes."""

    name: str
    values: int
    bytes: int


# By the number in a file (ggml.h, enum ggml_type, and the sizes of its blocks)
FORMATS = {
    0: GgufFormat("F32", 1, 4), 1: GgufFormat("F16", 1, 2), 30: GgufFormat("BF16", 1, 2),
    28: GgufFormat("F64", 1, 8), 24: GgufFormat("I8", 1, 1), 25: GgufFormat("I16", 1, 2),
    26: GgufFormat("I32", 1, 4), 27: GgufFormat("I64", 1, 8),
    2: GgufFormat("Q4_0", 32, 18), 3: GgufFormat("Q4_1", 32, 20), 6: GgufFormat("Q5_0", 32, 22),
    7: GgufFormat("Q5_1", 32, 24), 8: GgufFormat("Q8_0", 32, 34),
    10: GgufFormat("Q2_K", 256, 84), 11: GgufFormat("Q3_K", 256, 110),
    12: GgufFormat("Q4_K", 256, 144), 13: GgufFormat("Q5_K", 256, 176),
    14: GgufFormat("Q6_K", 256, 210),
    16: GgufFormat("IQ2_XXS", 256, 66), 17: GgufFormat("IQ2_XS", 256, 74),
    18: GgufFormat("IQ3_XXS", 256, 98), 19: GgufFormat("IQ1_S", 256, 50),
    20: GgufFormat("IQ4_NL", 32, 18), 21: GgufFormat("IQ3_S", 256, 110),
    22: GgufFormat("IQ2_S", 256, 82), 23: GgufFormat("IQ4_XS", 256, 136),
    29: GgufFormat("IQ1_M", 256, 56), 34: GgufFormat("TQ1_0", 256, 54),
    35: GgufFormat("TQ2_0", 256, 66), 39: GgufFormat("MXFP4", 32, 17),
    40: GgufFormat("NVFP4", 64, 36),
}  # fmt: skip
BY_NAME = {row.name: row for row in FORMATS.values()}
# of ggml as well, and not to be dequantised: for sums in between, or given up
_UNREAD_FORMATS = {
    4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8",
    36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8", 41: "Q1_0",
}  # fmt: skip

Sides = tuple[int, ...]


@dataclass(frozen=True)
class GgufHeader:
    """Tensor name -> shape as torch has it, -> number format (ggml's word), and -> offset in the
    file; the texts in its metadata."""

    shapes: dict[str, Sides]
    dtypes: dict[str, str]
    offsets: dict[str, int]
    texts: dict[str, str]
    body_at: int


class _Tensor(NamedTuple):
    name: str
    shape: Sides
    format: GgufFormat
    offset: int  # from the first tensor byte
    bytes: int


class _Bytes:
    """A header's bytes, one value after the other, read from the file in pieces. ModelError: there
    are no more."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file, self.at = path, file, 0
        self.file_bytes = path.stat().st_size
        self._piece, self._piece_at = b"", 0

    def numbers(self, layout: str) -> tuple[Any, ...]:
        """Return the next numbers, see struct; little-endian."""
        layout = "<" + layout
        first = self._next(struct.calcsize(layout))  # it may read another piece
        return struct.unpack_from(layout, self._piece, first)

    def text(self, limit: int) -> str:
        """Return a text of at most so many bytes."""
        (length,) = self.numbers("Q")
        if length > limit:
            raise self.damaged(f"a text of {length} bytes at byte {self.at}")
        first = self._next(length)
        try:
            return self._piece[first : first + length].decode()
        except UnicodeDecodeError:
            raise self.damaged(f"the text before byte {self.at} is no UTF-8") from None

    def skip(self, count: int) -> None:
        """Go past some bytes."""
        self._check(count)
        self.at += count

    def _next(self, count: int) -> int:
        """Go past some bytes; return where they begin in the piece."""
        first = self.at - self._piece_at
        if first + count > len(self._piece):
            self._check(count)
            self.file.seek(self.at)
            self._piece, self._piece_at = self.file.read(max(count, _PIECE_BYTES)), self.at
            first = 0
            if len(self._piece) < count:
                raise self.damaged("it has changed while it was read")
        self.at += count
        return first

    def _check(self, count: int) -> None:
        if self.at + count > self.file_bytes:
            raise ModelError(
                "{file} is cut short within its header, or that is damaged. Download or copy it "
                "again",
                file=self.path,
            )
        if self.at + count > MAX_HEADER:
            raise self.damaged(f"it is longer than {MAX_HEADER // 2**20} MiB")

    def damaged(self, why: str) -> ModelError:
        """Return the error of a header that contradicts itself."""
        return ModelError("the header of {file} is damaged: {why}", file=self.path, why=why)


def read_gguf_header(path: Path) -> GgufHeader:
    """Read and check the header of a GGUF file. ModelError: damaged, or of a kind that cannot be
    read. OSError: there is no such file."""
    with path.open("rb") as file:
        source = _Bytes(path, file)
        magic, version = source.numbers("4sI")
        if magic != MAGIC or version not in _VERSIONS:
            raise _unknown_version(path, version)
        counts = source.numbers("QQ")
        if max(counts) > MAX_ENTRIES:
            raise source.damaged(f"it counts {max(counts)} entries")
        texts, alignment, originals = _metadata(source, counts[1])
        tensors = [_tensor(source, originals) for _ in range(counts[0])]
    body_at = -(-source.at // alignment) * alignment
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    if len(shapes) < len(tensors):
        raise source.damaged("two tensors have one name")
    _check_places(source, tensors, body_at, alignment)
    return GgufHeader(
        _with_linear_projections(shapes, texts),
        {tensor.name: tensor.format.name for tensor in tensors},
        {tensor.name: body_at + tensor.offset for tensor in tensors},
        texts, body_at,
    )  # fmt: skip


def needs_gguf(path: Path, number_format: str) -> ModelError:
    """Return the error of a file whose weights the `gguf` package reads, which is not installed."""
    return ModelError(
        "{file} holds weights as {dtype}, and reading them needs gguf: run `pip install gguf` in "
        "the environment of this program, .venv beside launch.py",
        file=path, dtype=number_format,
    )  # fmt: skip


def _unknown_version(path: Path, version: int) -> ModelError:
    if version & 0xFFFF == 0 and version:
        return ModelError(
            "{file} is a GGUF file for big-endian machines; take the usual one", file=path
        )
    return ModelError(
        "{file} is a GGUF file of version {version}; versions 2 and 3 can be read. Convert the "
        "model again with a program of today",
        file=path, version=version,
    )  # fmt: skip


def _metadata(source: _Bytes, count: int) -> tuple[dict[str, str], int, dict[str, Sides]]:
    """Return (texts by key, alignment of the tensors, original shapes of reshaped ones)."""
    texts: dict[str, str] = {}
    originals: dict[str, Sides] = {}
    alignment = 32
    for _ in range(count):
        key = source.text(_MAX_KEY)
        (kind,) = source.numbers("I")
        if kind == _STRING:
            texts[key] = source.text(MAX_HEADER)
        elif key == _ALIGNMENT and kind == _UINT32:
            (alignment,) = source.numbers("I")
        elif kind == _ARRAY:
            sides = _array(source, key.startswith(_ORIGINAL_SHAPE))
            if sides:
                originals[key.removeprefix(_ORIGINAL_SHAPE)] = sides
        elif kind in _VALUE_BYTES:
            source.skip(_VALUE_BYTES[kind])
        else:
            raise source.damaged(f"a value of the unknown kind {kind} at byte {source.at}")
    if not 1 <= alignment <= 2**16 or alignment & (alignment - 1):
        raise source.damaged(f"its tensors are aligned to {alignment} bytes")
    return texts, alignment, originals


def _array(source: _Bytes, is_shape: bool) -> Sides:
    """Go past an array; return its numbers if it is a shape."""
    kind, count = source.numbers("IQ")
    if is_shape:
        if kind != _INT32 or count > _MAX_SIDES:
            raise source.damaged(f"a shape at byte {source.at} is none")
        return source.numbers(f"{count}i")
    if kind in _VALUE_BYTES:
        source.skip(_VALUE_BYTES[kind] * count)
    elif kind == _STRING:
        if count > _MAX_TEXTS:
            raise source.damaged(f"it lists {count} texts")
        for _ in range(count):
            source.skip(*source.numbers("Q"))
    else:
        raise source.damaged(f"an array of the unknown kind {kind} at byte {source.at}")
    return ()


def _tensor(source: _Bytes, originals: dict[str, Sides]) -> _Tensor:
    name = source.text(_MAX_NAME)
    (count,) = source.numbers("I")
    if count > _MAX_SIDES:
        raise source.damaged(f"{name!r} has {count} dimensions")
    sides = source.numbers(f"{count}Q")
    kind, offset = source.numbers("IQ")
    if kind in _UNREAD_FORMATS:
        raise ModelError(
            "{file} holds {key!r} as {dtype}, a quantised format that cannot be read; take a file "
            "of the same model in Q8_0 or another usual one",
            file=source.path, key=name[:80], dtype=_UNREAD_FORMATS[kind],
        )  # fmt: skip
    if kind not in FORMATS:
        raise ModelError(
            "{file} holds numbers of the kind {dtype!r} in {key!r}, which are not known",
            file=source.path, dtype=str(kind), key=name[:80],
        )  # fmt: skip
    shape = tuple(reversed(sides))
    if sides and sides[0] % FORMATS[kind].values:
        raise source.damaged(f"the rows of {name!r} are no whole blocks")
    if not sides and FORMATS[kind].values > 1:
        raise source.damaged(f"{name!r} is no whole block")
    original, count = originals.get(name, shape), math.prod(shape)
    if original is not shape and (min(original) < 0 or math.prod(original) != count):
        raise source.damaged(f"the original shape of {name!r} is another size's")
    size = count // FORMATS[kind].values * FORMATS[kind].bytes
    return _Tensor(name, original, FORMATS[kind], offset, size)


def _check_places(source: _Bytes, tensors: list[_Tensor], body_at: int, alignment: int) -> None:
    """ModelError: tensors overlap, lie outside the file, or are more than it has."""
    end = used = 0
    for tensor in sorted(tensors, key=lambda row: (row.offset, row.bytes)):
        if tensor.offset % alignment or (tensor.offset < end and tensor.bytes):
            raise source.damaged(f"{tensor.name!r} lies where another tensor does")
        end = max(end, tensor.offset + tensor.bytes)
        used += -(-tensor.bytes // alignment) * alignment
        if end > used:  # writers leave no gaps
            raise source.damaged(f"{tensor.name!r} lies outside the file")
    missing = body_at + end - source.file_bytes
    if missing > 0:
        raise ModelError(
            "{file} is cut short: {missing} MiB are missing at its end. Download or copy it again",
            file=source.path, missing=f"{missing / 2**20:.1f}",
        )  # fmt: skip


def _with_linear_projections(shapes: dict[str, Sides], texts: dict[str, str]) -> dict[str, Sides]:
    """Return the shapes of Stable Diffusion 2 and XL with projections that are matrices, as in the
    first files; stable-diffusion.cpp, which names no architecture, wrote convolutions of 1 x 1."""
    has_matrices = any(
        name.endswith("attn2.to_k.weight") and shape[1:] in _WIDTHS
        for name, shape in shapes.items()
    )
    if not has_matrices or "general.architecture" in texts:
        return shapes
    ends = (".1.proj_in.weight", ".1.proj_out.weight")
    return {
        name: shape[:2] if name.endswith(ends) and shape[2:] == (1, 1) else shape
        for name, shape in shapes.items()
    }
