"""Reader of generation settings from a picture or a pasted text, whichever program wrote it.

Pictures are untrusted: only their headers and texts are read, each up to a size; damage gives a
DataError or a problem, never another exception.
"""

from __future__ import annotations

import json
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from sdlora.errors import DataError
from sdlora.image_metadata.a1111 import ImageMetadata, read_a1111, read_json, with_loras
from sdlora.image_metadata.comfyui import read_comfyui
from sdlora.image_metadata.infotext import (
    DETAILS,
    EXIF_IFD,
    MAKER_NOTE,
    PARAMETERS,
    USER_COMMENT,
    UTF_16,
    hashed_name,
)
from sdlora.image_metadata.other_programs import PROGRAMS, read_dream
from sdlora.image_metadata.png_text import png_texts
from sdlora.messages import Message
from sdlora.prompt.scanner import tokens
from sdlora.prompt.tags import parse_prompt

_FORMATS = ("PNG", "JPEG", "WEBP")
_MOST_PIXELS = 80_000_000
_LARGEST_TEXT = 8 * 2**20  # letters; ComfyUI's graphs are the largest there are
# What Pillow raises, over its formats, on a file that is damaged or meant to do damage.
_BROKEN = (
    *(OSError, ValueError, SyntaxError, EOFError, KeyError, IndexError, TypeError),
    *(struct.error, zlib.error, OverflowError, Image.DecompressionBombError),
)
_COMMENT = "comment"  # whoever saved the picture may have written it: 'Created with GIMP'
_DREAM, _GRAPHS = "Dream", ("prompt", "workflow")
# Where programs put their texts, the best first.
_CHUNKS = (PARAMETERS, "invokeai_metadata", "sd-metadata", _DREAM, *_GRAPHS, _COMMENT)
# ComfyUI writes 'prompt:{...}' and 'workflow:{...}' into these EXIF tags, SwarmUI plain JSON.
_EXIF_TEXTS = (0x010E, 0x010F, 0x0110)
_JSON = re.compile(r'\s*\{\s*(?:"|\Z)')
_SHORTENED = 80  # letters


def parse_infotext(text: str) -> ImageMetadata:
    """Read a text: A1111's infotext, or the JSON of InvokeAI, SwarmUI, Fooocus, NovelAI or ComfyUI.

    Never raises; JSON of another program gives empty metadata, any other text is a prompt.
    """
    text = text[:_LARGEST_TEXT]
    record = read_json(text) if text.lstrip().startswith("{") else None
    if not isinstance(record, Mapping):
        return read_dream(text) or read_a1111(text)
    record = _unwrap_novelai(record)
    for read in (*(program.read for program in PROGRAMS), read_comfyui):
        if recalled := read(record):
            return recalled
    return ImageMetadata()


def read_parameters(path: Path) -> ImageMetadata:
    """Read the generation settings of a PNG, JPEG or WebP; of our own pictures all, losslessly.

    DataError when the file is no such picture, is damaged, or has no settings.
    """
    problems: list[Message] = []
    texts = _texts_of(path, problems)
    readings = {c: _read_chunk(c, texts[c], problems) for c in _CHUNKS if texts.get(c)}
    ordered = sorted(readings.values(), key=lambda r: (not r.fields, not r.prompt))
    recalled = ordered[0] if ordered else ImageMetadata()
    recalled = _with_graph(recalled, [readings.get(chunk) for chunk in _GRAPHS])
    recalled = replace(recalled, problems=(*recalled.problems, *problems))
    details = read_json(texts.get(DETAILS, ""))
    if isinstance(details, dict):
        return _with_details(recalled, details)
    if not recalled.fields and not recalled.prompt:
        text = "{file} says nothing of how it was made; its texts may be stripped"
        problems = list(recalled.problems)
        text += "; {problems}" if problems else ""
        raise DataError(text, file=path, problems=problems)
    return recalled


def _texts_of(path: Path, problems: list[Message]) -> dict[str, str]:
    """Return the texts of a picture by chunk name; of a damaged PNG those that are intact.
    DataError when it is no picture."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=_FORMATS) as image:
            return _chunk_texts(image)
    except _BROKEN:
        texts = png_texts(path, _LARGEST_TEXT)
        if not texts.keys() & {*_CHUNKS, DETAILS}:
            text = "{file} cannot be read as a picture; it has to be a PNG, JPEG or WebP, undamaged"
            raise DataError(text, file=path) from None
        problems.append(Message("the picture is damaged; what could be read of its texts is used"))
        return texts


def _unwrap_novelai(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Unwrap NovelAI's record from EXIF, where it is nested like a PNG's chunks."""
    inner = record.get("Comment")
    comment = read_json(inner) if isinstance(inner, str) else None
    if not isinstance(comment, Mapping):
        return record
    outer = {key: record[key] for key in ("Source",) if key in record}
    prompt = {"prompt": record["Description"]} if "Description" in record else {}
    return {**prompt, **outer, **comment}


def _read_chunk(chunk: str, text: str, problems: list[Message]) -> ImageMetadata:
    """Read one text of a picture. A lone comment and broken JSON are problems, not prompts."""
    recalled = parse_infotext(text)
    if recalled.fields or recalled.program or not recalled.prompt:
        if not recalled.fields and not recalled.prompt and _JSON.match(text) and len(text) > 2:
            keys = ", ".join(map(str, read_json(text)))[:_SHORTENED]
            about = Message("{chunk!r} is JSON of a program that is not known here: {keys}",
                chunk=chunk, keys=keys)  # fmt: skip
            problems.append(about)
        return recalled
    if chunk == _COMMENT:
        text = "the comment {text!r} is not taken for a prompt"
        problems.append(Message(text, text=recalled.prompt[:_SHORTENED]))
        return ImageMetadata()
    if _JSON.match(text) or chunk != PARAMETERS and chunk != "prompt":
        problems.append(Message("{chunk!r} is damaged and not read", chunk=chunk))
        return ImageMetadata()
    return recalled


