"""LoRA tags in a prompt: found, understood and taken out of the text, in time linear in its length.

    a house at dusk, <lora:neon:0.8>            one weight for UNet and text encoder
    <lora:neon:0.5:0.8>                         text encoder first, then UNet, as in A1111
    <lora:neon:unet=0.8:te=0>                   by name, in any order
    a house at dusk, lora:neon:0.8              bare, at the beginning of a word

The grammar is A1111's (modules/extra_networks.py, extensions-builtin/Lora). Where A1111 drops every
LoRA of a prompt because of one bad tag, only that tag is left out, and it is said.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

# [^<>] stops at the next tag, so that text full of '<lora:' is still read once only
_BRACKETED = r"<(?P<kind>[a-z]\w*):(?P<inside>[^<>]+)>"
# a bare tag is never part of a word, a path or an address, and ends where prompt grammar begins
_BARE = r"(?<![\w<:/\\.@#-])(?:lora|lyco):(?P<bare>\w[^\s,;<>()\[\]{}|\"]*)"
_TAG = re.compile(f"{_BRACKETED}|{_BARE}", re.IGNORECASE)
_UNCLOSED = re.compile(r"<(?:lora|lyco):[^\s<>,]*(?!>)", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
_SCHEDULE = re.compile(r"\\.|[\[\]]", re.DOTALL)
_KINDS = ("lora", "lyco")
_PLACES = ("te", "unet", "dyn")  # what the numbers after the name stand for, in order
_OPENERS = tuple(",([{|")


@dataclass(frozen=True)
class LoraTag:
    """A LoRA asked for by name, and how strongly."""

    name: str
    unet: float = 1.0
    text_encoder: float = 1.0


@dataclass(frozen=True)
class Prompt:
    """The text without its tags, the tags in order, and what is not used as it was meant."""

    text: str
    loras: tuple[LoraTag, ...] = ()
    problems: tuple[str, ...] = ()


def parse_prompt(text: str) -> Prompt:
    """Take the tags out of a prompt. Never raises: what cannot be understood is a problem."""
    loras: list[LoraTag] = []
    problems: list[str] = []
    pieces: list[str] = []
    end = depth = 0
    for found in _tags(text):
        pieces.append(text[end : found.start])
        end = found.start + len(found.written)
        depth = _depth(pieces[-1], depth)
        lora = _understood(found, problems)
        if lora:
            loras.append(lora)
        if lora and depth:
            problems.append(
                f"'{found.shown}' stands inside [...], but a LoRA is on at every step all the same"
            )
    rest = _joined([*pieces, text[end:]]) if pieces else text
    problems += [f"'{m[0][:80]}' is not closed with '>'" for m in _UNCLOSED.finditer(rest)]
    return Prompt(rest, tuple(loras), tuple(problems))


class _Found(NamedTuple):
    """A tag where it stands; `inside` is None when it is of another kind than LoRA."""

    written: str
    start: int
    inside: str | None

    @property
    def shown(self) -> str:
        return self.written[:80]


def _tags(text: str) -> Iterator[_Found]:
    for match in _TAG.finditer(text):
        written, start = match[0], match.start()
        if bare := match["bare"]:
            kept = bare.rstrip(".!?:'`*")  # the end of the sentence is not the tag's
            yield _Found(written[: len(written) - len(bare) + len(kept)], start, kept)
        else:
            known = match["kind"].lower() in _KINDS
            yield _Found(written, start, match["inside"] if known else None)


def _understood(found: _Found, problems: list[str]) -> LoraTag | None:
    """The LoRA that a tag asks for; None, and a problem, when that cannot be told."""
    if found.inside is None:
        problems.append(f"'{found.shown}' is left out: only <lora:name:weight> is known")
        return None
    name, *arguments = (part.strip() for part in found.inside.split(":"))
    given = _by_place(arguments)
    weights: dict[str, float] = {}
    for place, value in given.items():
        if place not in _PLACES[:2]:
            problems.append(f"'{found.shown}': {place!r} is not used; te and unet are")
        elif not value:
            problems.append(f"'{found.shown}' has an empty weight; 1 is used")
        elif _NUMBER.fullmatch(value) and math.isfinite(float(value)):
            weights[place] = float(value)
        else:
            problems.append(f"'{found.shown}' is left out: {value!r} is not a weight such as 0.8")
            return None
    if not name:
        problems.append(f"'{found.shown}' is left out: it names no LoRA")
        return None
    text_encoder = weights.get("te", 1.0)
    return LoraTag(name, weights.get("unet", text_encoder), text_encoder)


def _by_place(arguments: list[str]) -> dict[str, str]:
    """Weights by name; one that is given by name wins over one given by its place."""
    named: dict[str, str] = {}
    placed: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals:
            named[key.strip().lower()] = value.strip()
        else:
            number = len(placed)
            placed[_PLACES[number] if number < len(_PLACES) else argument] = argument
    return placed | named


def _depth(text: str, depth: int) -> int:
    """How many [ are open after `text`."""
    for sign in _SCHEDULE.findall(text):
        depth = max(0, depth + (sign == "[") - (sign == "]"))
    return depth


def _joined(pieces: list[str]) -> str:
    """The text around the tags, without the commas and spaces that only the tags needed.

    Nothing else is touched: line breaks and odd spacing inside a piece stay as they are.
    """
    words = [pieces[0].rstrip()]
    gap = pieces[0][len(words[0]) :]  # what stood before the tag
    for piece in pieces[1:]:
        core = piece.lstrip()
        gap = gap or piece[: len(piece) - len(core)]
        if core.startswith(",") and words[-1].endswith(_OPENERS) or not words[-1]:
            core = core.removeprefix(",").lstrip()
        elif core.startswith(","):
            gap = ""
        if core:
            words += [gap, core.rstrip()]
            gap = core[len(words[-1]) :]
    text = "".join(words).strip()
    return text if pieces[-1].strip(" ,") else text.removesuffix(",").rstrip()
