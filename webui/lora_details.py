"""The LoRAs on offer, searched and sorted, however many there are.

Listing ten thousand files takes a moment, and reading them for the first time some seconds: that is
done in a thread, and what was known before answers meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sdlora.lora.library.library import Library, LoraEntry
from sdlora.prompt.scanner import escaped

FRESH_S = 5.0  # so long a listing answers without being made anew
PATIENCE_S = 0.15  # so long an answer waits for a new one, when there is an old one
FIRST_PATIENCE_S = 1.0  # and when there is none
ANY_BASE, FITTING = "", "fits"
_SAME = str.maketrans("._-\\", "   /")


def folded(text: str) -> str:
    """A text as it is compared: any case, '.', '_', '-' and space alike."""
    return text.casefold().translate(_SAME)


class Listed(NamedTuple):
    """An entry, and the texts that it is searched in."""

    entry: LoraEntry
    name: str
    text: str


# What they can be sorted by -> the key
ORDERS: dict[str, Callable[[Listed], Any]] = {
    "name": lambda one: (one.name, one.entry.folder),
    "newest": lambda one: -int(one.entry.scanned.stamp.partition(" ")[2] or 0),
    "folder": lambda one: (folded(one.entry.folder), one.name),
    "rank": lambda one: (one.entry.rank, one.name),
}


@dataclass(frozen=True)
class LoraFilter:
    """What somebody looks for. `base` is a base's name, FITTING those of `model_base`, or any."""

    words: str = ""
    base: str = FITTING
    order: str = "name"
    model_base: str = ""

    @property
    def bases(self) -> tuple[str, ...]:
        """The bases that fit; none: all do. A file that tells no base may fit any."""
        wanted = self.model_base if self.base == FITTING else self.base
        return (wanted, "") if wanted else ()


@dataclass(frozen=True)
class LoraMatches:
    """What there is of it: usable files, best first, and those that cannot be used."""

    usable: Sequence[LoraEntry] = ()
    broken: Sequence[LoraEntry] = ()
    other_base: int = 0  # that would be there, were it not for their base
    total: int = 0
    problems: Sequence[str] = ()  # folders that cannot be listed
    reading: bool = False  # the first listing is still being made


class Loras:
    """A library's files, for answers within a key press."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self._listed: Sequence[Listed] | None = None
        self._listed_at = float("-inf")
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def search(self, wish: LoraFilter, fresh: bool = False) -> LoraMatches:
        """What fits a wish. `fresh`: files that have just come are there too."""
        listed = self._current(fresh)
        if listed is None:
            return LoraMatches(reading=True)
        words = folded(wish.words).split()
        hits = [one for one in listed if all(word in one.text for word in words)]
        hits.sort(key=ORDERS[wish.order if wish.order in ORDERS else "name"])
        hits.sort(key=lambda one: not all(word in one.name for word in words))
        usable = [one.entry for one in hits if not one.entry.problem]
        fitting = [e for e in usable if not wish.bases or e.family in wish.bases]
        return LoraMatches(
            fitting,
            [one.entry for one in hits if one.entry.problem],
            len(usable) - len(fitting),
            len(listed),
            self.library.problems,
        )

    def names(self) -> set[str]:
        """The names that are taken, as far as they are known by now."""
        return {one.entry.name for one in self._current(fresh=True) or ()}

    def begin_with(self, start: str, most: int) -> list[LoraEntry]:
        """The usable files whose names go with what was typed so far, the nearest first."""
        typed, listed = folded(start), self._current(fresh=False) or ()
        fits = [one for one in listed if typed in one.text and not one.entry.problem]
        fits.sort(key=lambda one: (not one.name.startswith(typed), typed not in one.name, one.name))
        return [one.entry for one in fits[:most]]

    def _current(self, fresh: bool) -> Sequence[Listed] | None:
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
            Listed(entry, folded(entry.name), "\n".join(map(folded, _texts(entry))))
            for entry in self.library.list()
        ]
        self._listed_at = time.monotonic()


def prompt_words(entry: LoraEntry) -> tuple[str, ...]:
    """The words that call a LoRA, as they are put into a prompt. Those from captions mean
    themselves; its user's own activation text is in the language of prompts already."""
    words = entry.trigger_words
    return words if entry.facts.is_activation_text else tuple(map(escaped, words))


def _texts(entry: LoraEntry) -> Iterable[str]:
    """What a file is found by."""
    return (entry.full_name, entry.alias, entry.facts.title, *entry.trigger_words)
