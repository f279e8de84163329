"""Conversion of other programs' emphasis syntax to A1111's.

    InvokeAI (compel):  cat++ (red)1.3 "a dog"-     ->  (cat:1.21) (red:1.3) (a dog:0.9)
    NovelAI:            {cat} [red] 1.3::a dog::    ->  (cat:1.05) (red:0.952) (a dog:1.3)

compel 2.x: prompt_parser.py, where a plus is 1.1 and a minus 0.9; NovelAI: docs.novelai.net, where
a bracket is 1.05. What has no meaning there and one here, such as `[` for InvokeAI, is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from sdlora.messages import Message

_Segment = tuple[str, float]  # text, weight
_PLUS, _MINUS, _BRACKET = 1.1, 0.9, 1.05
_DEEPEST = 40  # brackets in each other; what is deeper is text
_COMPEL = re.compile(
    r"""
      (?P<escape> \\. )
    | (?P<open> \( )
    | (?P<close> \) (?P<after> \++ | -+ | [0-9]{0,6}\.?[0-9]{1,6} )? )
    | "(?P<quoted> [^"\\()]* )" (?P<signs> \++ | -+ )?
    | (?P<word> [^\s\\(),"]+ )
    | (?P<text> . )
    """,
    re.VERBOSE | re.DOTALL,
)
_METHODS = re.compile(r"\)\.(?:blend|and|swap)\(|\w\.swap\(")
_NOVELAI = re.compile(
    r"""
      (?P<sign> [{}\[\]] )
    | (?P<weight> -?[0-9]{0,6}\.?[0-9]{1,6} )? ::
    | (?P<text> [^{}\[\]:0-9.-]+ | . )
    """,
    re.VERBOSE | re.DOTALL,
)
_ENDS = ".!?;:"


def from_compel(text: str) -> tuple[str, list[Message]]:
    """Convert InvokeAI's prompt to A1111's syntax; unchanged, with a message, where impossible."""
    if method := _METHODS.search(text):
        return text, [
            Message("{method} of InvokeAI's prompt is not known here", method=method[0].strip(")("))
        ]
    levels: list[list[_Segment]] = [[]]
    for match in _COMPEL.finditer(text):
        kind = match.lastgroup or ""
        if match["open"] and len(levels) <= _DEEPEST:
            levels.append([])
        elif match["close"] and len(levels) > 1:
            weight = _compel_weight(match["after"] or "")
            inner = levels.pop()
            levels[-1] += [(part, own * weight) for part, own in inner]
        elif match["escape"]:
            levels[-1].append((match[0][1:], 1.0))
        elif match["quoted"] is not None:
            quoted = match["quoted"] if match["signs"] else match[0]
            levels[-1].append((quoted, _compel_weight(match["signs"] or "")))
        else:
            levels[-1] += _word(match[0]) if kind == "word" else [(match[0], 1.0)]
    return _a1111_text(_closed(levels, "(")), []


def from_novelai(text: str) -> tuple[str, list[Message]]:
    """Convert NovelAI's prompt to A1111's syntax."""
    segments: list[_Segment] = []
    brackets, weight = 0, 1.0
    for match in _NOVELAI.finditer(text):
        if match["sign"]:
            brackets += {"{": 1, "}": -1, "[": -1, "]": 1}[match[0]]
            brackets = max(-_DEEPEST, min(brackets, _DEEPEST))
        elif match["text"]:
            segments.append((match[0], weight * _BRACKET**brackets))
        else:
            weight = float(match["weight"] or 1)
    return _a1111_text(segments), []


def _word(word: str) -> list[_Segment]:
    """Segments of a word and the + or - signs after it."""
    core = word.rstrip(_ENDS)
    bare = core.rstrip("+") if core.endswith("+") else core.rstrip("-")
    if not bare or bare == core:
        return [(word, 1.0)]
    return [(bare, _compel_weight(core[len(bare) :])), (word[len(core) :], 1.0)]


def _compel_weight(after: str) -> float:
    signs = min(len(after), _DEEPEST)
    if after.startswith(("+", "-")):
        return float((_PLUS if after[0] == "+" else _MINUS) ** signs)
    return float(after) if after else 1.0


def _closed(levels: list[list[_Segment]], opener: str) -> list[_Segment]:
    """Return all segments in order; an unclosed bracket is text."""
    first, *others = levels
    return first + [part for level in others for part in [(opener, 1.0), *level]]


def _a1111_text(segments: list[_Segment]) -> str:
    return "".join(_with_emphasis(text, weight) for text, weight in _join_segments(segments))


def _join_segments(segments: list[_Segment]) -> Iterator[_Segment]:
    """Join neighbours of one weight; spaces alone take the weight of their neighbour."""
    texts: list[str] = []
    current = "1"
    for text, weight in [*segments, ("", 0.0)]:
        shown = f"{weight:.3g}"
        if shown != current and not (text.isspace() and weight):
            yield "".join(texts), float(current)
            texts, current = [], shown
        texts.append(text)


def _with_emphasis(text: str, weight: float) -> str:
    escaped = re.sub(r"([\\()\[\]{}#])", r"\\\1", text)
    core = escaped.strip()
    if weight == 1 or not core:
        return escaped
    begin = len(escaped) - len(escaped.lstrip())
    return f"{escaped[:begin]}({core}:{weight:g}){escaped[begin + len(core) :]}"
