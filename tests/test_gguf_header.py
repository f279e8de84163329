"""Headers of GGUF files: read within limits, and damaged ones refused; nothing else is needed."""

import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdlora.errors import ModelError
from sdlora.models.checkpoint_header import read_checkpoint_header
from sdlora.models.gguf_header import FORMATS, MAX_HEADER

F32, Q4_0, Q8_0 = 0, 2, 8
UINT8, UINT32, INT32, STRING, ARRAY = 0, 4, 5, 8, 9


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def number(key: str, value: int) -> bytes:
    return text(key) + struct.pack("<II", UINT32, value)


def words(key: str, value: str) -> bytes:
    return text(key) + struct.pack("<I", STRING) + text(value)


def array(key: str, kind: int, count: int, content: bytes = b"") -> bytes:
    return text(key) + struct.pack("<IIQ", ARRAY, kind, count) + content


def tensor(name: str | bytes, sides: tuple[int, ...], kind: int, offset: int) -> bytes:
    layout = f"<I{len(sides)}QIQ"
    return text(name) + struct.pack(layout, len(sides), *sides, kind, offset)


def shape(name: str, *sides: int) -> bytes:
    content = struct.pack(f"<{len(sides)}i", *sides)
    return array(f"comfy.gguf.orig_shape.{name}", INT32, len(sides), content)


def gguf_file(metadata: list[bytes], rows: list[bytes], body: int = 0, **head: int) -> bytes:
    counts = head.get("tensors", len(rows)), head.get("entries", len(metadata))
    start = struct.pack("<4sIQQ", b"GGUF", head.get("version", 3), *counts)
    header = start + b"".join(metadata) + b"".join(rows)
    return header + bytes(-len(header) % head.get("alignment", 32)) + bytes(body)


WHOLE = gguf_file(
    [
        words("general.architecture", "sd1"), words("general.name", "Ink v-pred"),
        number("general.file_type", 2), array("numbers", UINT8, 3, b"\1\2\3"),
        array("words", STRING, 2, text("a") + text("b")), shape("conv", 8, 64, 1, 1),
    ],
    [
        tensor("conv", (256, 2), Q4_0, 0), tensor("bias", (8,), F32, 288),
        tensor("matrix", (32, 3), Q8_0, 320), tensor("v_pred", (0,), F32, 448),
    ],
    448,
)  # fmt: skip


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_a_header_is_read_as_torch_has_it(tmp_path: Path) -> None:
    header = read_checkpoint_header(written(tmp_path / "a.gguf", WHOLE), {})
    assert header.shapes == {
        "conv": (8, 64, 1, 1), "bias": (8,), "matrix": (3, 32), "v_pred": (0,),
    }  # fmt: skip
    assert header.dtypes == {"conv": "Q4_0", "bias": "F32", "matrix": "Q8_0", "v_pred": "F32"}
    first = len(WHOLE) - 448
    assert header.body_at == first and header.is_gguf and header.is_in_blocks
    assert header.offsets == {n: first + at for n, at in zip(
        ("conv", "bias", "matrix", "v_pred"), (0, 288, 320, 448), strict=True
    )}  # fmt: skip
    assert header.metadata["general.architecture"] == "sd1"
    assert header.metadata["modelspec.title"] == "Ink v-pred"
    other = written(tmp_path / "b.gguf", gguf_file([], [tensor("a", (8,), F32, 0)], 32))
    again = read_checkpoint_header(other, {})
    assert len(header.table) == 16 and again.table != header.table and not again.is_in_blocks


def test_an_alignment_of_its_own_is_kept(tmp_path: Path) -> None:
    content = gguf_file(
        [number("general.alignment", 64)],
        [tensor("a", (8,), F32, 0), tensor("b", (8,), F32, 64)], 96, alignment=64,
    )  # fmt: skip
    header = read_checkpoint_header(written(tmp_path / "a.gguf", content))
    assert header.body_at % 64 == 0 and header.offsets["b"] == header.body_at + 64


def test_matrices_that_were_written_as_convolutions_are_matrices_again(tmp_path: Path) -> None:
    for width, expected in ((768, (2, 2, 1, 1)), (1024, (2, 2)), (2048, (2, 2))):
        rows = [
            tensor("b.1.proj_in.weight", (1, 1, 2, 2), F32, 0),
            tensor("b.1.transformer_blocks.0.attn2.to_k.weight", (width, 1), F32, 32),
        ]
        content = gguf_file([], rows, 32 + width * 4)
        header = read_checkpoint_header(written(tmp_path / f"{width}.gguf", content))
        assert header.shapes["b.1.proj_in.weight"] == expected


