"""Wildcards: __name__ is a line of the list of that name, {a|b} one of its parts.

The grammar is that of sd-dynamic-prompts. Of it is understood:

    {a|b|}                one of them, an empty one too
    {2::a|0.5::b}         a is four times as likely; lines of lists have such weights too
    {2$$a|b|c}            two different ones with ', ' between them
    {2$$ and $$a|b|c}     with ' and ' between them
    {1-2$$a|b} {2-$$a|b} {-2$$a|b}    one or two; two or more; one or two
    {2$$__list__}         two different lines of the list
    __name__ __a name__ __folder/name__ __folder/*__ __**__    see `wildcard_lists`

What is drawn holds such marks in its turn, and they stand anywhere: in a LoRA tag, <lora:a:{0.5|1}>
or <lora:__styles__:1>, in [...], in styles, in the negative prompt. Escapes stay whole, and so does
a LoRA's name with such signs in it: my__pet__v2 or a{b}.

Not understood, said, and left as text: variables ${x=...}, lists with parameters __name(x=1)__,
samplers __~name__ and __@name__.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import NamedTuple, TypeAlias

from sdlora.messages import Message
from sdlora.prompt.scanner import Token, tokens, tokens_in_tag
from sdlora.prompt.wildcard_lists import WordList

# A name's lines; None when there is no such list. A name is what stands in the prompt, not a path.
Lists = Callable[[str], Sequence[str] | None]

_WEIGHT = r"\s*(?P<weight>[0-9]{1,6}(?:\.[0-9]{0,6})?|\.[0-9]{1,6})::"
_COUNT = (
    r"\s*(?:(?P<least>[0-9]{1,3})(?P<dash>-(?P<most>[0-9]{1,3})?)?|-(?P<upto>[0-9]{1,3}))\s*\$\$"
    r"(?:(?P<joiner>[^$|{}<\\\n]*)\$\$)?"
)
_PREFIX = re.compile(f"(?:{_COUNT})?(?:{_WEIGHT})?")
_LINE = re.compile(f"(?:{_WEIGHT})?")
_VARIABLE = re.compile(r"\$\{\s*[^\W\d]\w{0,60}\s*[=:}]")
_NO_LIMIT = 999
_MOST_DRAWN = 100_000  # letters; lists that name one another can grow without end
_UNKNOWN = (
    (_VARIABLE, "variables"),
    (re.compile(r"__[^\W_][\w./ -]{0,60}\([^()\n]{0,60}\)__"), "lists with parameters"),
    (re.compile(r"__[~@!][\w./* -]{1,60}__"), "samplers of wildcards"),
)


class Expanded(NamedTuple):
    """A text after drawing, and what of it could not be drawn."""

    text: str
    problems: tuple[str, ...] = ()


class _Name(NamedTuple):
    """__name__, and the lists whose lines it came from. In a LoRA's name it may mean itself."""

    name: str
    written: str
    within: tuple[str, ...]
    may_be_text: bool = False


class _WildcardLine(NamedTuple):
    """A line of a list, which was drawn."""

    text: str
    within: tuple[str, ...]


class _Option(NamedTuple):
    weight: float
    nodes: list[_Node]


class _Choice(NamedTuple):
    """{...}: between `least` and `most` of the options. `is_counted`: it says how many."""

    options: list[_Option]
    least: int
    most: int
    joiner: str
    is_counted: bool


_Node: TypeAlias = "str | _Name | _WildcardLine | _Choice | list[_Node]"


def no_lists(name: str) -> None:
    """There are no wildcard lists."""


def expand_wildcards(text: str, seed: int, lists: Lists = no_lists) -> Expanded:
    """The text with all wildcards drawn, always the same ones from the same seed and lists.

    A name that cannot be drawn stays in the text and is a problem.

    >>> expand_wildcards("a {red|blue} __pet__", 7, {"pet": ["cat"]}.get).text
    'a red cat'
    """
    dice, drawer = random.Random(seed), _Drawer(lists)
    pieces: list[str] = []
    waiting: list[_Node] = [_WildcardLine(text, ())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, str):
            pieces.append(node)
        elif isinstance(node, list):
            waiting.extend(reversed(node))
        elif isinstance(node, _WildcardLine):
            drawer.left -= len(node.text) + 1 if node.within else 0
            waiting.append(_read(node, drawer.problems))
        elif isinstance(node, _Choice):
            waiting.append(_drawn(drawer.with_lines(node), dice))
        elif drawer.refuses(node):
            pieces.append(node.written)
        else:
            waiting.append(drawer.line(node, dice))
    return Expanded("".join(pieces), tuple(drawer.problems))


