"""LoRA tags in a prompt: found, understood and taken out of the text, in time linear in its length.

    a house at dusk, <lora:neon:0.8>            one weight for UNet and text encoder
    <lora:neon:0.5:0.8>                         text encoder first, then UNet, as in A1111
    <lora:neon:unet=0.8:te=0:hr=0.5>            by name, in any order; hr in the pass of hires-fix
    <lora:neon:0@0,1@0.5>                       weight@moment: from 0 to 1 until half-way
    a house, [<lora:neon:1>:0.5]                from half-way on, as the text that stands there
    a house at dusk, lora:neon:0.8              bare, at the beginning of a word

The grammar is A1111's (modules/extra_networks.py, extensions-builtin/Lora); weight@moment is
SD.Next's and loractl's. There a moment is a fraction when no moment of the tag is above 1, and a
step otherwise; here one with a '.' is a fraction in any case. Where A1111 drops every LoRA of a
prompt because of one bad tag, only that tag is left out, and it is said.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from sdlora.prompt.moments import Moment, Point, Window, weights_at
from sdlora.prompt.scanner import Token, number
from sdlora.prompt.schedules import MOST_WINDOWS, Layout

_UNCLOSED = re.compile(r"<[a-z]\w*:[^<>]*(?=<|\Z)", re.IGNORECASE)
_KINDS = ("lora", "lyco")
_PLACES = ("te", "unet", "dyn")  # what the numbers after the name stand for, in order
_USED = ("te", "unet", "hr")
_OPENERS = tuple(",([{|")
_Weight = tuple[float, Moment]


@dataclass(frozen=True)
class LoraTag:
    """A LoRA asked for by name, and how strongly.

    `unet` and `text_encoder` hold at every step, unless there are `points`: then those do, and the
    two are the strongest. `windows` are the parts of [...] around the tag, which it is on in, as
    far as points cannot tell them. `hires` is the weight of both in the second pass of hires-fix;
    None: the same as before.
    """

    name: str
    unet: float = 1.0
    text_encoder: float = 1.0
    points: tuple[Point, ...] = ()
    windows: tuple[Window, ...] = ()
    hires: float | None = None

    @property
    def is_constant(self) -> bool:
        """Whether its weights are the same at every step of a pass."""
        return not (self.points or self.windows)

    def at(self, step: int, steps: int, first_pass: int = 0) -> tuple[float, float]:
        """(UNet, text encoder) weights at `step` of `steps`, the first being 0; in the second pass
        of hires-fix, `first_pass` is the number of steps before it."""
        if not all(window.shows(step, steps, first_pass) for window in self.windows):
            return 0.0, 0.0
        if first_pass and self.hires is not None:
            return self.hires, self.hires
        if self.points:
            return weights_at(self.points, step, steps, first_pass)
        return self.unet, self.text_encoder


@dataclass(frozen=True)
class Prompt:
    """The text without its tags, the tags in order, and what is not used as it was meant."""

    text: str
    loras: tuple[LoraTag, ...] = ()
    problems: tuple[str, ...] = ()


def parse_prompt(text: str) -> Prompt:
    """Take the tags out of a prompt. Never raises: what cannot be understood is a problem.

    Schedules, emphasis and AND stay in the text, for `schedule`, `compose` and `parse_emphasis`.
    """
    loras: list[LoraTag] = []
    problems: list[str] = []
    pieces: list[str] = []
    end = 0
    for token, windows in Layout(text).tags():
        pieces.append(text[end : token.start])
        end = token.end
        if lora := _understood(token, problems):
            loras += _scheduled(lora, windows, token, problems)
            if text[max(token.start - 1, 0) : end + 1] == f"[{token.text}]":
                problems += _swallowed(token)
    pieces.append(text[end:])
    for piece in pieces:
        problems += [f"{_shown(m[0])} is not closed with '>'" for m in _UNCLOSED.finditer(piece)]
    rest = _joined(pieces) if len(pieces) > 1 else text
    return Prompt(rest, tuple(loras), tuple(problems))


def written(name: str, unet: float, text_encoder: float | None = None) -> str:
    """The tag for a LoRA; the text encoder's weight only where it differs."""
    plain = re.sub(r"[<>:\n]", "", name)
    both = text_encoder is None or text_encoder == unet
    return f"<lora:{plain}:{unet:g}>" if both else f"<lora:{plain}:{text_encoder:g}:{unet:g}>"


