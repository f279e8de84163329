"""Statistics of one image file: usable or not, its size, hash, fingerprint and sharpness."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import UnidentifiedImageError

from sdlora.data.image_files import (
    BROKEN,
    FORMATS_TEXT,
    Picture,
    TooLarge,
    foreign_format,
    read_picture,
)
from sdlora.data.images import as_shown
from sdlora.data.near_duplicates import Fingerprint, edge_width, fingerprint
from sdlora.messages import Message

# Files that their owner surely takes for pictures, whether or not we can read them.
PICTURE_SUFFIXES = frozenset((
    ".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".heif",
    ".avif", ".jxl", ".jp2", ".psd", ".svg", ".hif", ".tga", ".exr",
    ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".rw2", ".orf",
))  # fmt: skip
MAX_BYTES = 512 * 2**20


@dataclass(frozen=True)
class ImageStats:
    """Statistics of a file. A usable picture has a `size`, (width, height) upright; else `problem`
    says why it cannot be used, '' for a file that nobody takes for a picture. `digest` is the
    sha256 of its bytes."""

    size: tuple[int, int] = (0, 0)
    digest: str = ""
    print: Fingerprint = Fingerprint()
    edges: float = 0.0  # width of its sharpest edges: near_duplicates.edge_width
    see_through: bool = False
    problem: str = ""
    advice: str = ""


def read_image_stats(file: Path) -> ImageStats:
    """Return the statistics of a file, decoded to its end, since only that finds a truncated one;
    cached while the file does not change."""
    try:
        stat = file.stat()
    except OSError as error:
        return ImageStats(problem=Message("cannot be read: {why}", why=error.strerror))
    return _look(file, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=20_000)
def _look(file: Path, _mtime_ns: int, size: int) -> ImageStats:
    again = Message("save it as {formats}", formats=FORMATS_TEXT)
    if size > MAX_BYTES:
        problem = Message("has {mib} MiB, too many for a picture", mib=size // 2**20)
        return ImageStats(problem=problem, advice=again)
    try:
        raw = file.read_bytes()
        return _seen(read_picture(raw), hashlib.sha256(raw).hexdigest())
    except UnidentifiedImageError:
        if file.suffix.lower() not in PICTURE_SUFFIXES:
            return ImageStats()
        return ImageStats(problem=Message("is {kind}", kind=foreign_format(raw[:32])), advice=again)
    except TooLarge as error:
        advice = "make it smaller: a training looks at a million pixels of it or so"
        return ImageStats(problem=Message("cannot be read: {why}", why=error), advice=advice)
    except BROKEN as error:
        advice = Message("save it again as {formats}", formats=FORMATS_TEXT)
        return ImageStats(problem=Message("cannot be read: {why}", why=error), advice=advice)


def _seen(picture: Picture, digest: str) -> ImageStats:
    image = picture.image
    shown = as_shown(image)
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    return ImageStats(
        size=shown.size,
        digest=digest,
        print=fingerprint(shown),
        edges=edge_width(shown),
        see_through=alpha is not None and alpha.getextrema() != (255, 255),
        problem=picture.remark,
    )
