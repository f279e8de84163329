"""Claims of other programs about a checkpoint: sidecars beside it, and A1111's cache of hashes.

All of it is untrusted input and only ever shown as claimed, or used to find a file; no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sdlora.lora.library.file_info import one_line, read_sidecar
from sdlora.messages import Message
from sdlora.model_files import MODEL_SIDECARS, ModelFile
from sdlora.text_files import json_value

MAX_CACHE = 64 * 2**20  # bytes of A1111's cache.json
MAX_CLAIM = 120  # letters
_SHA256 = re.compile(r"[0-9a-f]{64}")
JsonObject = Mapping[str, Any]


class Claims(NamedTuple):
    """Facts of a checkpoint that files beside it state, none of them checked."""

    title: str = ""  # the name it was published under
    version: str = ""
    base: str = ""  # Civitai's name, such as "Pony" or "SDXL 1.0"
    sha256: str = ""
    by: str = ""  # the file that claims the hash


def claims_of(model: ModelFile, caches: dict[Path, dict[str, str]]) -> tuple[Claims, list[Message]]:
    """Return (what is claimed of a model, notes about files that are not used). `caches` is a
    cache that this call adds to: hashes by path for each cache.json of A1111."""
    notes: list[Message] = []
    claims = Claims()
    for ending, path in zip(MODEL_SIDECARS, model.sidecars, strict=True):
        if path:
            page = read_sidecar(path, notes)
            claims = _first(claims, _claims_on(ending, page)._replace(by=Path(path).name))
    if not claims.sha256 and not model.is_folder and (hash_ := _a1111_hash(model, caches)):
        claims = claims._replace(sha256=hash_, by="cache.json")
    return claims._replace(by=claims.by if claims.sha256 else ""), notes


def _first(known: Claims, more: Claims) -> Claims:
    """Return the claims, those that are empty filled from others."""
    by = known.by if known.sha256 else more.by
    return Claims(*(old or new for old, new in zip(known, more, strict=True)))._replace(by=by)


def _claims_on(ending: str, page: JsonObject) -> Claims:
    if ending == ".civitai.info":
        model = page.get("model")
        hashes = [_text(_table(file.get("hashes")), "SHA256") for file in _tables(page, "files")]
        title = _text(model if isinstance(model, dict) else {}, "name")
        return Claims(title, _text(page, "name"), _text(page, "baseModel"), _sha256(hashes))
    if ending == ".cm-info.json":
        hashes = [_text(_table(page.get("Hashes")), "SHA256")]
        names = ("ModelName", "VersionName", "BaseModel")
        title, version, base = (_text(page, name) for name in names)
        return Claims(title, version, base, _sha256(hashes))
    if ending == ".metadata.json":
        return Claims(
            _text(page, "model_name"), "", _text(page, "base_model"),
            _sha256([_text(page, "sha256")]),
        )  # fmt: skip
    return Claims(base=_text(page, "sd version"))


def _table(value: object) -> JsonObject:
    return value if isinstance(value, dict) else {}


def _tables(page: JsonObject, name: str) -> list[JsonObject]:
    rows = page.get(name)
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _text(table: JsonObject, name: str) -> str:
    value = table.get(name)
    return one_line(value, MAX_CLAIM) if isinstance(value, str) else ""


def _sha256(hashes: list[str]) -> str:
    """Return the hash of a page that names one file; of several it is not known which it is."""
    known = {text.lower() for text in hashes if _SHA256.fullmatch(text.lower())}
    return known.pop() if len(known) == 1 else ""


def _a1111_hash(model: ModelFile, caches: dict[Path, dict[str, str]]) -> str:
    """Return the hash in the cache.json of the A1111 whose model folder this lies in."""
    root = Path(model.path).parent
    for _ in Path(model.folder).parts:
        root = root.parent
    cache = root.parent.parent / "cache.json"
    if cache not in caches:
        caches[cache] = _read_cache(cache)
    below = f"{model.folder}/{Path(model.path).name}".strip("/")
    return caches[cache].get(f"checkpoint/{below}", "")


def _read_cache(file: Path) -> dict[str, str]:
    try:
        if file.stat().st_size > MAX_CACHE:
            return {}
        rows = _table(_table(json_value(file.read_bytes())).get("hashes"))
    except (OSError, ValueError):
        return {}
    hashes = {name.replace("\\", "/"): _text(_table(row), "sha256") for name, row in rows.items()}
    return {name: hash_ for name, hash_ in hashes.items() if _SHA256.fullmatch(hash_)}