class _Lines(NamedTuple):
    """The lines of a list, how heavy each is, and the sums of that up to each."""

    texts: list[str]
    weights: list[float]
    heaps: list[float]


class _Drawer:
    """Draws lines from lists, each looked up once, and no more letters in all than allowed."""

    def __init__(self, lists: Lists) -> None:
        self.lists, self.left = lists, _MOST_DRAWN
        self.known: dict[str, _Lines] = {}
        self.problems: dict[str, None] = {}

    def refuses(self, node: _Name) -> bool:
        """Whether a name is not drawn, which is told."""
        lines = self._look_up(node.name).texts
        if node.may_be_text and not lines:
            return True
        why: str = ""
        if not lines:
            why = Message("there is no wildcard list of that name, or it is empty")
        elif node.name in node.within:
            through = " and ".join(node.within[-3:])
            why = Message("its list names itself, through {names}", names=through)
        elif self.left <= 0:
            why = Message("the lists make the prompt too long")
        if why:
            mark = node.written[:80]
            self.problems[Message("'{mark}' is left as it is: {why}", mark=mark, why=why)] = None
        return bool(why)

    def line(self, node: _Name, dice: random.Random) -> _WildcardLine:
        """A line, where it is not refused."""
        lines = self._look_up(node.name)
        [line] = dice.choices(lines.texts, cum_weights=lines.heaps)
        return _WildcardLine(line, (*node.within, node.name))

    def with_lines(self, choice: _Choice) -> _Choice:
        """{2$$__list__} chooses among the lines of the list, so that no two are the same."""
        if not choice.is_counted or len(choice.options) > 1:
            return choice
        nodes = [n for n in choice.options[0].nodes if not (isinstance(n, str) and n.isspace())]
        if len(nodes) != 1 or not isinstance(name := nodes[0], _Name) or self.refuses(name):
            return choice
        lines, within = self._look_up(name.name), (*name.within, name.name)
        weights: dict[str, float] = {}
        for line, weight in zip(lines.texts, lines.weights, strict=True):
            weights[line] = weights.get(line, 0.0) + weight
        options = [
            _Option(weight, [_WildcardLine(line, within)]) for line, weight in weights.items()
        ]
        return choice._replace(options=options)

    def _look_up(self, name: str) -> _Lines:
        if name not in self.known:
            words = self.lists(name)
            words = () if words is None else words
            self.problems |= dict.fromkeys(words.problems if isinstance(words, WordList) else ())
            matches = [(_LINE.match(line), line) for line in words]
            weights = [_weight(match) for match, _ in matches if match]
            texts = [line[match.end() :] for match, line in matches if match]
            self.known[name] = _Lines(texts, weights, list(accumulate(weights)))
        return self.known[name]


def _drawn(choice: _Choice, dice: random.Random) -> list[_Node]:
    """Different options in a drawn order, the heavier the likelier (Efraimidis and Spirakis 2006,
    Weighted random sampling with a reservoir)."""
    most = len(choice.options) if choice.most == _NO_LIMIT else choice.most
    most = max(choice.least, most)
    count = choice.least + int(dice.random() * (most - choice.least + 1))
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
    is_text: bool = False  # a variable's, which nobody draws from
    options: list[list[_Node]] = field(default_factory=lambda: [[]])
    prefixes: list[re.Match[str] | None] = field(default_factory=list)

    def as_text(self) -> list[_Node]:
        """What it is when it never closes, or is a [."""
        nodes: list[_Node] = []
        for index, option in enumerate(self.options):
            prefix = self.prefixes[index]
            nodes += ["|" if index else self.sign, prefix[0] if prefix else "", option]
        return nodes

    def as_choice(self, problems: dict[str, None]) -> _Choice:
        prefixes = [prefix for prefix in self.prefixes if prefix]
        counts = [prefix for prefix in prefixes if prefix["least"] or prefix["upto"]]
        for count in counts[1:]:
            second = Message(
                "{count} is not used: {{...}} has a count already", count=count[0][:40]
            )
            problems[second] = None
        if odd := next(filter(_has_dollars, self.options), None):
            start = "".join(node for node in odd if isinstance(node, str))
            problems[
                Message(
                    "'$$' in '{start}' is read as text: only a count such as 2 or 1-3 stands "
                    "before it",
                    start=start[:60],
                )
            ] = None
        least, most, joiner = _counted(counts[0]) if counts else (1, 1, ", ")
        pairs = zip(map(_weight, prefixes), self.options, strict=True)
        options = [_Option(*pair) for pair in pairs]
        return _Choice(options, least, max(least, most), joiner, bool(counts))


