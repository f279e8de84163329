"""Problems of a dataset: files that are not used as their owner meant, and the warnings of a
run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sdlora.events import Warned
from sdlora.messages import Message


@dataclass(frozen=True)
class Problem:
    """File that is not used as its owner meant, with a message that goes on from the file's name
    ('is damaged'), and advice."""

    path: Path
    message: str
    advice: str = ""

    def to_warning(self) -> Warned:
        """Return the problem as a warning event."""
        return Warned(self._named, self.advice)

    @property
    def _named(self) -> Message:
        return Message("{file} {problem}", file=self.path.name, problem=self.message)

    def message_beside(self, picture: Path) -> str:
        """Return the message for a place that names the picture already: the name of another file
        goes first."""
        return self.message if self.path == picture else self._named


def to_warnings(problems: Iterable[Problem], limit: int = 3) -> list[Warned]:
    """Return the problems as warning events; a problem of more than `limit` files becomes one
    event."""
    alike: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        alike.setdefault((problem.message, problem.advice), []).append(problem)
    warnings: list[Warned] = []
    for (message, advice), sharing in alike.items():
        if len(sharing) <= limit:
            warnings += [problem.to_warning() for problem in sharing]
            continue
        names = [problem.path.name for problem in sharing[:limit]]
        summary = Message(
            "{count} files ({names} ...): each {problem}",
            count=len(sharing),
            names=names,
            problem=message,
        )
        warnings.append(Warned(summary, advice))
    return warnings