A = tensor("a", (8,), F32, 0)
REFUSED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"GGUF", "cut short within its header"),
    "version 1": (gguf_file([], [A], 32, version=1), "of version 1; versions 2 and 3 can be read"),
    "big-endian": (gguf_file([], [A], 32, version=3 << 24), "for big-endian machines"),
    "no tensors": (gguf_file([], []), "holds 0 tensors"),
    "many tensors": (gguf_file([], [A], 32, tensors=2**63), "it counts 9223372036854775808"),
    "many entries": (gguf_file([], [A], 32, entries=10**6), "it counts 1000000 entries"),
    "more tensors than there are": (gguf_file([], [A], tensors=99), "cut short within its header"),
    "long key": (gguf_file([text("k" * 70_000)], [A], 32), "a text of 70000 bytes"),
    "endless text": (
        gguf_file([text("k") + struct.pack("<IQ", STRING, 2**62)], [A], 32), "a text of 461168",
    ),
    "text past the end": (
        gguf_file([text("k") + struct.pack("<IQ", STRING, 2**20)], [A], 32), "cut short within",
    ),
    "endless array": (gguf_file([array("k", UINT8, 2**62)], [A], 32), "cut short within"),
    "endless list": (gguf_file([array("k", STRING, 2**40)], [A], 32), "it lists 1099511627776"),
    "array of arrays": (gguf_file([array("k", ARRAY, 1)], [A], 32), "array of the unknown kind 9"),
    "unknown value": (
        gguf_file([text("k") + struct.pack("<I", 99)], [A], 32), "value of the unknown kind 99",
    ),
    "no UTF-8": (gguf_file([], [tensor(b"\xff\xfe", (8,), F32, 0)], 32), "is no UTF-8"),
    "long name": (gguf_file([], [tensor("n" * 2000, (8,), F32, 0)], 32), "a text of 2000 bytes"),
    "many sides": (gguf_file([], [tensor("a", (1,) * 9, F32, 0)], 32), "'a' has 9 dimensions"),
    "unknown format": (
        gguf_file([], [tensor("a", (8,), 77, 0)], 32), "numbers of the kind '77' in 'a'",
    ),
    "format for sums": (gguf_file([], [tensor("a", (256,), 15, 0)], 999), "'a' as Q8_K, a quant"),
    "given up format": (gguf_file([], [tensor("a", (32,), 31, 0)], 999), "'a' as Q4_0_4_4"),
    "half a block": (gguf_file([], [tensor("a", (40,), Q8_0, 0)], 99), "are no whole blocks"),
    "block of nothing": (gguf_file([], [tensor("a", (), Q8_0, 0)], 99), "'a' is no whole block"),
    "twice": (gguf_file([], [A, tensor("a", (8,), F32, 32)], 64), "two tensors have one name"),
    "in one place": (gguf_file([], [A, tensor("b", (8,), F32, 0)], 64), "'b' lies where another"),
    "overlapping": (
        gguf_file([], [tensor("a", (16,), F32, 0), tensor("b", (8,), F32, 32)], 96),
        "'b' lies where another",
    ),
    "not aligned": (gguf_file([], [tensor("a", (8,), F32, 8)], 64), "'a' lies where another"),
    "outside": (gguf_file([], [A, tensor("b", (8,), F32, 2**62)], 64), "'b' lies outside the file"),
    "huge": (gguf_file([], [tensor("a", (2**60, 2**60), F32, 0)], 64), "cut short: .* MiB"),
    "cut short": (gguf_file([], [tensor("a", (2**19,), F32, 0)], 2**20), "cut short: 1.0 MiB are"),
    "odd alignment": (gguf_file([number("general.alignment", 48)], [A], 32), "aligned to 48 bytes"),
    "no alignment": (gguf_file([number("general.alignment", 0)], [A], 32), "aligned to 0 bytes"),
    "another size": (gguf_file([shape("a", 3, 3)], [A], 32), "original shape of 'a' is another"),
    "negative": (gguf_file([shape("a", -2, -4)], [A], 32), "original shape of 'a' is another"),
    "shape of floats": (
        gguf_file([array("comfy.gguf.orig_shape.a", 6, 1, bytes(4))], [A], 32), "shape at .* none",
    ),
    "shape of many": (
        gguf_file([array("comfy.gguf.orig_shape.a", INT32, 9, bytes(36))], [A], 32), "is none",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_damaged_header_is_refused_in_words(case: str, tmp_path: Path) -> None:
    content, sentence = REFUSED[case]
    with pytest.raises(ModelError, match=sentence):
        read_checkpoint_header(written(tmp_path / "a.gguf", content))


def test_a_header_that_fills_the_file_comes_to_an_end(tmp_path: Path) -> None:
    """A sparse file, all of whose bytes would be header."""
    path = written(tmp_path / "a.gguf", gguf_file([array("k", UINT8, 2 * MAX_HEADER)], [A]))
    with path.open("ab") as file:
        file.truncate(3 * MAX_HEADER)
    with pytest.raises(ModelError, match="longer than 64 MiB"):
        read_checkpoint_header(path)


def test_files_damaged_anywhere_are_read_or_refused(tmp_path: Path) -> None:
    rng = random.Random(1)
    header_bytes = len(WHOLE) - 448
    changes: tuple[Callable[[bytearray, int], Any], ...] = (
        lambda raw, at: raw.__setitem__(at, rng.randrange(256)),
        lambda raw, at: raw.__setitem__(slice(at, at + 8), rng.randbytes(8)),
        lambda raw, at: raw.__setitem__(slice(at, at + 4), b"\xff" * 4),
        lambda raw, at: raw.__delitem__(slice(at, at + rng.randrange(40))),
        lambda raw, at: raw.__delitem__(slice(at, None)),
    )
    counts = {True: 0, False: 0}
    for number_ in range(500):
        raw = bytearray(WHOLE)
        changes[number_ % len(changes)](raw, 4 + rng.randrange(header_bytes - 4))
        path = written(tmp_path / "a.gguf", bytes(raw))
        try:
            header = read_checkpoint_header(path)
        except ModelError as error:
            assert str(path) in str(error)
            counts[False] += 1
            continue
        counts[True] += 1
        sizes = {row.name: row for row in FORMATS.values()}
        for name, at in header.offsets.items():
            row, values = sizes[header.dtypes[name]], 1
            for side in header.shapes[name]:
                values *= side
            assert at + values // row.values * row.bytes <= len(raw)
    assert min(counts.values()) > 20, counts
