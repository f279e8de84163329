"""Infotext: generation settings as A1111 writes them, and writing of pictures with it.

    prompt, tags included
    Negative prompt: ...
    Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512, Lora hashes: "neon: 1a2b..."

AUTOMATIC1111/stable-diffusion-webui 1.10: modules/processing.py create_infotext,
modules/images.py save_image_with_geninfo, modules/infotext_utils.py quote. What that form cannot
hold without loss stands beside it, as JSON in a chunk of our own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdlora.errors import SettingsError
from sdlora.files import write_atomically

PARAMETERS, DETAILS = "parameters", "sdlora"  # PNG chunks
EXIF_IFD, USER_COMMENT, MAKER_NOTE = 0x8769, 0x9286, 0x927C
UTF_16, UTF_8 = b"UNICODE\0", b"\0" * 8  # how EXIF marks a comment's encoding
EXIF_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_LARGEST_EXIF = 60_000  # bytes; a JPEG segment holds 65,533
# A1111 1.10's own fields stand in this order, then those of its extensions, then the last two.
_FIRST = (
    *("Steps", "Sampler", "Schedule type", "CFG scale", "Image CFG scale", "Seed"),
    *("Face restoration", "Size", "Model hash", "Model", "FP8 weight"),
    *("Cache FP16 weight for LoRA", "VAE hash", "VAE", "Variation seed"),
    *("Variation seed strength", "Seed resize from", "Denoising strength"),
    *("Conditional mask weight", "Clip skip", "ENSD", "Token merging ratio"),
    *("Token merging ratio hr", "Init image hash", "RNG", "Tiling"),
)
_LAST = ("Version", "User")
_ORDER = {name: place for place, name in enumerate(_FIRST, -len(_FIRST))}
_ORDER |= {name: place for place, name in enumerate(_LAST, 1)}


def infotext(prompt: str, negative_prompt: str, fields: Mapping[str, object]) -> str:
    """Return the infotext, its fields in A1111's order; None and empty ones are left out."""
    texts = {key: str(value) for key, value in fields.items() if value not in (None, "")}
    names = sorted(texts, key=lambda name: _ORDER.get(name, 0))
    lines = [
        prompt,
        f"Negative prompt: {negative_prompt}" if negative_prompt else "",
        ", ".join(_field(name, texts[name]) for name in names),
    ]
    return "\n".join(line for line in lines if line).strip()


def _field(name: str, value: str) -> str:
    """Return `name: value`, with the value as JSON if it contains a separator of fields."""
    if name == value:
        return name
    plain = not set(value) & set(',:\n\r"') and value == value.strip()
    return f"{name}: {value if plain else json.dumps(value, ensure_ascii=False)}"


def lora_hashes(hashes: Mapping[str, str]) -> str:
    """Return `name: hash, name: hash` for `Lora hashes` and `TI hashes`; as in A1111, ':' and ','
    are removed from the names."""
    return ", ".join(f"{hashed_name(name)}: {hash_}" for name, hash_ in hashes.items())


def hashed_name(name: str) -> str:
    """Return a LoRA's name as written in the list of hashes."""
    return name.translate(str.maketrans("", "", ":,"))


Publish = Callable[[Path, Callable[[Path], object]], Path]


def write_png(
    image: Image.Image,
    path: Path,
    parameters: str,
    details: Mapping[str, Any] | None = None,
    *,
    publish: Publish = write_atomically,
) -> Path:
    """Write the picture with its infotext atomically; returns its path.

    `details` is our lossless record: JSON values, the request under 'request'. `publish` decides
    about an existing file of that name.
    """
    chunks = PngInfo()
    chunks.add_text(PARAMETERS, _encodable(parameters))
    if details is not None:
        chunks.add_text(DETAILS, json.dumps(details))
    return publish(path, lambda temporary: image.save(temporary, "png", pnginfo=chunks))


def write_exif(
    image: Image.Image,
    path: Path,
    parameters: str,
    details: Mapping[str, Any] | None = None,
    *,
    publish: Publish = write_atomically,
) -> Path:
    """Write a JPEG or WebP, by the path's ending, with its text as EXIF UserComment.

    UTF-16 with the high byte first, as A1111 writes it; `details` in a MakerNote. SettingsError for
    another ending, or when both together are too large for EXIF.
    """
    its_format = EXIF_FORMATS.get(path.suffix.lower())
    comment = UTF_16 + _encodable(parameters).encode("utf-16-be")
    note = b"" if details is None else f"{DETAILS}\0{json.dumps(details)}".encode()
    if its_format is None or len(comment) + len(note) > _LARGEST_EXIF:
        raise SettingsError(
            "{file} cannot hold this picture's text; a PNG can, whatever the text is",
            file=path.name,
        )
    exif = Image.Exif()
    place = exif.get_ifd(EXIF_IFD)
    place[USER_COMMENT] = comment
    if note:
        place[MAKER_NOTE] = note
    return publish(path, lambda temporary: image.save(temporary, its_format, quality=95, exif=exif))


def _encodable(text: str) -> str:
    """Replace lone surrogates, which no encoding has."""
    return text.encode("utf-8", "replace").decode()
