"""One look at a file: whether it is a picture that can be used, and what can be told of it."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from sdlora.data.images import BROKEN, FORMATS_SAID, as_shown, open_picture, other_kind
from sdlora.data.likeness import Print, edge_width, fingerprint

# Files that their owner surely takes for pictures, whether or not we can read them.
PICTURE_SUFFIXES = frozenset((
    ".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".heif",
    ".avif", ".jxl", ".jp2", ".psd", ".svg",
))  # fmt: skip
MAX_BYTES = 512 * 2**20
_MOVING = frozenset({"PNG", "WEBP", "AVIF"})


@dataclass(frozen=True)
class Look:
    """A usable picture has a `size`, (width, height) upright; else `what` says why it is none,
    '' for a file that nobody takes for one. `digest` is the sha256 of its bytes."""

    size: tuple[int, int] = (0, 0)
    digest: str = ""
    print: Print = Print()
    edges: float = 0.0  # how wide its sharpest edges are: likeness.edge_width
    see_through: bool = False
    what: str = ""
    advice: str = ""


def look_at(file: Path) -> Look:
    """The file, decoded to its end, since only that finds a truncated one; remembered while it
    does not change."""
    try:
        stat = file.stat()
    except OSError as error:
        return Look(what=f"cannot be read: {error.strerror}")
    return _look(file, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=20_000)
def _look(file: Path, _mtime_ns: int, size: int) -> Look:
    again = f"save it as {FORMATS_SAID}"
    if size > MAX_BYTES:
        return Look(what=f"has {size // 2**20} MiB, too many for a picture", advice=again)
    try:
        raw = file.read_bytes()
        with open_picture(io.BytesIO(raw)) as image:
            image.load()
            return _told(image, hashlib.sha256(raw).hexdigest())
    except UnidentifiedImageError:
        taken_for_one = file.suffix.lower() in PICTURE_SUFFIXES
        return Look(what=f"is {other_kind(raw[:32])}" if taken_for_one else "", advice=again)
    except BROKEN as error:
        return Look(what=f"cannot be read: {error}", advice=f"save it again as {FORMATS_SAID}")


def _told(image: Image.Image, digest: str) -> Look:
    moves = image.format in _MOVING and getattr(image, "is_animated", False)
    upright = ImageOps.exif_transpose(image)
    shown = as_shown(upright)
    alpha = upright.convert("RGBA").getchannel("A") if upright.has_transparency_data else None
    return Look(
        size=shown.size,
        digest=digest,
        print=fingerprint(shown),
        edges=edge_width(shown),
        see_through=alpha is not None and alpha.getextrema() != (255, 255),
        what="is a moving picture; only its first frame is used" if moves else "",
    )
