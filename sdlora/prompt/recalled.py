"""What a picture says of its making, and A1111's text of it read back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from sdlora.prompt.tags import parse_prompt, written

_NEGATIVE = "Negative prompt:"
_NAME = re.compile(r"\w[\w \-/]+")
_QUOTED = re.compile(r'\s*("(?:\\.|[^\\"])*")\s*(?:,|\Z)')
_LONGEST_LIST = 2**15  # letters
_FEWEST_FIELDS = 3  # by which A1111 knows the line of parameters


@dataclass(frozen=True)
class Recalled:
    """What can be taken over from a picture, whichever program made it.

    `fields` have A1111's names: Steps, Sampler, Seed, Size ... `prompt` has LoRA tags also where
    the program kept its LoRAs elsewhere. `details` is our own lossless record.
    """

    prompt: str = ""
    negative: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    program: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def lora_hashes(self) -> dict[str, str]:
        """Name -> hash of the LoRAs, as far as the picture says."""
        return read_hashes(self.fields.get("Lora hashes", ""))


def read_a1111(text: str) -> Recalled:
    """A1111's text, Forge's, and what others write in its form.

    The last line holds the fields if there are at least three, and the negative prompt begins at
    the first line that says so: a prompt with such lines of its own is read wrong, which is why
    our pictures carry their details too.
    """
    *lines, last = text.strip().split("\n")
    fields = dict(_fields(last))
    if sum(value is not None for value in fields.values()) < _FEWEST_FIELDS:
        lines, fields = [*lines, last], {}
    begin = next((i for i, line in enumerate(lines) if line.startswith(_NEGATIVE)), len(lines))
    prompt, negative = "\n".join(lines[:begin]), "\n".join(lines[begin:])
    values = {name: name if value is None else value for name, value in fields.items()}
    version = values.get("Version", "")
    program = next((name for sign, name in _VERSIONS if version.startswith(sign)), "A1111")
    return Recalled(
        prompt.strip(), negative.removeprefix(_NEGATIVE).strip(), values, program if values else ""
    )


_VERSIONS = (("f", "Forge"), ("neo", "Forge"), ("sdlora", "sdlora"), ("Fooocus", "Fooocus"))


def _fields(line: str) -> Iterator[tuple[str, str | None]]:
    """(name, value) of a line of parameters; the value is None where a name stands alone."""
    place = 0
    while place < len(line):
        comma = line.find(",", place)
        end = comma if comma >= 0 else len(line)
        colon = line.find(":", place, end)
        name = line[place : colon if colon >= 0 else end].strip()
        value: str | None = None
        if colon >= 0:
            value, end = _value(line, colon + 1, end)
        if _NAME.fullmatch(name):
            yield name, value
        place = end + 1


def _value(line: str, start: int, comma: int) -> tuple[str, int]:
    """A value and where it ends: a JSON string, a JSON list as Civitai's, or up to the comma."""
    if quoted := _QUOTED.match(line, start):
        value = read_json(quoted[1])
        end = quoted.end() - quoted[0].endswith(",")
        return (value if isinstance(value, str) else quoted[1]), end
    begin = start + (line[start : start + 1] == " ")
    if line[begin : begin + 1] in ("[", "{"):
        nearby = line[begin : begin + _LONGEST_LIST]  # a refusal counts the lines before it
        with suppress(ValueError, RecursionError):
            length = json.JSONDecoder().raw_decode(nearby)[1]
            return nearby[:length], begin + length
    return line[start:comma].strip(), comma


def read_json(text: str) -> Any:
    """The JSON value; None when the text is none. Never raises, whatever the text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def read_hashes(text: str) -> dict[str, str]:
    """`name: hash, name: hash` -> {name: hash}; Fooocus writes a weight after the hash."""
    pairs = (pair.split(":") for pair in text.split(","))
    return {pair[0].strip(): pair[1].strip() for pair in pairs if len(pair) > 1}


def with_loras(prompt: str, loras: Iterable[tuple[str, float, float]]) -> str:
    """The prompt with a tag for each (name, unet, text encoder) that it does not have yet."""
    named = {lora.name for lora in parse_prompt(prompt).loras}
    tags = [written(name, unet, te) for name, unet, te in loras if name and name not in named]
    return " ".join(filter(None, (prompt, *tags)))
