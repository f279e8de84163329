"""LoRA tags: parsed and removed from the prompt, in time linear in its length.

    a house at dusk, <lora:neon:0.8>            one weight for UNet and text encoder
    <lora:neon:0.5:0.8>                         text encoder first, then UNet, as in A1111
    <lora:neon:unet=0.8:te=0:hr=0.5>            by name, in any order; hr in the pass of hires-fix
    <lora:neon:0@0,1@0.5>                       weight@moment: from 0 to 1 until half-way
    a house, [<lora:neon:1>:0.5]                from half-way on, as the text that stands there
    a house at dusk, lora:neon:0.8              bare, at the beginning of a word

The grammar is A1111's (modules/extra_networks.py, extensions-builtin/Lora); weight@moment is
SD.Next's and loractl's. There a moment is a fraction when no moment of the tag is above 1, and a
step otherwise; here one with a '.' is a fraction in any case. Where A1111 drops every LoRA of a
prompt because of one bad tag, only that tag is left out, with a message.

Only the tags are removed: of 'a cat, <lora:x:1>, red' A1111 reads 'a cat, , red', and the commas
are tokens. Rules 1 removed commas with the tags; a picture without `prompt_rules` was made by them,
and `from_rules_1` rewrites its prompt so that the text encoder reads the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from sdlora.messages import Message
from sdlora.prompt.compel import compel_warnings
from sdlora.prompt.scanner import Token, joined, number, tokens
from sdlora.prompt.schedules import MAX_WINDOWS, ScheduleLayout
from sdlora.prompt.timing import Point, StepRange, StepTime, weights_at

RULES = 2  # version of the prompt rules; stored with each picture
_UNCLOSED = re.compile(r"<[a-z]\w*:[^<>]*(?=<|\Z)", re.IGNORECASE)
_EMPHASIS = re.compile(r":([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))\)")
_KINDS = ("lora", "lyco")
_POSITIONAL = ("te", "unet", "dyn")  # meaning of the numbers after the name, in order
_USED_NAMES = ("te", "unet", "hr")
_OPENERS = tuple(",([{|")
_Weight = tuple[float, StepTime]


@dataclass(frozen=True)
class LoraTag:
    """A LoRA by name, with its weights.

    `unet` and `text_encoder` hold at every step. If there are `points`, those give the weights and
    the two are the largest of them. `windows` are the step ranges of the [...] around the tag that
    points cannot express. `hires` is the weight of both in the second pass of hires fix; None: the
    same as in the first.
    """

    name: str
    unet: float = 1.0
    text_encoder: float = 1.0
    points: tuple[Point, ...] = ()
    windows: tuple[StepRange, ...] = ()
    hires: float | None = None

    @property
    def is_constant(self) -> bool:
        """True if its weights are the same at every step of a pass."""
        return not (self.points or self.windows)

    def at(self, step: int, steps: int, first_pass: int = 0) -> tuple[float, float]:
        """Return (UNet, text encoder) weights at `step` of `steps`, the first being 0; in the
        second pass of hires fix, `first_pass` is the number of steps of the first."""
        if not all(window.shows(step, steps, first_pass) for window in self.windows):
            return 0.0, 0.0
        if first_pass and self.hires is not None:
            return self.hires, self.hires
        if self.points:
            return weights_at(self.points, step, steps, first_pass)
        return self.unet, self.text_encoder


@dataclass(frozen=True)
class Prompt:
    """A parsed prompt: the text without its tags, the tags in order, and messages."""

    text: str
    loras: tuple[LoraTag, ...] = ()
    problems: tuple[str, ...] = ()


def parse_prompt(text: str) -> Prompt:
    """Remove the tags from a prompt, and nothing else: the commas beside them are tokens, as in
    A1111. Never raises: syntax that cannot be read is a problem.

    Schedules, emphasis and AND stay in the text, for `schedule`, `compose` and `parse_emphasis`.
    """
    loras: list[LoraTag] = []
    problems: list[str] = []
    end = 0
    layout = ScheduleLayout(text)
    for token, windows in layout.tags():
        problems += _unclosed_warnings(text[end : token.start])
        end = token.end
        if lora := _parse_tag(token, problems):
            loras += _with_windows(lora, windows, token, problems)
            problems += _bracket_warnings(text, token)
    problems += _unclosed_warnings(text[end:])
    text_tokens = (token for token in layout.tokens if token.kind not in ("tag", "bare"))
    rest = joined(text_tokens) if end else text
    problems += compel_warnings(rest)
    return Prompt(rest, tuple(loras), tuple(problems))


def _unclosed_warnings(piece: str) -> list[str]:
    return [
        Message("{tag} is not closed with '>'", tag=_quoted(match[0]))
        for match in _UNCLOSED.finditer(piece)
    ]


def format_tag(name: str, unet: float, text_encoder: float | None = None) -> str:
    """Return the tag for a LoRA, with the text encoder's weight only where it differs."""
    plain = re.sub(r"[<>:\n]", "", name)
    both = text_encoder is None or text_encoder == unet
    return f"<lora:{plain}:{unet:g}>" if both else f"<lora:{plain}:{text_encoder:g}:{unet:g}>"


