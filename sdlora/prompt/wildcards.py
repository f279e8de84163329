"""Wildcards: __name__ is a line of the list of that name, {a|b} one of its parts.

The grammar is that of sd-dynamic-prompts. Supported are:

    {a|b|}                one of them, an empty one too
    {2::a|0.5::b}         a is four times as likely; lines of lists have such weights too
    {2$$a|b|c}            two different ones with ', ' between them
    {2$$ and $$a|b|c}     with ' and ' between them
    {1-2$$a|b} {2-$$a|b} {-2$$a|b}    one or two; two or more; one or two
    {2$$__list__}         two different lines of the list
    __name__ __a name__ __folder/name__ __folder/*__ __**__    see `wildcard_lists`

Lines and options may contain wildcards themselves, and wildcards are allowed anywhere: in a LoRA
tag, <lora:a:{0.5|1}> or <lora:__styles__:1>, in [...], in styles, in the negative prompt. Escapes
stay, and so does a LoRA's name with such signs in it: my__pet__v2 or a{b}.

Not supported, left as text with a message: variables ${x=...}, lists with parameters
__name(x=1)__, samplers __~name__ and __@name__.
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

# name -> its lines; None when there is no such list. The name is as in the prompt, not a path.
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
_MAX_DRAWN = 100_000  # letters; lists that name one another can grow without end
_UNKNOWN = (
    (_VARIABLE, "variables"),
    (re.compile(r"__[^\W_][\w./ -]{0,60}\([^()\n]{0,60}\)__"), "lists with parameters"),
    (re.compile(r"__[~@!][\w./* -]{1,60}__"), "samplers of wildcards"),
)


class Expanded(NamedTuple):
    """Text after drawing, and messages about wildcards that were not drawn."""

    text: str
    problems: tuple[str, ...] = ()


class _Name(NamedTuple):
    """__name__, and the lists whose lines it came from. In a LoRA's name it may be plain text."""

    name: str
    written: str
    within: tuple[str, ...]
    may_be_text: bool = False


class _WildcardLine(NamedTuple):
    """A line drawn from a list, and the lists that it came through."""

    text: str
    within: tuple[str, ...]


class _Option(NamedTuple):
    weight: float
    nodes: list[_Node]


class _Choice(NamedTuple):
    """{...}: draws `minimum` to `maximum` of the options. `is_counted`: the count was given."""

    options: list[_Option]
    minimum: int
    maximum: int
    joiner: str
    is_counted: bool


_Node: TypeAlias = "str | _Name | _WildcardLine | _Choice | list[_Node]"


def no_wildcard_lists(name: str) -> None:
    """Return None for every name: the `Lists` of callers without wildcard lists."""


def expand_wildcards(text: str, seed: int, lists: Lists = no_wildcard_lists) -> Expanded:
    """Draw all wildcards in a text; the same seed and lists give the same result.

    A name that cannot be drawn stays in the text and is a problem.

    >>> expand_wildcards("a {red|blue} __pet__", 7, {"pet": ["cat"]}.get).text
    'a red cat'
    """
    rng, drawer = random.Random(seed), _LineDrawer(lists)
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
            waiting.append(_parse_line(node, drawer.problems))
        elif isinstance(node, _Choice):
            waiting.append(_draw_options(drawer.with_lines(node), rng))
        elif drawer.refuses(node):
            pieces.append(node.written)
        else:
            waiting.append(drawer.line(node, rng))
    return Expanded("".join(pieces), tuple(drawer.problems))


class _Lines(NamedTuple):
    """Lines of a list, their weights and cumulative weights."""

    texts: list[str]
    weights: list[float]
    cumulative_weights: list[float]