def _with_graph(recalled: ImageMetadata, graphs: Iterable[ImageMetadata | None]) -> ImageMetadata:
    """Add the LoRAs of ComfyUI's graph that the infotext beside it does not name."""
    graph = next((graph for graph in graphs if graph and graph.program == "ComfyUI"), None)
    if not graph or recalled is graph or recalled.program == "ComfyUI":
        return recalled
    loras = [(tag.name, tag.unet, tag.text_encoder) for tag in parse_prompt(graph.prompt).loras]
    prompt, _ = with_loras(recalled.prompt, loras)
    problems = [*recalled.problems, *graph.problems]
    if prompt != recalled.prompt:
        text = "LoRAs that only ComfyUI's graph names are added to the prompt: {tags}"
        problems.append(Message(text, tags=prompt.removeprefix(recalled.prompt).strip()[:200]))
    return replace(recalled, prompt=prompt, problems=tuple(problems))


def rename_loras(prompt: str, hashes: Mapping[str, str], known: Callable[[str], str | None]) -> str:
    """Return the prompt with its LoRAs renamed to the files of this workspace.

    `hashes` are the picture's, by the names its tags use; `known` returns the name of the file with
    a hash, or None, which leaves the tag unchanged. Only names change.
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


def _with_details(recalled: ImageMetadata, details: dict[str, Any]) -> ImageMetadata:
    """Add our own record, whose prompts win over those of the infotext."""
    request = details.get("request")
    values = request if isinstance(request, dict) else details
    prompt, negative = values.get("prompt"), values.get("negative_prompt")
    return replace(
        recalled,
        prompt=prompt if isinstance(prompt, str) else recalled.prompt,
        negative=negative if isinstance(negative, str) else recalled.negative,
        program="sdlora",
        details=details,
        problems=() if isinstance(request, dict) else recalled.problems,
    )


def _chunk_texts(image: Image.Image) -> dict[str, str]:
    """Return the texts of a picture by the names of their chunks."""
    silent = not image.info.keys() & {*_CHUNKS, "exif", "Comment"}
    if silent and image.format == "PNG" and image.width * image.height <= _MOST_PIXELS:
        with suppress(*_BROKEN):
            image.load()  # a PNG's texts may stand behind its pixels
    texts = {str(key): value for key, value in image.info.items() if isinstance(value, str)}
    if isinstance(comment := image.info.get("comment"), bytes):
        texts[_COMMENT] = comment.decode("utf-8", "replace")
    if "Comment" in texts:
        texts[_COMMENT] = _novelai_text(texts)
    with suppress(*_BROKEN):  # damaged EXIF takes nothing from the other texts
        _add_exif(image.getexif(), texts)
    return {key: value for key, value in texts.items() if len(value) <= _LARGEST_TEXT}


def _novelai_text(texts: Mapping[str, str]) -> str:
    """Return the chunk Comment; NovelAI's with its other chunks merged in."""
    values = read_json(texts["Comment"]) if texts["Comment"].startswith("{") else None
    is_record = isinstance(values, Mapping) and (
        "uc" in values or "NovelAI" in texts.get("Software", "")
    )
    return json.dumps({**texts, "uc": ""}) if is_record else texts["Comment"]


def _add_exif(exif: Image.Exif, texts: dict[str, str]) -> None:
    """Add the texts of EXIF to those of the chunks."""
    inner = exif.get_ifd(EXIF_IFD)
    for tag in _EXIF_TEXTS:
        name, _, value = _decode_exif(exif.get(tag)).partition(":")
        if name.strip().lower() in _GRAPHS:
            texts.setdefault(name.strip().lower(), value)
        elif isinstance(read_json(f"{name}:{value}"), Mapping):
            texts.setdefault(PARAMETERS, f"{name}:{value}")
    for place in (inner, exif):
        if comment := _decode_exif(place.get(USER_COMMENT)):
            known = parse_infotext(comment)
            texts.setdefault(PARAMETERS if known.fields else _COMMENT, comment)
        name, _, value = _decode_exif(place.get(MAKER_NOTE)).partition("\0")
        if name == DETAILS:
            texts.setdefault(DETAILS, value)


def _decode_exif(value: Any) -> str:
    """Decode an EXIF text. Eight bytes name the encoding; the byte order of UTF-16 is up to the
    writer and recognised by the zero bytes of ASCII letters. Some programs write UTF-8 instead."""
    if isinstance(value, str):
        return value
    if not isinstance(value, bytes):
        return ""
    if value.startswith(UTF_16):
        body = value.removeprefix(UTF_16)
        if 0 not in body and b": " in body:
            with suppress(UnicodeDecodeError):
                return body.decode("utf-8")
        big = body[0::2].count(0) >= body[1::2].count(0)
        marked = body[:2] in (b"\xff\xfe", b"\xfe\xff")
        return body.decode("utf-16" if marked else f"utf-16-{'be' if big else 'le'}", "replace")
    return value.removeprefix(b"ASCII\0\0\0").lstrip(b"\0").decode("utf-8", "replace")