def _parse_tag(token: Token, problems: list[str]) -> LoraTag | None:
    """Parse a tag. Returns None and adds a problem when it cannot be read."""
    kind, _, inside = token.text.strip("<>").partition(":")
    shown = _quoted(token.text)
    if kind.lower() not in _KINDS:
        problems.append(Message("{tag} is left out: only <lora:name:weight> is known", tag=shown))
        return None
    name, *arguments = (part.strip() for part in inside.split(":"))
    weights = _parse_arguments(_weights_by_name(arguments), shown, problems)
    if weights is None:
        return None
    if not name:
        problems.append(Message("{tag} is left out: it names no LoRA", tag=shown))
        return None
    for place in ("te", "hr"):
        if len(weights.get(place, ())) > 1 and (place == "hr" or "unet" in weights):
            problems.append(
                Message(
                    "{tag}: only unet changes over the steps; {place} is the strongest",
                    tag=shown,
                    place=place,
                )
            )
    tag = _build_tag(name, {place: weight for place, weight in weights.items() if weight})
    used = {"te": tag.text_encoder, "unet": tag.unet, "hr": tag.hires}
    for place, weight in weights.items():
        if not weight:
            problems.append(_empty_weight_warning(shown, used[place]))
    return tag


def _empty_weight_warning(shown: str, weight: float | None) -> Message:
    if weight is None:
        return Message(
            "{tag} has an empty hr; the second pass has the weight of the first", tag=shown
        )
    return Message("{tag} has an empty weight; {weight:g} is used", tag=shown, weight=weight)


def _parse_arguments(
    by_place: dict[str, str], shown: str, problems: list[str]
) -> dict[str, list[_Weight]] | None:
    """Return the weights by name, empty where none is given; None, with a problem, when one is not
    a weight."""
    weights: dict[str, list[_Weight]] = {}
    for place, value in by_place.items():
        if place not in _USED_NAMES:
            problems.append(
                Message("{tag}: {place!r} is not used; te, unet and hr are", tag=shown, place=place)
            )
        elif not value:
            weights[place] = []
        elif curve := _parse_weights(value):
            weights[place] = curve
        else:
            problems.append(
                Message(
                    "{tag} is left out: {value!r} is not a weight such as 0.8 or 0@0,1@0.5",
                    tag=shown,
                    value=value,
                )
            )
            return None
    return weights


def _build_tag(name: str, weights: dict[str, list[_Weight]]) -> LoraTag:
    text_encoder = weights.get("te", [(1.0, StepTime(0))])
    unet = weights.get("unet", text_encoder)
    strongest = _largest_weight(text_encoder)
    points = (
        tuple(Point(moment, weight, strongest) for weight, moment in unet) if len(unet) > 1 else ()
    )
    hires = _largest_weight(weights["hr"]) if "hr" in weights else None
    return LoraTag(name, _largest_weight(unet), strongest, points, hires=hires)


def _largest_weight(weights: list[_Weight]) -> float:
    return max((weight for weight, _ in weights), key=abs)


