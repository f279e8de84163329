"""Metadata of a picture, and the reader of A1111's infotext."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from sdlora.image_metadata.infotext import hashed_name
from sdlora.lora.format.hashes import EMPTY_SHA256
from sdlora.messages import Message
from sdlora.prompt.tags import format_tag, parse_prompt

_NEGATIVE = "Negative prompt:"
_NAME = re.compile(r"\w[\w \-/]+")
_QUOTED = re.compile(r'\s*("(?:\\.|[^\\"])*")\s*(?:,|\Z)')
_LONGEST_LIST = 2**15  # letters
_FEWEST_FIELDS = 3  # a line of parameters has at least so many, as in A1111
# Where the parameters begin, at the beginning of a line or where a line break was lost.
_STEPS = re.compile(r"(?<!\w)Steps: ?[0-9]+ ?, ?[A-Z][\w \-/]*:")
_CORE = {"Steps", "Sampler", "CFG scale", "Seed", "Size", "Model", "Model hash"}
_CORE |= {"Lora hashes", "TI hashes", "Hashes", "Version", "Civitai resources"}
_TRAILING = re.compile(r"([A-Z][\w \-/]*): ?(.*)")
_LOST_BREAK = re.compile(r"(?<=[^,\s])(?<!Negative) (?=(?:Negative )?Template: )")
_HASHED = {"lora": "Lora hashes", "lyco": "Lora hashes", "embed": "TI hashes"}


@dataclass(frozen=True)
class ImageMetadata:
    """Generation settings read from a picture, whichever program made it.

    `fields` have A1111's names: Steps, Sampler, Seed, Size ... `prompt` has LoRA tags also where
    the program stores its LoRAs elsewhere. `details` is our own lossless record. `problems` name
    what the picture holds and is not taken over.
    """

    prompt: str = ""
    negative: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    program: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    problems: tuple[Message, ...] = ()

    @property
    def lora_hashes(self) -> dict[str, str]:
        """Name -> hash of the LoRAs whose hashes the picture has."""
        return self._hashes("Lora hashes")

    @property
    def embedding_hashes(self) -> dict[str, str]:
        """Name -> hash of the textual inversions whose hashes the picture has."""
        return self._hashes("TI hashes")

    def _hashes(self, title: str) -> dict[str, str]:
        """Return name -> hash of the field `title`, which wins over the same kind in `Hashes`.
        Hashes of no bytes are left out."""
        rows = read_json(self.fields.get("Hashes", ""))
        pairs = (
            []
            if not isinstance(rows, dict)
            else [(*k.partition(":")[::2], v) for k, v in rows.items()]
        )
        listed = {
            hashed_name(name.strip()): value
            for kind, name, value in pairs
            if _HASHED.get(kind.strip().lower()) == title and isinstance(value, str)
        }
        hashes = listed | parse_hashes(self.fields.get(title, ""))
        return {name: value for name, value in hashes.items() if not is_empty_hash(value)}


def is_empty_hash(hash_: str) -> bool:
    """True if a hash is empty or that of no bytes."""
    return EMPTY_SHA256.startswith(hash_.strip().lower().removeprefix("0x"))


def read_a1111(text: str) -> ImageMetadata:
    """Read the infotext of A1111, Forge and programs that write the same format.

    A1111 takes the last line as the parameters if it holds at least three; others write lines
    after it, or lose the line breaks. The negative prompt begins at the first line with its prefix.
    A prompt that contains such lines is read wrong, so our pictures store their details as well.
    """
    lines = text.replace("\r\n", "\n").strip().split("\n")
    row, column = _parameters_at(lines)
    head = [*lines[:row], *([lines[row][:column].rstrip()] if column else [])]
    behind = lines[row + 1 :]
    values: dict[str, str] = {}
    if row < len(lines):
        line = lines[row][column:]
        line, *lost = _LOST_BREAK.split(line) if column else [line]
        values = _field_values(line)
        behind = [*lost, *behind]
    problems = _read_behind(behind, values)
    prompt, negative = _split_negative(head, bool(values))
    negative = negative or values.pop(_NEGATIVE[:-1], "")
    version = values.get("Version", "")
    program = next((name for sign, name in _VERSIONS if version.startswith(sign)), "A1111")
    program = program if values else ""
    return ImageMetadata(prompt.strip(), negative.strip(), values, program, problems=problems)


_VERSIONS = (("f", "Forge"), ("neo", "Forge"), ("sdlora", "sdlora"), ("Fooocus", "Fooocus"))


def _parameters_at(lines: list[str]) -> tuple[int, int]:
    """Return (row, column) where the parameters begin; (number of lines, 0) without parameters."""
    last = len(lines) - 1
    position = len(lines), 0
    for row in range(last, -1, -1):
        starts = [match.start() for match in _STEPS.finditer(lines[row])]
        if starts and _are_parameters(lines[row][starts[-1] :]):
            whole = starts[-1] == 0 or next(_iter_fields(lines[row]), ("", None))[0] in _CORE
            position = row, 0 if whole else starts[-1]
            break
    if position[0] != last and _are_parameters(lines[last]):
        behind_others = position[0] < last and not _CORE & _field_values(lines[last]).keys()
        return position if behind_others else (last, 0)
    return position


def _are_parameters(line: str) -> bool:
    values = dict(_iter_fields(line)).values()
    return sum(value is not None for value in values) >= _FEWEST_FIELDS


def _field_values(line: str) -> dict[str, str]:
    """Return the fields of a line; a name without value is its own value, as A1111 writes it."""
    return {name: name if value is None else value for name, value in _iter_fields(line)}


def _read_behind(lines: list[str], values: dict[str, str]) -> tuple[Message, ...]:
    """Add fields from the lines after the parameters: more parameters, or `Template: ...` over
    several lines. Returns a problem when other text is left."""
    last, stray, templates = "", list[str](), dict[str, list[str]]()
    for line in lines:
        match = _TRAILING.fullmatch(line)
        if match and match[1] in _CORE:
            for name, value in _field_values(line).items():
                values.setdefault(name, value)
        elif match:
            last = match[1]
            templates[last] = [match[2]]
        elif last:
            templates[last].append(line)
        elif line.strip():
            stray.append(line.strip())
    for name, texts in templates.items():
        values.setdefault(name, "\n".join(texts).strip())
    if not stray:
        return ()
    text = " ".join(stray)[:200]
    return (Message("the text after its parameters is not taken over: {text!r}", text=text),)


def _split_negative(lines: list[str], has_fields: bool) -> tuple[str, str]:
    """Return (prompt, negative prompt); with fields, the line break between may be missing."""
    row = next((i for i, line in enumerate(lines) if line.startswith(_NEGATIVE)), len(lines))
    prompt, negative = "\n".join(lines[:row]), "\n".join(lines[row:])
    if has_fields and not negative:
        prompt, mark, rest = prompt.partition(f" {_NEGATIVE}")
        negative = mark.strip() + rest
    return prompt, negative.removeprefix(_NEGATIVE)


def _iter_fields(line: str) -> Iterator[tuple[str, str | None]]:
    """Yield (name, value) of a line of parameters; the value is None for a name alone."""
    place = 0
    while place < len(line):
        comma = line.find(",", place)
        end = comma if comma >= 0 else len(line)
        colon = line.find(":", place, end)
        name = line[place : colon if colon >= 0 else end].strip()
        value: str | None = None
        if colon >= 0:
            value, end = _parse_value(line, colon + 1, end)
        if _NAME.fullmatch(name):
            yield name, value
        place = end + 1


def _parse_value(line: str, start: int, comma: int) -> tuple[str, int]:
    """Return (value, its end): a JSON string, a JSON list as Civitai's, or up to the comma."""
    if quoted := _QUOTED.match(line, start):
        value = read_json(quoted[1])
        end = quoted.end() - quoted[0].endswith(",")
        return (value if isinstance(value, str) else quoted[1]), end
    begin = start + (line[start : start + 1] == " ")
    if line[begin : begin + 1] in ("[", "{"):
        nearby = line[
            begin : begin + _LONGEST_LIST
        ]  # limits the time of JSON errors, which count lines
        with suppress(ValueError, RecursionError):
            length = json.JSONDecoder().raw_decode(nearby)[1]
            return nearby[:length], begin + length
    return line[start:comma].strip(), comma


