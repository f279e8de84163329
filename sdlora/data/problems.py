"""Files that are not used as their owner meant, and how a run says so."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sdlora.events import Warned
from sdlora.messages import Message


@dataclass(frozen=True)
class Problem:
    """A file that is not used as its owner meant: the sentence is 'NAME WHAT', then the advice."""

    path: Path
    what: str
    advice: str = ""

    def warned(self) -> Warned:
        """The problem as a run says it."""
        return Warned(self._named, self.advice)

    @property
    def _named(self) -> Message:
        return Message("{file} {what}", file=self.path.name, what=self.what)

    def beside(self, picture: Path) -> str:
        """What is said where the picture is named already: the name of another file goes first."""
        return self.what if self.path == picture else self._named


def grouped(problems: Iterable[Problem], most: int = 3) -> list[Warned]:
    """The problems as a run says them; one that many files have is said once."""
    alike: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        alike.setdefault((problem.what, problem.advice), []).append(problem)
    warnings: list[Warned] = []
    for (what, advice), same in alike.items():
        if len(same) <= most:
            warnings += [problem.warned() for problem in same]
            continue
        names = [problem.path.name for problem in same[:most]]
        message = Message(
            "{count} files ({names} ...): each {what}", count=len(same), names=names, what=what
        )
        warnings.append(Warned(message, advice))
    return warnings
