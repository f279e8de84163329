"""Search, filters and order of the LoRA files for the browser, however many there are.

Listing ten thousand files takes a moment, and reading them for the first time some seconds: a
thread does it, and the last listing answers meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sdlora.lora.library.library import Library, LoraEntry
from sdlora.prompt.scanner import escaped

FRESH_S = 5.0  # a listing is reused for so long
PATIENCE_S = 0.15  # wait for a new listing, when there is an old one
FIRST_PATIENCE_S = 1.0  # the same, when there is none
ANY_BASE, FITTING = "", "fits"
_SAME = str.maketrans("._-\\", "   /")


def folded(text: str) -> str:
    """Text for comparison: case-folded; '.', '_', '-' and space alike."""
    return text.casefold().translate(_SAME)


class SearchableLora(NamedTuple):
    """A LoRA file, its folded name, and all the text that it is searched in."""

    entry: LoraEntry
    name: str
    text: str


# Order -> sort key
ORDERS: dict[str, Callable[[SearchableLora], Any]] = {
    "name": lambda file: (file.name, file.entry.folder),
    "newest": lambda file: -int(file.entry.scanned.stamp.partition(" ")[2] or 0),
    "folder": lambda file: (folded(file.entry.folder), file.name),
    "rank": lambda file: (file.entry.rank, file.name),
}


@dataclass(frozen=True)
class LoraFilter:
    """Search of the LoRA browser. `base`: name of an architecture, FITTING (that of `model_base`),
    or ANY_BASE."""

    search: str = ""
    base: str = FITTING
    order: str = "name"
    model_base: str = ""

    @property
    def bases(self) -> tuple[str, ...]:
        """Architectures that match, '' (unknown) among them; empty: all match."""
        base = self.model_base if self.base == FITTING else self.base
        return (base, "") if base else ()


@dataclass(frozen=True)
class LoraMatches:
    """Result of a search: usable files, best match first, and those that cannot be used."""

    usable: Sequence[LoraEntry] = ()
    broken: Sequence[LoraEntry] = ()
    other_base: int = 0  # matches that are for another base model
    total: int = 0
    problems: Sequence[str] = ()  # folders that cannot be listed
    reading: bool = False  # the first listing is still being made


class LoraSearch:
    """Search over a library's files, fast enough to answer each key press."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self._listed: Sequence[SearchableLora] | None = None
        self._listed_at = float("-inf")
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def search(self, lora_filter: LoraFilter, fresh: bool = False) -> LoraMatches:
        """Files that match. `fresh`: include files that were added a moment ago."""
        listed = self._current(fresh)
        if listed is None:
            return LoraMatches(reading=True)
        terms = folded(lora_filter.search).split()
        hits = [file for file in listed if all(word in file.text for word in terms)]
        hits.sort(key=ORDERS[lora_filter.order if lora_filter.order in ORDERS else "name"])
        hits.sort(key=lambda file: not all(word in file.name for word in terms))
        usable = [file.entry for file in hits if not file.entry.problem]
        fitting = [e for e in usable if not lora_filter.bases or e.family in lora_filter.bases]
        return LoraMatches(
            fitting,
            [file.entry for file in hits if file.entry.problem],
            len(usable) - len(fitting),
            len(listed),
            self.library.problems,
        )

    def names(self) -> set[str]:
        """Names that are taken, as far as they are known."""
        return {file.entry.name for file in self._current(fresh=True) or ()}

    def complete_name(self, start: str, limit: int) -> list[LoraEntry]:
        """Usable files whose names or trigger words match the typed text, best match first."""
        typed, listed = folded(start), self._current(fresh=False) or ()
        fits = [file for file in listed if typed in file.text and not file.entry.problem]
        fits.sort(
            key=lambda file: (not file.name.startswith(typed), typed not in file.name, file.name)
        )
        return [file.entry for file in fits[:limit]]

    def _current(self, fresh: bool) -> Sequence[SearchableLora] | None:
        with self._lock:
            if fresh or time.monotonic() - self._listed_at > FRESH_S:
                if self._thread is None or not self._thread.is_alive():
                    self._thread = threading.Thread(target=self._list, daemon=True)
                    self._thread.start()
                patience = PATIENCE_S if self._listed is not None else FIRST_PATIENCE_S
                self._thread.join(patience)
            return self._listed

    def _list(self) -> None:
        self._listed = [
            SearchableLora(entry, folded(entry.name), "\n".join(map(folded, _texts(entry))))
            for entry in self.library.list()
        ]
        self._listed_at = time.monotonic()


def prompt_trigger_words(entry: LoraEntry) -> tuple[str, ...]:
    """Trigger words of a LoRA as they are put into a prompt: those from captions escaped, an
    activation text by its user unchanged, for it is in prompt syntax already."""
    trigger_words = entry.trigger_words
    return trigger_words if entry.facts.is_activation_text else tuple(map(escaped, trigger_words))


def _texts(entry: LoraEntry) -> Iterable[str]:
    """Texts that a file is searched in."""
    return (entry.full_name, entry.alias, entry.facts.title, *entry.trigger_words)