def _counted(count: re.Match[str]) -> tuple[int, int, str]:
    """(least, most, joiner) of the count that a {...} begins with."""
    least = int(count["least"] or 1)
    most = int(count["upto"] or count["most"] or (_NO_LIMIT if count["dash"] else least))
    return least, most, ", " if count["joiner"] is None else count["joiner"]


def _has_dollars(option: Iterable[_Node]) -> bool:
    return any(one == other == "$" for one, other in pairwise(option))


def _read(line: _WildcardLine, problems: dict[str, None]) -> list[_Node]:
    """A text as nodes, and what of it is another program's grammar."""
    for pattern, meaning in _UNKNOWN:
        if match := pattern.search(line.text):
            what = Message("{things} are not known here", things=meaning)
            mark = match[0][:80]
            problems[Message("'{mark}' is left as it is: {why}", mark=mark, why=what)] = None
    return _nodes(tokens(line.text), _WildcardSource(line.text, line.within, problems))


class _WildcardSource(NamedTuple):
    """A text that is read: a line of a list, or a tag in it."""

    text: str
    within: tuple[str, ...]
    problems: dict[str, None]
    is_tag: bool = False


def _nodes(pieces: Iterable[Token], source: _WildcardSource) -> list[_Node]:
    """Tokens as nodes; deep nesting is deep lists, and nobody walks them by recursion."""
    waiting = [_Open()]
    braces = read = 0  # how many { are open; up to where prefixes were read
    for token in pieces:
        sign, top = token.sign, waiting[-1]
        if token.start < read:
            continue
        if sign in ("{", "["):
            is_variable = sign == "{" and _VARIABLE.match(source.text, token.start - 1)
            waiting.append(_Open(sign, top.is_text or bool(token.start and is_variable)))
            braces += sign == "{"
        elif sign == "|" and top.sign:
            top.options.append([])
        elif sign == "}" and braces:
            while waiting[-1].sign != "{":
                _close_as_text(waiting)
            braces -= 1
            _close(waiting, source)
        elif sign == "]" and top.sign == "[":
            _close_as_text(waiting)
            waiting[-1].options[-1].append(sign)
        else:
            top.options[-1].append(_leaf(token, source))
        top = waiting[-1]
        if len(top.prefixes) < len(top.options):
            begins = top.sign == "{" and not top.is_text
            prefix = _PREFIX.match(source.text, token.end) if begins else None
            top.prefixes.append(prefix)
            read = prefix.end() if prefix else read
    while len(waiting) > 1:
        _close_as_text(waiting)
    return waiting[0].options[0]


def _close(waiting: list[_Open], source: _WildcardSource) -> None:
    """End a {...}. A variable is text, and so are braces in a LoRA's name that leave no choice."""
    top = waiting[-1]
    if top.is_text or (source.is_tag and len(top.options) == 1):
        _close_as_text(waiting)
        waiting[-1].options[-1].append("}")
    else:
        waiting.pop()
        waiting[-1].options[-1].append(top.as_choice(source.problems))


def _leaf(token: Token, source: _WildcardSource) -> _Node:
    if token.kind in ("tag", "bare") and ("{" in token.text or "__" in token.text):
        tag = _WildcardSource(token.text, source.within, source.problems, is_tag=True)
        return _nodes(tokens_in_tag(token), tag)
    if token.kind != "wildcard":
        return token.text
    is_in_name = source.is_tag and source.text.count(":", 0, token.start) == 1
    around = source.text[token.start - 1 : token.start] + source.text[token.end : token.end + 1]
    if is_in_name and any(map(str.isalnum, around)):
        return token.text
    return _Name(token.text[2:-2], token.text, source.within, is_in_name)


def _close_as_text(waiting: list[_Open]) -> None:
    nodes = waiting.pop().as_text()
    waiting[-1].options[-1].append(nodes)
