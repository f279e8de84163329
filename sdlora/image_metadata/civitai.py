"""Resources that Civitai lists in its pictures: models by title, not by file name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sdlora.errors import LoraFileError
from sdlora.image_metadata.a1111 import read_json
from sdlora.lora.library.library import Library
from sdlora.messages import Message
from sdlora.prompt.scanner import number
from sdlora.prompt.tags import format_tag

_LORAS = {"lora", "locon", "lycoris", "dora"}
_MOST = 32
_SHORTENED = 80  # letters


def civitai_resources(text: str, library: Library) -> Iterator[Message]:
    """Yield a message for each model of `Civitai resources: [...]`. Its titles are not file names,
    so nothing is added to the prompt; for a LoRA the message gives the tag to write."""
    rows = read_json(text)
    rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    for row in rows[:_MOST]:
        yield _resource_message(row, library)
    if len(rows) > _MOST:
        yield Message("Civitai lists {count} more models", count=len(rows) - _MOST)


def _resource_message(row: dict[str, Any], library: Library) -> Message:
    kind = _plain_title(row.get("type")) or "model"
    name = _plain_title(row.get("modelName") or row.get("name") or row.get("air"))
    version, version_id = (
        _plain_title(row.get("modelVersionName")),
        _plain_title(row.get("modelVersionId")),
    )
    parts = (f"version {version}" if version else "", f"id {version_id}" if version_id else "")
    about = ", ".join(filter(None, parts))
    given = number(str(row.get("weight")))
    weight = 1.0 if given is None else given
    text = "it was made on Civitai with the {kind} {name!r}" + (" ({about})" if about else "")
    if kind.lower() not in _LORAS:
        return Message(text, kind=kind, name=name or "without a name", about=about)
    try:
        file_name, advice = library.find(name).full_name if name else "", ""
    except LoraFileError:
        file_name, advice = "", " once its file is here"
    tag = format_tag(file_name or name or "NAME", weight)
    text += " at weight {weight:g}; its tag is not in the prompt: add {tag}{advice}"
    return Message(text, kind=kind, name=name, about=about, weight=weight, tag=tag, advice=advice)


def _plain_title(value: Any) -> str:
    return str(value)[:_SHORTENED] if isinstance(value, str | int | float) else ""
