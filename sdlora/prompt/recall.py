"""Settings read back from a picture or a pasted text, whichever program wrote it.

Pictures come from anywhere: only their headers and texts are read, each up to a size, and what is
damaged is an error with a name or plain text, never a crash.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from sdlora.errors import DataError
from sdlora.prompt.comfyui import read_comfyui
from sdlora.prompt.infotext import (
    DETAILS,
    EXIF_IFD,
    MAKER_NOTE,
    PARAMETERS,
    USER_COMMENT,
    UTF_16,
    hashed_name,
)
from sdlora.prompt.programs import PROGRAMS
from sdlora.prompt.recalled import Recalled, read_a1111, read_json
from sdlora.prompt.scanner import tokens

_FORMATS = ("PNG", "JPEG", "WEBP")
_MOST_PIXELS = 80_000_000
_LARGEST_TEXT = 8 * 2**20  # letters; ComfyUI's graphs are the largest there are
# What Pillow raises, over its formats, on a file that is damaged or meant to do damage.
_BROKEN = (
    *(OSError, ValueError, SyntaxError, EOFError, KeyError, IndexError, TypeError),
    *(struct.error, zlib.error, OverflowError, Image.DecompressionBombError),
)
# Where programs put their texts, the best first.
_CHUNKS = (PARAMETERS, "invokeai_metadata", "prompt", "workflow", "comment")
# ComfyUI writes 'prompt:{...}' and 'workflow:{...}' into these EXIF tags, SwarmUI plain JSON.
_EXIF_TEXTS = (0x010E, 0x010F, 0x0110)


def parse_infotext(text: str) -> Recalled:
    """What a text says of a picture: A1111's form, or the JSON of InvokeAI, SwarmUI, Fooocus or
    ComfyUI. Never raises; JSON of another kind says nothing, any other text is a prompt.
    """
    text = text[:_LARGEST_TEXT]
    record = read_json(text) if text.lstrip().startswith("{") else None
    if isinstance(record, Mapping):
        for read in (*(program.read for program in PROGRAMS), read_comfyui):
            if recalled := read(record):
                return recalled
        return Recalled()
    return read_a1111(text)


def read_parameters(path: Path) -> Recalled:
    """What a PNG, JPEG or WebP says of its making.

    Of our own pictures everything, whatever the prompt looks like. DataError when it is no such
    picture, when it is damaged, or when it says nothing.
    """
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=_FORMATS) as image:
            texts = _texts(image)
    except _BROKEN:
        raise DataError(
            f"{path.name} cannot be read as a picture; it has to be a PNG, JPEG or WebP"
        ) from None
    found = [parse_infotext(texts[chunk]) for chunk in _CHUNKS if texts.get(chunk)]
    found.sort(key=lambda one: (not one.fields, not one.prompt))
    recalled = found[0] if found and (found[0].fields or found[0].prompt) else None
    details = read_json(texts.get(DETAILS, ""))
    if isinstance(details, dict):
        return _detailed(recalled or Recalled(), details)
    if recalled is None:
        raise DataError(f"{path.name} says nothing of how it was made; its texts may be stripped")
    return recalled


def rename_loras(prompt: str, hashes: Mapping[str, str], known: Callable[[str], str | None]) -> str:
    """The prompt with the names that LoRAs have here.

    `hashes` are the picture's, by the names its tags use; `known` gives the name that belongs to
    a hash here, or None, which leaves the tag as it is. Only names change.
    """
    pieces: list[str] = []
    for token in tokens(prompt):
        text = token.text
        if token.kind in ("tag", "bare"):
            kind, _, inside = text.strip("<>").partition(":")
            name, colon, weights = inside.partition(":")
            its_hash = hashes.get(hashed_name(name.strip()))
            here = known(its_hash) if its_hash else None
            if here and here != name.strip() and kind.lower() in ("lora", "lyco"):
                text = f"<{kind}:{here}{colon}{weights}>"
        pieces.append(text)
    return "".join(pieces)


def _detailed(recalled: Recalled, details: dict[str, Any]) -> Recalled:
    """With our own record, which knows the prompts without doubt."""
    request = details.get("request")
    said = request if isinstance(request, dict) else details
    prompt, negative = said.get("prompt"), said.get("negative_prompt")
    return replace(
        recalled,
        prompt=prompt if isinstance(prompt, str) else recalled.prompt,
        negative=negative if isinstance(negative, str) else recalled.negative,
        program="sdlora",
        details=details,
    )


def _texts(image: Image.Image) -> dict[str, str]:
    """The texts of a picture by the names of their chunks."""
    silent = not image.info.keys() & {*_CHUNKS, "exif"}
    if silent and image.format == "PNG" and image.width * image.height <= _MOST_PIXELS:
        image.load()  # a PNG's texts may stand behind its pixels
    texts = {str(key): value for key, value in image.info.items() if isinstance(value, str)}
    comment = image.info.get("comment")
    if isinstance(comment, bytes):
        texts["comment"] = comment.decode("utf-8", "replace")
    exif = image.getexif()
    inner = exif.get_ifd(EXIF_IFD)
    for tag in _EXIF_TEXTS:
        name, _, value = _decoded(exif.get(tag)).partition(":")
        if name.strip().lower() in ("prompt", "workflow"):
            texts.setdefault(name.strip().lower(), value)
        elif name.startswith("{"):
            texts.setdefault(PARAMETERS, f"{name}:{value}")
    for place in (inner, exif):
        if comment := _decoded(place.get(USER_COMMENT)):
            texts.setdefault(PARAMETERS, comment)
        name, _, value = _decoded(place.get(MAKER_NOTE)).partition("\0")
        if name == DETAILS:
            texts.setdefault(DETAILS, value)
    return {key: value for key, value in texts.items() if len(value) <= _LARGEST_TEXT}


def _decoded(value: Any) -> str:
    """An EXIF text. The standard names an encoding in eight bytes; which end of UTF-16 comes first
    it leaves to the writer, and the zeros of plain letters tell."""
    if isinstance(value, str):
        return value
    if not isinstance(value, bytes):
        return ""
    if value.startswith(UTF_16):
        body = value.removeprefix(UTF_16)
        big = body[0::2].count(0) >= body[1::2].count(0)
        marked = body[:2] in (b"\xff\xfe", b"\xfe\xff")
        return body.decode("utf-16" if marked else f"utf-16-{'be' if big else 'le'}", "replace")
    return value.removeprefix(b"ASCII\0\0\0").lstrip(b"\0").decode("utf-8", "replace")
