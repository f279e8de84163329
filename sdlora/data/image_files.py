"""Image files: decoding, upright, whatever other data the file carries."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, NamedTuple

from PIL import ExifTags, Image

from sdlora.data.foreign_files import ForeignDataError, parsing
from sdlora.data.side_data import exif_bytes, orientation_of, without_side_data
from sdlora.messages import Message

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "AVIF")
FORMATS_TEXT = "PNG, JPEG, WebP, AVIF or BMP"
MAX_PIXELS = 80_000_000  # below the size at which Pillow itself starts to warn of bombs
_MAX_MEGAPIXELS = MAX_PIXELS // 1_000_000
# All that reading a picture file raises: what Pillow raises beyond these becomes a ValueError.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
# (first bytes, their place, name) of file formats that are not read.
_FOREIGN_FORMATS = (
    (b"GIF8", 0, "a GIF picture"),
    (b"II*\0", 0, "a TIFF picture"),
    (b"MM\0*", 0, "a TIFF picture"),
    (b"ftyphei", 4, "a HEIC picture"),
    (b"ftyphev", 4, "a HEIC picture"),
    (b"ftypmif1", 4, "a HEIF picture"),
    (b"8BPS", 0, "a Photoshop file"),
    (b"\xff\x0a", 0, "a JPEG XL picture"),
    (b"JXL ", 4, "a JPEG XL picture"),
    (b"jP  ", 4, "a JPEG 2000 picture"),
    (b"%PDF", 0, "a PDF file"),
    (b"PK\3\4", 0, "a zip file"),
    (b"<svg", 0, "an SVG drawing"),
    (b"<", 0, "a web page or an XML file"),
    (b"version https://git-lfs", 0, "a Git LFS pointer, not the picture itself"),
)
# Orientation (EXIF 2.32, tag 0x0112) -> how to turn the picture upright.
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class TooLarge(ValueError):
    """A picture with more pixels than are read; `message` says how many."""

    def __init__(self, template: str, /, **values: Any) -> None:
        self.message = Message(template, **values)
        super().__init__(self.message)


class Picture(NamedTuple):
    """A decoded picture, upright. `damaged`: its side data could not be read in full."""

    image: Image.Image
    damaged: bool = False
    turned: bool = False
    moves: bool = False

    @property
    def remark(self) -> str:
        """Message about a picture that is used; '' for none."""
        remarks = []
        if self.damaged:
            template = "has damaged EXIF or other side data; its pixels are used"
            template += ", turned as its orientation says" if self.turned else ""
            remarks.append(Message(template))
        if self.moves:
            remarks.append(Message("is a moving picture; only its first frame is used"))
        if len(remarks) == 2:
            return Message("{first}; it {second}", first=remarks[0], second=remarks[1])
        return remarks[0] if remarks else ""


def read_picture(source: Path | bytes) -> Picture:
    """Return the picture of a file or of its bytes, decoded to its end. Raises one of BROKEN."""
    raw = source if isinstance(source, bytes) else source.read_bytes()
    try:
        return _upright(_decode_image(raw), raw)
    except TooLarge:
        raise
    except BROKEN:
        bare = without_side_data(raw)
        if bare == raw:
            raise
        try:
            image = _decode_image(bare)
        except BROKEN:
            image = None
        if image is None:
            raise
    return _upright(image, raw, damaged=True)


def foreign_format(start: bytes) -> str:
    """Return the name of a file's format, which is none of FORMATS, from its first bytes."""
    if not start:
        return "an empty file"
    names = (name for mark, at, name in _FOREIGN_FORMATS if start[at : at + len(mark)] == mark)
    return next(names, "no picture that we can read")


def upright(image: Image.Image, raw: bytes = b"") -> Image.Image:
    """A picture turned as its orientation says, as far as that can be read."""
    return _upright(image, raw).image


def check_size(image: Image.Image) -> None:
    """Refuse a picture of too many pixels before it is decoded. TooLarge."""
    if (count := image.width * image.height) > MAX_PIXELS:
        millions = round(count / 1e6)
        template = "it has {count} million pixels, more than the {limit} that are read"
        raise TooLarge(template, count=millions, limit=_MAX_MEGAPIXELS)


def _decode_image(raw: bytes) -> Image.Image:
    with parsing(*BROKEN), io.BytesIO(raw) as file:
        try:
            image = Image.open(file, formats=FORMATS)
        except Image.DecompressionBombError:
            template = "it has more than {limit} million pixels"
            raise TooLarge(template, limit=_MAX_MEGAPIXELS) from None
        check_size(image)
        image.load()
        return image


def _upright(image: Image.Image, raw: bytes, damaged: bool = False) -> Picture:
    moves = image.format in _MOVING and bool(getattr(image, "is_animated", False))
    try:
        orientation = _orientation(image)
    except ForeignDataError:
        orientation, damaged = None, True
    if orientation is None:
        exif = image.info.get("exif")
        orientation = orientation_of(exif if isinstance(exif, bytes) else exif_bytes(raw))
        damaged = (
            damaged or orientation in _ORIENTATIONS
        )  # Pillow would have read it from a sound one
    turn = _ORIENTATIONS.get(orientation)
    if turn is None:
        return Picture(image, damaged, moves=moves)
    return Picture(image.transpose(turn), damaged, turned=True, moves=moves)


def _orientation(image: Image.Image) -> int | None:
    """Orientation as Pillow reads it, from EXIF or XMP; None where it finds none. ForeignDataError:
    EXIF is damaged."""
    with parsing():
        exif = image.getexif()
        orientation = exif.get(ExifTags.Base.Orientation)
        if orientation in _ORIENTATIONS and "exif" in image.info:
            exif.tobytes()  # raises where a value is not what its type says
        return None if orientation is None else orientation if orientation in _ORIENTATIONS else 1


_MOVING = frozenset({"PNG", "WEBP", "AVIF"})