def _parse_weights(value: str) -> list[_Weight]:
    """Parse '0.8', or weight@moment with commas between; empty for anything else."""
    constant = number(value)
    if constant is not None:
        return [(constant, StepTime(0))]
    points: list[_Weight] = []
    for point in value.split(","):
        weight_text, _, place = point.partition("@")
        weight, moment = number(weight_text), StepTime.read(place)
        if weight is None or moment is None or moment.value < 0:
            return []
        points.append((weight, moment))
    in_steps = any(moment.value > 1 and not moment.is_fraction for _, moment in points)
    return [(w, m if in_steps else m._replace(is_fraction=True)) for w, m in points]


def _with_windows(
    tag: LoraTag, windows: tuple[StepRange, ...], token: Token, problems: list[str]
) -> list[LoraTag]:
    """Restrict a tag to the steps of the [...] around it: a constant tag in one [...] gets points,
    any other gets windows. Empty, with a problem, when too many [...] are nested."""
    if len(windows) == MAX_WINDOWS:
        problems.append(
            Message("{tag} is left out: too many [...] stand around it", tag=_quoted(token.text))
        )
        return []
    [window] = windows if len(windows) == 1 else [StepRange()]
    moment = window.start or window.end
    if moment is None or not tag.is_constant or tag.hires is not None:
        return [replace(tag, windows=windows)]
    points = (Point(moment, 0.0, 0.0), Point(moment, tag.unet, tag.text_encoder))
    return [replace(tag, points=points if window.start else points[::-1])]


def _bracket_warnings(text: str, token: Token) -> list[str]:
    """Warn of a number that may belong to the bare tag or to the brackets around it, as in
    (lora:a:1:0.5) and [lora:a:1:0.5]."""
    weights = token.text.count(":") - 1
    if token.kind != "bare" or weights < 1:
        return []
    start, _, last = token.text.rpartition(":")
    if emphasis := _EMPHASIS.match(text, token.end):
        return [
            Message(
                "{last} after {tag} is the strength of the brackets; two weights of a LoRA in "
                "brackets are <{tag}:{last}>",
                tag=token.text[:80],
                last=emphasis[1],
            )
        ]
    if weights < 2 or not text.startswith("]", token.end):
        return []
    return [
        Message(
            "[{tag}] is on at every step; from a step on it is [<{start}>:{last}]",
            tag=token.text[:80],
            start=start[:80],
            last=last,
        )
    ]


def _weights_by_name(arguments: list[str]) -> dict[str, str]:
    """Return weights by name; a named argument wins over a positional one."""
    named: dict[str, str] = {}
    placed: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals:
            named[key.strip().lower()] = value.strip()
        else:
            place = len(placed)
            placed[_POSITIONAL[place] if place < len(_POSITIONAL) else argument] = argument
    return placed | named


def _quoted(text: str) -> str:
    return f"'{text.strip()[:80]}'"


def from_rules_1(text: str) -> str:
    """Rewrite a prompt of rules 1 to the current rules. Rules 1 removed the commas that belonged to
    tags alone, and read both numbers of (lora:a:0.8:1.2) as weights."""
    pieces, tags, end = [], [], 0
    for token in tokens(text):
        if token.kind in ("tag", "bare"):
            emphasis = _EMPHASIS.match(text, token.end) if token.kind == "bare" else None
            within = emphasis and token.text.count(":") > 1
            pieces.append(text[end : token.start])
            tags.append(f"<{token.text}:{emphasis[1]}>" if emphasis and within else token.text)
            end = emphasis.end() - 1 if emphasis and within else token.end
    if not tags:
        return text
    pieces.append(text[end:])
    before, last = "", 0  # the last piece with words, and its index
    for index, piece in enumerate(pieces):
        needless = not before or before.endswith(_OPENERS)
        if index and needless and piece.lstrip().startswith(","):
            pieces[index] = piece = piece.replace(",", "", 1)
        if stripped := piece.strip():
            before, last = stripped, index
    if not pieces[-1].strip(" ,"):
        stripped_end = pieces[last].rstrip()
        pieces[last] = stripped_end.removesuffix(",") + pieces[last][len(stripped_end) :]
    return "".join(piece + tag for piece, tag in zip(pieces, [*tags, ""], strict=True))
