"""Pictures for the page, under random tokens in place of paths.

The browser asks for `/media/TOKEN`, and a token exists only for a picture that the page has shown:
no path is built from a request. The first bytes of a file decide that it is a picture, and the
response is labelled so that a browser treats it as nothing else.
"""

from __future__ import annotations

import hashlib
import io
import re
import secrets
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path

from fastapi import APIRouter, Response
from PIL import Image

from sdlora.data.foreign_files import ForeignDataError, parsing
from sdlora.data.image_files import BROKEN, FORMATS, TooLarge, check_size, read_picture, upright

SIGNATURES = {
    rb"\x89PNG\r\n\x1a\n": "image/png",
    rb"\xff\xd8\xff": "image/jpeg",
    rb"(?s)RIFF.{4}WEBP": "image/webp",
}
SMALL_PX = 384  # the longer side of a thumbnail
MAX_TOKENS = 20_000
HEADERS = {
    "content-security-policy": "default-src 'none'; sandbox",
    "cache-control": "private, max-age=86400, immutable",
}


class Media:
    """Token table of the pictures that may be requested, and its routes."""

    def __init__(self, roots: tuple[Path, ...]) -> None:
        """Pictures outside `roots`, and links that lead out of them, get no token."""
        self._roots = tuple(root.resolve() for root in roots)
        self._secret = secrets.token_bytes(16)
        self._paths: OrderedDict[str, Path] = OrderedDict()
        self.router = APIRouter()
        self.router.get("/media/{token}")(self.full)
        self.router.get("/media/{token}/small")(self.small)

    def link(self, path: str | Path) -> str:
        """Address of a picture, to which '/small' is added for its thumbnail; '' for a file that
        cannot be served."""
        try:
            real = Path(path).resolve()
            if not any(real.is_relative_to(root) for root in self._roots) or not real.is_file():
                return ""
            changed = real.stat().st_mtime_ns
        except (OSError, ValueError, RuntimeError):  # no path at all, gone, or links in a circle
            return ""
        identity = f"{real}\0{changed}".encode("utf-8", "surrogatepass")
        token = hashlib.blake2b(identity, key=self._secret, digest_size=16).hexdigest()
        self._paths[token] = real
        self._paths.move_to_end(token)
        if len(self._paths) > MAX_TOKENS:
            self._paths.popitem(last=False)
        return f"/media/{token}"

    def path(self, token: str) -> Path | None:
        """The picture of a token; None for an unknown one."""
        return self._paths.get(token)

    def full(self, token: str) -> Response:
        """The file byte for byte, metadata included; PNG, JPEG and WebP only."""
        path = self._paths.get(token)
        try:
            content = path.read_bytes() if path else b""
        except OSError:
            content = b""
        media_type = next((t for mark, t in SIGNATURES.items() if re.match(mark, content)), None)
        if path is None or media_type is None:
            return Response("not found", 404, media_type="text/plain")
        return Response(content, media_type=media_type, headers=HEADERS)

    def small(self, token: str) -> Response:
        """A thumbnail, encoded anew."""
        path = self._paths.get(token)
        try:
            content = thumbnail(path, path.stat().st_mtime_ns) if path else b""
        except BROKEN:
            content = b""
        if not content:
            return Response("not found", 404, media_type="text/plain")
        return Response(content, media_type="image/webp", headers=HEADERS)


@lru_cache(maxsize=512)
def thumbnail(path: Path, _mtime_ns: int) -> bytes:
    """A WebP of at most SMALL_PX pixels a side. Raises what Pillow raises on a broken file."""
    shown = _decode_small(path) or read_picture(path).image
    shown.thumbnail((SMALL_PX, SMALL_PX))
    thumb = shown.convert("RGBA" if shown.has_transparency_data else "RGB")
    with io.BytesIO() as written:
        thumb.save(written, "WEBP", quality=90)
        return written.getvalue()


def _decode_small(path: Path) -> Image.Image | None:
    """The picture decoded at a reduced size; None where only `read_picture` may read it."""
    try:
        with parsing(TooLarge), Image.open(path, formats=FORMATS) as image:
            check_size(image)
            image.draft("RGB", (SMALL_PX * 2, SMALL_PX * 2))
            image.load()
            return upright(image)
    except ForeignDataError:
        return None