def _understood(token: Token, problems: list[str]) -> LoraTag | None:
    """The LoRA that a tag asks for; None, and a problem, when that cannot be told."""
    kind, _, inside = token.text.strip("<>").partition(":")
    shown = _shown(token.text)
    if kind.lower() not in _KINDS:
        problems.append(f"{shown} is left out: only <lora:name:weight> is known")
        return None
    name, *arguments = (part.strip() for part in inside.split(":"))
    weights: dict[str, list[_Weight]] = {}
    for place, value in _by_place(arguments).items():
        if place not in _USED:
            problems.append(f"{shown}: {place!r} is not used; te, unet and hr are")
        elif not value:
            problems.append(f"{shown} has an empty weight; 1 is used")
        elif curve := _curve(value):
            weights[place] = curve
        else:
            problems.append(
                f"{shown} is left out: {value!r} is not a weight such as 0.8 or 0@0,1@0.5"
            )
            return None
    if not name:
        problems.append(f"{shown} is left out: it names no LoRA")
        return None
    for place in ("te", "hr"):
        if len(weights.get(place, ())) > 1 and (place == "hr" or "unet" in weights):
            problems.append(f"{shown}: only unet changes over the steps; {place} is the strongest")
    return _tag(name, weights)


def _tag(name: str, weights: dict[str, list[_Weight]]) -> LoraTag:
    text_encoder = weights.get("te", [(1.0, Moment(0))])
    unet = weights.get("unet", text_encoder)
    one = _strongest(text_encoder)
    points = tuple(Point(moment, weight, one) for weight, moment in unet) if len(unet) > 1 else ()
    hires = _strongest(weights["hr"]) if "hr" in weights else None
    return LoraTag(name, _strongest(unet), one, points, hires=hires)


def _strongest(weights: list[_Weight]) -> float:
    return max((weight for weight, _ in weights), key=abs)


def _curve(value: str) -> list[_Weight]:
    """'0.8', or weight@moment and more of them after a comma; empty for anything else."""
    constant = number(value)
    if constant is not None:
        return [(constant, Moment(0))]
    found: list[_Weight] = []
    for point in value.split(","):
        said, _, place = point.partition("@")
        weight, moment = number(said), Moment.read(place)
        if weight is None or moment is None or moment.value < 0:
            return []
        found.append((weight, moment))
    in_steps = any(moment.value > 1 and not moment.is_fraction for _, moment in found)
    return [(w, m if in_steps else m._replace(is_fraction=True)) for w, m in found]


def _scheduled(
    tag: LoraTag, windows: tuple[Window, ...], token: Token, problems: list[str]
) -> list[LoraTag]:
    """The tag, on only where the [...] around it show it; a plain one is told by points."""
    if len(windows) == MOST_WINDOWS:
        problems.append(f"{_shown(token.text)} is left out: too many [...] stand around it")
        return []
    [window] = windows if len(windows) == 1 else [Window()]
    moment = window.start or window.end
    if moment is None or not tag.is_constant or tag.hires is not None:
        return [replace(tag, windows=windows)]
    points = (Point(moment, 0.0, 0.0), Point(moment, tag.unet, tag.text_encoder))
    return [replace(tag, points=points if window.start else points[::-1])]


def _swallowed(token: Token) -> list[str]:
    """[lora:a:1:0.5] reads like a schedule, but both numbers are the tag's."""
    start, _, last = token.text.rpartition(":")
    if token.kind != "bare" or start.count(":") < 2:
        return []
    return [f"[{token.text[:80]}] is on at every step; from a step on it is [<{start}>:{last}]"]


def _by_place(arguments: list[str]) -> dict[str, str]:
    """Weights by name; one that is given by name wins over one given by its place."""
    named: dict[str, str] = {}
    placed: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals:
            named[key.strip().lower()] = value.strip()
        else:
            place = len(placed)
            placed[_PLACES[place] if place < len(_PLACES) else argument] = argument
    return placed | named


def _shown(text: str) -> str:
    return f"'{text.strip()[:80]}'"


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
