"""Texts that change over the steps: [from:to:when], [to:when], [from::when], and [a|b] in turn.

The grammar is A1111's (modules/prompt_parser.py, schedule_parser), read in one pass instead of by
an Earley parser: a [...] that is not one of these forms is text, and so is a bracket without its
partner. Unlike there, a '|' outside of [...] does not switch all schedules of the prompt off.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from sdlora.prompt.scanner import Token, joined, tokens
from sdlora.prompt.timing import ALWAYS, NEVER, StepRange, StepTime

MAX_WINDOWS = 16  # of a tag: more [...] around it are refused, not followed
_ROOT, _HIDDEN = 0, 1  # branches that every layout has
_OPENER = {")": "(", "]": "["}
_LONGEST_MOMENT = 40  # letters


def schedule(text: str, steps: int, first_pass: int = 0) -> list[tuple[int, str]]:
    """[(until step, text)]: the last row's step is `steps`, and steps count from 1 as in A1111.

    `steps` is at least 1. `first_pass`, the steps of the pass before, asks for the second pass of
    hires-fix. Escapes and emphasis stay as they are.

    >>> schedule("a [red:blue:0.5] cat", 10)
    [(5, 'a red cat'), (10, 'a blue cat')]
    >>> schedule("[cow|horse]", 3)
    [(1, 'cow'), (2, 'horse'), (3, 'cow')]
    """
    layout = ScheduleLayout(text)
    ends = {steps}
    for _, window in layout.branches:
        if window.turns > 1:
            ends = set(range(1, steps + 1))
            break
        if moment := window.start or window.end:
            ends.add(min(moment.step(steps, first_pass), steps))
    return [(end, layout.text_at(end - 1, steps, first_pass)) for end in sorted(ends) if end >= 1]


@dataclass
class _Bracket:
    """A bracket: the branch that contains it, its own signs by index, and a branch per part."""

    sign: str
    outer: int
    signs: list[int] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)


class ScheduleLayout:
    """A prompt's tokens, each on a branch; a branch is in the text at the steps of its window if
    its parent is. Parents come before their branches, so that no recursion is needed."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(tokens(text))
        self.where = [_ROOT] * len(self.tokens)
        self.branches: list[tuple[int, StepRange]] = [(_ROOT, ALWAYS), (_ROOT, NEVER)]
        self._lay_out()

    def text_at(self, step: int, steps: int, first_pass: int = 0) -> str:
        """The text at `step`, the first being 0."""
        is_open: list[bool] = []
        for parent, window in self.branches:
            shows = window.shows(step, steps, first_pass)
            is_open.append(shows and (is_open[parent] if is_open else True))
        pairs = zip(self.tokens, self.where, strict=True)
        return joined(token for token, branch in pairs if is_open[branch])

    def tags(self) -> Iterator[tuple[Token, tuple[StepRange, ...]]]:
        """Every tag with the windows around it, outermost first, MAX_WINDOWS of them at most."""
        windows: list[tuple[StepRange, ...]] = []
        for parent, window in self.branches:
            around = windows[parent] if windows else ()
            further = window != ALWAYS and len(around) < MAX_WINDOWS
            windows.append((*around, window) if further else around)
        for token, branch in zip(self.tokens, self.where, strict=True):
            if token.kind in ("tag", "bare"):
                yield token, windows[branch]

    def _lay_out(self) -> None:
        waiting: list[_Bracket] = []
        branch = _ROOT
        for index, token in enumerate(self.tokens):
            sign, innermost = token.sign, waiting[-1] if waiting else None
            self.where[index] = branch
            if sign in ("(", "["):
                waiting.append(_Bracket(sign, branch, [index]))
                branch = self._part(waiting[-1])
            elif innermost and sign in (":", "|"):
                innermost.signs.append(index)
                branch = self._part(innermost)
            elif innermost and _OPENER.get(sign) == innermost.sign:
                waiting.pop()
                innermost.signs.append(index)
                self.where[index] = branch = innermost.outer
                self._settle(innermost)
            elif sign in _OPENER:  # crosses what is open, which therefore never closes
                waiting.clear()
                self.where[index] = branch = _ROOT

    def _part(self, bracket: _Bracket) -> int:
        self.branches.append((bracket.outer, ALWAYS))
        bracket.parts.append(len(self.branches) - 1)
        return bracket.parts[-1]

    def _settle(self, bracket: _Bracket) -> None:
        """Give the parts of a closed [...] their windows, and hide its signs, if it has a form."""
        if windows := self._windows(bracket):
            for part, window in zip(bracket.parts, windows, strict=True):
                self.branches[part] = (bracket.outer, window)
            for index in bracket.signs:
                self.where[index] = _HIDDEN

    def _windows(self, bracket: _Bracket) -> list[StepRange]:
        """A window for each part; none when the bracket is not a schedule and no alternation."""
        count = len(bracket.parts)
        marks = {self.tokens[index].text for index in bracket.signs[1:-1]}
        if bracket.sign == "[" and marks == {"|"}:
            return [StepRange(turn=turn, turns=count) for turn in range(count)]
        if bracket.sign == "[" and marks == {":"} and count <= 3:
            colon, end = (self.tokens[index] for index in bracket.signs[-2:])
            short = end.start - colon.end <= _LONGEST_MOMENT
            when = StepTime.read(self.text[colon.end : end.start]) if short else None
            if when:
                return [StepRange(end=when), StepRange(start=when), NEVER][-count:]
        return []