class _LineDrawer:
    """Draws lines from lists, each list looked up once, up to a total number of letters."""

    def __init__(self, lists: Lists) -> None:
        self.lists, self.left = lists, _MAX_DRAWN
        self.known: dict[str, _Lines] = {}
        self.problems: dict[str, None] = {}

    def refuses(self, node: _Name) -> bool:
        """True if a name cannot be drawn; adds the reason to the problems."""
        lines = self._lines_of(node.name).texts
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

    def line(self, node: _Name, rng: random.Random) -> _WildcardLine:
        """Draw a line for a name that `refuses` allows."""
        lines = self._lines_of(node.name)
        [line] = rng.choices(lines.texts, cum_weights=lines.cumulative_weights)
        return _WildcardLine(line, (*node.within, node.name))

    def with_lines(self, choice: _Choice) -> _Choice:
        """Turn {2$$__list__} into a choice among the lines of the list, so that all differ."""
        if not choice.is_counted or len(choice.options) > 1:
            return choice
        nodes = [n for n in choice.options[0].nodes if not (isinstance(n, str) and n.isspace())]
        if len(nodes) != 1 or not isinstance(name := nodes[0], _Name) or self.refuses(name):
            return choice
        lines, within = self._lines_of(name.name), (*name.within, name.name)
        weights: dict[str, float] = {}
        for line, weight in zip(lines.texts, lines.weights, strict=True):
            weights[line] = weights.get(line, 0.0) + weight
        options = [
            _Option(weight, [_WildcardLine(line, within)]) for line, weight in weights.items()
        ]
        return choice._replace(options=options)

    def _lines_of(self, name: str) -> _Lines:
        if name not in self.known:
            word_list = self.lists(name)
            word_list = () if word_list is None else word_list
            self.problems |= dict.fromkeys(
                word_list.problems if isinstance(word_list, WordList) else ()
            )
            matches = [(_LINE.match(line), line) for line in word_list]
            weights = [_option_weight(match) for match, _ in matches if match]
            texts = [line[match.end() :] for match, line in matches if match]
            self.known[name] = _Lines(texts, weights, list(accumulate(weights)))
        return self.known[name]


def _draw_options(choice: _Choice, rng: random.Random) -> list[_Node]:
    """Draw different options by weight, in random order (Efraimidis and Spirakis 2006, Weighted
    random sampling with a reservoir)."""
    maximum = len(choice.options) if choice.maximum == _NO_LIMIT else choice.maximum
    maximum = max(choice.minimum, maximum)
    count = choice.minimum + int(rng.random() * (maximum - choice.minimum + 1))
    turns = [-math.log(1 - rng.random()) / option.weight for option in choice.options]
    order = sorted(range(len(turns)), key=turns.__getitem__)
    nodes: list[_Node] = []
    for index in order[:count]:
        nodes += [choice.joiner] * bool(nodes) + [choice.options[index].nodes]
    return nodes


def _option_weight(match: re.Match[str]) -> float:
    return max(float(match["weight"] or 1), 1e-6)


@dataclass
class _Open:
    """A { or [ that is not closed yet: its options, and the count or weight before each."""

    sign: str = ""
    is_text: bool = False  # of a variable, which is not drawn
    options: list[list[_Node]] = field(default_factory=lambda: [[]])
    prefixes: list[re.Match[str] | None] = field(default_factory=list)

    def as_text(self) -> list[_Node]:
        """Return its text as nodes, for a { that never closes, or a [."""
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
        minimum, maximum, joiner = _count_range(counts[0]) if counts else (1, 1, ", ")
        pairs = zip(map(_option_weight, prefixes), self.options, strict=True)
        options = [_Option(*pair) for pair in pairs]
        return _Choice(options, minimum, max(minimum, maximum), joiner, bool(counts))


def _count_range(count: re.Match[str]) -> tuple[int, int, str]:
    """Return (minimum, maximum, joiner) of the count at the start of a {...}."""
    minimum = int(count["least"] or 1)
    maximum = int(count["upto"] or count["most"] or (_NO_LIMIT if count["dash"] else minimum))
    return minimum, maximum, ", " if count["joiner"] is None else count["joiner"]


def _has_dollars(option: Iterable[_Node]) -> bool:
    return any(first == second == "$" for first, second in pairwise(option))


def _parse_line(line: _WildcardLine, problems: dict[str, None]) -> list[_Node]:
    """Parse a text to nodes; add problems for unsupported syntax."""
    for pattern, meaning in _UNKNOWN:
        if match := pattern.search(line.text):
            reason = Message("{things} are not known here", things=meaning)
            mark = match[0][:80]
            problems[Message("'{mark}' is left as it is: {why}", mark=mark, why=reason)] = None
    return _parse_nodes(tokens(line.text), _WildcardSource(line.text, line.within, problems))


class _WildcardSource(NamedTuple):
    """Text being parsed: a line of a list, or a tag in it."""

    text: str
    within: tuple[str, ...]
    problems: dict[str, None]
    is_tag: bool = False


def _parse_nodes(pieces: Iterable[Token], source: _WildcardSource) -> list[_Node]:
    """Parse tokens to nodes, without recursion, since nesting may be deep."""
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
    """Close a {...}. A variable is text, and so are braces with one option in a LoRA's name."""
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
        return _parse_nodes(tokens_in_tag(token), tag)
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
