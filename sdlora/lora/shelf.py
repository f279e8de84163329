"""LoRA files as they were listed at one moment, and what a name means among them; no torch."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from heapq import nlargest
from pathlib import Path

from sdlora.lora.entry import LoraEntry
from sdlora.lora.facts import plain
from sdlora.lora.hashes import is_hash
from sdlora.lora.walk import PICKLES, READABLE, is_pickle
from sdlora.messages import Message

COMPARED = 30  # names that a mistaken one is compared with letter by letter


def _folded(name: str) -> str:
    # a tag cannot hold the last three, so that it is written without them
    same = unicodedata.normalize("NFC", name).casefold().replace("\\", "/")
    same = same.translate({ord(sign): None for sign in ":<>"})
    return same.replace(".", " ").replace("_", " ").replace("-", " ")


# How a name is looked up, the most exact way first: what of an entry has to equal what of the name
_LOOKUPS: tuple[tuple[Callable[[LoraEntry], str], Callable[[str], str]], ...] = (
    (lambda entry: entry.name, str),
    (lambda entry: entry.full_name, str),
    (lambda entry: _folded(entry.name), _folded),
    (lambda entry: _folded(entry.full_name), _folded),
    (lambda entry: _folded(entry.alias), _folded),
)


class Shelf:
    """The files as they were listed at one moment, in the order in which they are preferred."""

    def __init__(self, entries: Sequence[LoraEntry] = ()) -> None:
        self.entries = sorted(entries, key=lambda entry: is_pickle(entry.found.path))
        self._tables: dict[int, dict[str, list[LoraEntry]]] = {}  # by place in _LOOKUPS

    @cached_property
    def by_name(self) -> list[LoraEntry]:
        """All, sorted. Of files with one full name the first has it; the others say who has."""
        first: dict[str, LoraEntry] = {}
        hidden: dict[str, list[LoraEntry]] = defaultdict(list)
        for entry in self.entries:
            if first.setdefault(entry.full_name, entry) is not entry:
                hidden[entry.full_name].append(entry)
        for name, others in hidden.items():
            owner = first[name]
            first[name] = replace(owner, also=tuple(entry.path for entry in others))
            template = "{name!r} means {file}; to use this file, rename it"
            said = Message(template, name=plain(name), file=Path(plain(owner.path)))
            hidden[name] = [replace(entry, hidden=said) for entry in others]
        rest = (entry for others in hidden.values() for entry in others)
        return sorted([*first.values(), *rest], key=lambda entry: _folded(entry.full_name))

    def find(self, name: str) -> LoraEntry | None:
        """The entry that a name or a known hash means; `also` names others that fit as well."""
        fits = self._called(name) if name else []
        if not fits and is_hash(start := name.lower()):
            fits = [entry for entry in self.entries if entry.hashes.fit(start)]
            # what a file claims may be stale, or another's
            fits = fits or [e for e in self.entries if e.facts.said_hash.startswith(start)]
        if name and not fits:
            return self._nearly_called(name)
        return replace(fits[0], also=tuple(one.path for one in fits[1:])) if fits else None

    def _called(self, name: str) -> list[LoraEntry]:
        for way, (of_entry, of_name) in enumerate(_LOOKUPS):
            if way not in self._tables:
                table = defaultdict(list)
                for entry in self.entries:
                    table[of_entry(entry)].append(entry)
                self._tables[way] = table  # whole, for other threads look here too
            key = of_name(name)
            if key and (fits := self._tables[way].get(key)):
                return fits
        return []

    def _nearly_called(self, name: str) -> LoraEntry | None:
        """The entry of a name with its file's ending, or with a folder that it does not lie in."""
        way = name.replace("\\", "/").split("/")
        stem, dot, ending = way[-1].rpartition(".")
        has_ending = (dot + ending).lower() in (*READABLE, *PICKLES)
        if not all(part.strip(".") for part in way):
            return None
        way[-1] = stem if has_ending else way[-1]
        if has_ending and (fits := self._called("/".join(way))):
            also = tuple(entry.path for entry in fits[1:])
            why = Message("a file's ending is no part of its name")
        elif len(way) > 1 and len(fits := self._called(way[-1])) == 1:
            also, why = (), Message("it is the only file of that name, in another folder")
        else:
            return None
        note = Message(
            "{name!r} is taken as {found!r}: {why}",
            name=name[:80], found=fits[0].full_name, why=why,
        )  # fmt: skip
        return replace(fits[0], also=also, note=note)

    def near(self, name: str) -> list[str]:
        """Names that look like one, for what is said when it is not there."""
        pieces = _pieces(name)
        alike = nlargest(
            COMPARED, self.entries, key=lambda entry: len(pieces & _pieces(entry.full_name))
        )
        return [entry.full_name for entry in alike]


def _pieces(name: str) -> set[str]:
    same = _folded(name)
    return {same[at : at + 2] for at in range(len(same) - 1)}