def read_json(text: str) -> Any:
    """Parse JSON; None when the text is not JSON. Never raises."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def parse_hashes(text: str) -> dict[str, str]:
    """`name: hash, name: hash` -> {name: hash}; Fooocus writes a weight after the hash."""
    pairs = (pair.split(":") for pair in text.split(","))
    return {pair[0].strip(): pair[1].strip() for pair in pairs if len(pair) > 1}


def with_loras(prompt: str, loras: Iterable[tuple[str, float, float]]) -> tuple[str, list[Message]]:
    """Return (the prompt with a tag for each (name, unet, text encoder) that it lacks, a message
    for each that it has with another weight). Folders in names are ignored."""
    tags = {_bare_name(tag.name): tag for tag in parse_prompt(prompt).loras}
    added: list[str] = []
    problems: list[Message] = []
    for name, unet, text_encoder in loras:
        tag = tags.get(_bare_name(name))
        if not tag and name:
            added.append(format_tag(name, unet, text_encoder))
        elif tag and tag.is_constant and tag.unet != unet:
            text = "the LoRA {name!r} has the weight {tag:g} in the prompt and {listed:g} in the "
            text += "picture's list of LoRAs; that of the prompt is taken"
            problems.append(Message(text, name=name[:80], tag=tag.unet, listed=unet))
    text = prompt.rstrip() if added else prompt
    return " ".join(filter(None, (text, *added))), problems


def _bare_name(name: str) -> str:
    """Return a LoRA's name without folder and file ending."""
    last = name.replace("\\", "/").rpartition("/")[2].strip().lower()
    return last.removesuffix(".safetensors")
