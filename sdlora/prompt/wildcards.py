"""Wildcards: __name__ is a line of the list of that name, {a|b} one of its parts.

    {2::red|blue}         red is twice as likely
    {2$$a|b|c}            two different ones, with ', ' between them; {1-2$$...} one or two
    {2$$ and $$a|b|c}     with ' and ' between them

The grammar is that of sd-dynamic-prompts. What is drawn holds such marks in its turn. LoRA tags,
escapes and what stands in [...] stay whole.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, TypeAlias

from sdlora.prompt.scanner import Token, tokens

# A name's lines; None when there is no such list. A name is what stands in the prompt, not a path.
Lists = Callable[[str], Sequence[str] | None]

_WEIGHT = r"\s*(?P<weight>[0-9]{1,6}(?:\.[0-9]{0,6})?|\.[0-9]{1,6})::"
_COUNT = r"\s*(?P<least>[0-9]{1,3})(?:-(?P<most>[0-9]{1,3}))?\$\$(?:(?P<joiner>[^$|{}<\\\n]*)\$\$)?"
_PREFIX = re.compile(f"(?:{_COUNT})?(?:{_WEIGHT})?")
_LINE = re.compile(f"(?:{_WEIGHT})?")
_MOST_DRAWN = 100_000  # letters; lists that name one another can grow without end
_LARGEST_LIST = 4 * 2**20  # bytes


class Expanded(NamedTuple):
    """A text after drawing, and what of it could not be drawn."""

    text: str
    problems: tuple[str, ...] = ()


class _Name(NamedTuple):
    """__name__, and the lists whose lines it came from."""

    name: str
    written: str
    within: tuple[str, ...]


class _Option(NamedTuple):
    weight: float
    nodes: list[_Node]


class _Choice(NamedTuple):
    """{...}: between `least` and `most` of the options."""

    options: list[_Option]
    least: int
    most: int
    joiner: str


_Node: TypeAlias = "str | _Name | _Choice | list[_Node]"


def no_lists(name: str) -> None:
    """There are no wildcard lists."""


def expand_wildcards(text: str, seed: int, lists: Lists = no_lists) -> Expanded:
    """The text with all wildcards drawn, always the same ones from the same seed and lists.

    A name that cannot be drawn stays in the text and is a problem.

    >>> expand_wildcards("a {red|blue} __pet__", 7, {"pet": ["cat"]}.get).text
    'a red cat'
    """
    dice, drawer = random.Random(seed), _Drawer(lists)
    problems: dict[str, None] = {}
    pieces: list[str] = []
    waiting: list[_Node] = [_read(text, ())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, str):
            pieces.append(node)
        elif isinstance(node, list):
            waiting.extend(reversed(node))
        elif isinstance(node, _Choice):
            waiting.append(_drawn(node, dice))
        elif problem := drawer.refusal(node):
            problems[f"'{node.written[:80]}' is left as it is: {problem}"] = None
            pieces.append(node.written)
        else:
            waiting.append(_read(drawer.line(node, dice), (*node.within, node.name)))
    return Expanded("".join(pieces), tuple(problems))


def wildcard_folder(folder: Path) -> Lists:
    """The lists in a folder: each .txt below it, a line an entry, without blanks and # comments.

    A list is named by its place below the folder, colours/warm, or by its last part alone, in any
    case. A name is looked up among the files found, so none leads out of the folder.
    """
    root = folder.resolve()
    files: dict[str, Path] = {}
    found = [path for path in sorted(root.rglob("*.txt")) if path.resolve().is_relative_to(root)]
    for path in found:
        files[path.relative_to(root).with_suffix("").as_posix().lower()] = path
    for path in found:
        files.setdefault(path.stem.lower(), path)

    def lists(name: str) -> list[str] | None:
        path = files.get(name.lower())
        if path is None or not path.is_file():
            return None
        with path.open("rb") as file:
            text = file.read(_LARGEST_LIST).decode("utf-8-sig", "replace")
        lines = (line.strip() for line in text.splitlines())
        return [line for line in lines if line and not line.startswith("#")]

    return lists


class _Drawer:
    """Draws lines from lists, each looked up once, and no more letters in all than allowed."""

    def __init__(self, lists: Lists) -> None:
        self.lists, self.left = lists, _MOST_DRAWN
        self.known: dict[str, tuple[list[str], list[float]] | None] = {}

    def refusal(self, node: _Name) -> str:
        """Why a name is not drawn, or nothing."""
        if node.name not in self.known:
            self.known[node.name] = self._look_up(node.name)
        if self.known[node.name] is None:
            return "there is no wildcard list of that name, or it is empty"
        if node.name in node.within:
            return f"its list names itself, through {' and '.join(node.within[-3:])}"
        return "the lists make the prompt too long" if self.left <= 0 else ""

    def line(self, node: _Name, dice: random.Random) -> str:
        """A line, when there is no refusal."""
        lines, heaps = self.known[node.name] or ([], [])
        [line] = dice.choices(lines, cum_weights=heaps)
        self.left -= len(line) + 1
        return line

    def _look_up(self, name: str) -> tuple[list[str], list[float]] | None:
        found = [(_LINE.match(line), line) for line in self.lists(name) or ()]
        lines = [line[match.end() :] for match, line in found if match]
        weights = [_weight(match) for match, _ in found if match]
        return (lines, list(accumulate(weights))) if lines else None


def _drawn(choice: _Choice, dice: random.Random) -> list[_Node]:
    """Different options in a drawn order, the heavier the likelier (Efraimidis and Spirakis 2006,
    Weighted random sampling with a reservoir)."""
    count = choice.least + int(dice.random() * (choice.most - choice.least + 1))
    turns = [-math.log(1 - dice.random()) / option.weight for option in choice.options]
    order = sorted(range(len(turns)), key=turns.__getitem__)
    nodes: list[_Node] = []
    for index in order[:count]:
        nodes += [choice.joiner] * bool(nodes) + [choice.options[index].nodes]
    return nodes


def _weight(match: re.Match[str]) -> float:
    return max(float(match["weight"] or 1), 1e-6)


@dataclass
class _Open:
    """A { or [ that is not closed yet: its options, and for each what stood before its text."""

    sign: str = ""
    options: list[list[_Node]] = field(default_factory=lambda: [[]])
    prefixes: list[re.Match[str] | None] = field(default_factory=list)

    def as_text(self) -> list[_Node]:
        """What it is when it never closes, or is a [."""
        nodes: list[_Node] = []
        for index, option in enumerate(self.options):
            prefix = self.prefixes[index]
            nodes += ["|" if index else self.sign, prefix[0] if prefix else "", option]
        return nodes

    def as_choice(self) -> _Choice:
        prefixes = [prefix for prefix in self.prefixes if prefix]
        count = next((prefix for prefix in prefixes if prefix["least"]), None)
        least = int(count["least"]) if count else 1
        most = int(count["most"] or least) if count else 1
        joiner = ", " if count is None or count["joiner"] is None else count["joiner"]
        pairs = zip(map(_weight, prefixes), self.options, strict=True)
        return _Choice([_Option(*pair) for pair in pairs], least, max(least, most), joiner)


def _read(text: str, within: tuple[str, ...]) -> list[_Node]:
    """The text as nodes; deep nesting is deep lists, and nobody walks them by recursion."""
    waiting = [_Open()]
    braces = read = 0  # how many { are open; up to where prefixes were read
    for token in tokens(text):
        sign, top = token.sign, waiting[-1]
        if token.start < read:
            continue
        if sign in ("{", "["):
            waiting.append(_Open(sign))
            braces += sign == "{"
        elif sign == "|" and top.sign:
            top.options.append([])
        elif sign == "}" and braces:
            while waiting[-1].sign != "{":
                _close_as_text(waiting)
            waiting[-2].options[-1].append(waiting.pop().as_choice())
            braces -= 1
        elif sign == "]" and top.sign == "[":
            _close_as_text(waiting)
            waiting[-1].options[-1].append(sign)
        else:
            top.options[-1].append(_leaf(token, within))
        top = waiting[-1]
        if len(top.prefixes) < len(top.options):
            prefix = _PREFIX.match(text, token.end) if top.sign == "{" else None
            top.prefixes.append(prefix)
            read = prefix.end() if prefix else read
    while len(waiting) > 1:
        _close_as_text(waiting)
    return waiting[0].options[0]


def _leaf(token: Token, within: tuple[str, ...]) -> _Node:
    is_name = token.kind == "wildcard"
    return _Name(token.text.strip("_"), token.text, within) if is_name else token.text


def _close_as_text(waiting: list[_Open]) -> None:
    nodes = waiting.pop().as_text()
    waiting[-1].options[-1].append(nodes)
