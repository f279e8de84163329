"""What stands beside the pixels of a picture never decides whether it is used."""

import io
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from benchmarks.fuzz_datasets import jpeg, png, webp
from picture_files import scene
from sdlora.data.folder import scan_folder
from sdlora.data.foreign_files import ForeignDataError, parsing
from sdlora.data.image_files import read_picture
from sdlora.data.images import load_pixels, load_rgb
from sdlora.data.side_data import orientation_of
from webui.media import thumbnail

UPRIGHT, TURNED = (24, 16), (16, 24)


def tiff(*rows: bytes, order: str = "<") -> bytes:
    """EXIF with these rows of its one directory."""
    head = struct.pack(f"{order}4sI", b"II*\0" if order == "<" else b"MM\0*", 8)
    return head + struct.pack(f"{order}H", len(rows)) + b"".join(rows) + bytes(4)


def row(tag: int, kind: int, count: int, value: bytes, order: str = "<") -> bytes:
    return struct.pack(f"{order}HHI", tag, kind, count) + value.ljust(4, b"\0")


SIX = row(0x0112, 3, 1, b"\6\0")
TEXT_RESOLUTION = row(0x011A, 2, 3, b"72\0")
# EXIF -> the size of the picture as it is shown
DAMAGED = {
    "a resolution that is text": (tiff(SIX, TEXT_RESOLUTION), TURNED),
    "a directory that is cut off": (tiff(SIX, TEXT_RESOLUTION)[:26], TURNED),
    "a value that lies nowhere": (tiff(SIX, row(0x0131, 2, 99, b"\xff\xff\xff\x7f")), TURNED),
    "more rows than there are": (tiff(SIX).replace(b"\1\0\x12", b"\xff\xff\x12"), TURNED),
    "a few bytes": (b"II*\0\x08", UPRIGHT),
    "no EXIF at all": (b"nothing of the kind", UPRIGHT),
    "an orientation that is none": (tiff(row(0x0112, 3, 1, b"\x77\0")), UPRIGHT),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [jpeg, png, webp])
@pytest.mark.parametrize("damage", DAMAGED)
def test_a_picture_with_damaged_exif_is_used_and_turned(
    tmp_path: Path, damage: str, make: object
) -> None:
    exif, size = DAMAGED[damage]
    path = tmp_path / "phone.jpg"
    path.write_bytes(make(exif))  # type: ignore[operator]
    scene(1).save(tmp_path / "good.png")
    examples, _ = scan_folder(tmp_path)
    assert {e.image.name: e.size for e in examples} == {"good.png": (96, 64), "phone.jpg": size}
    assert load_rgb(path).size == size
    assert load_pixels(path, (16, 16)).isfinite().all()
    with Image.open(io.BytesIO(thumbnail(path, 0))) as small:
        assert small.size == size


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "phone.jpg").write_bytes(jpeg(tiff(SIX, TEXT_RESOLUTION)))
    (tmp_path / "phone.txt").write_text("zibo")
    _, (problem,) = scan_folder(tmp_path)
    assert problem.path.name == "phone.jpg"
    assert "pixels are used, turned as its orientation says" in problem.message


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("prefix", [b"", b"Exif\0\0"])
def test_an_orientation_is_read_by_itself(order: str, prefix: bytes) -> None:
    value = struct.pack(f"{order}H", 8)
    exif = prefix + tiff(row(0x0112, 3, 1, value, order), order=order)
    assert orientation_of(exif) == 8
    assert all(orientation_of(exif[:end]) in (1, 8) for end in range(len(exif)))


def test_texts_of_a_png_that_cannot_be_read_are_left_aside(tmp_path: Path) -> None:
    """A workflow of more than a megabyte, and a text whose checksum is wrong."""
    texts = PngImagePlugin.PngInfo()
    texts.add_text("workflow", "x" * 2_000_000, zip=True)
    with io.BytesIO() as file:
        scene(1).save(file, "PNG", pnginfo=texts)
        large = file.getvalue()
    wrong = large[:33] + struct.pack(">I", 3) + b"tEXta\0b" + bytes(4) + large[33:]
    for raw in (large, wrong):
        (tmp_path / "p.png").write_bytes(raw)
        assert load_rgb(tmp_path / "p.png").tobytes() == scene(1).tobytes()
        assert read_picture(raw).damaged


def test_an_avif_whose_exif_is_refused_is_used() -> None:
    with io.BytesIO() as file:
        exif = Image.Exif()
        exif[0x0131] = "a program"
        scene(1).save(file, "AVIF", exif=exif)
        raw = file.getvalue()
    place = next(p for mark in (b"II*\0", b"MM\0*") if (p := raw.find(mark)) >= 0)
    damaged = raw[:place] + b"\x11\x22\x33\x44" + raw[place + 4 :]
    picture = read_picture(damaged)
    assert picture.image.size == (96, 64) and picture.damaged


def test_pixels_that_are_damaged_are_damaged() -> None:
    whole = jpeg(tiff(SIX))
    with pytest.raises(OSError):
        read_picture(whole[: len(whole) // 2])


def test_whatever_a_parser_raises_is_one_error() -> None:
    for error in (
        TypeError("x"),
        struct.error("y"),
        AttributeError(),
        RecursionError(),
        zlib.error(),
    ):
        with pytest.raises(ForeignDataError), parsing(OSError):
            raise error
    with pytest.raises(OSError), parsing(OSError):
        raise OSError("as it is")
    with pytest.raises(KeyboardInterrupt), parsing():
        raise KeyboardInterrupt
