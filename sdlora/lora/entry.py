"""One LoRA file as a library lists it; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sdlora.lora.hashes import Hashes
from sdlora.lora.index import Facts, Row
from sdlora.lora.walk import Found
from sdlora.messages import Message


@dataclass(frozen=True)
class LoraEntry:
    """One file. Listing thousands makes one of these for each: what it says is looked at when it
    is asked for."""

    found: Found
    row: Row
    hidden: Message = Message("")  # why its name means another file
    also: tuple[Path, ...] = ()  # files of the same name, which this one hides
    note: Message = Message("")  # how the name that was looked for differs from its own

    @cached_property
    def facts(self) -> Facts:
        """What it says of itself, and others beside it."""
        return Facts.of(self.row.facts)

    @property
    def name(self) -> str:
        """The file's stem."""
        return self.found.name

    @property
    def folder(self) -> str:
        """Where it lies below the library's folder, with '/'."""
        return self.found.folder

    @property
    def full_name(self) -> str:
        """The name with its sub-folder, such as `styles/neon`."""
        return f"{self.found.folder}/{self.found.name}" if self.found.folder else self.found.name

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.found.path)

    @property
    def preview(self) -> Path | None:
        """A picture of its name beside it."""
        return Path(self.found.preview) if self.found.preview else None

    @property
    def size_bytes(self) -> int:
        """Of the whole file."""
        return int(self.found.stamp.partition(" ")[0])

    @property
    def problem(self) -> Message:
        """Why it cannot be used, or not by its name."""
        return self.facts.problem or self.hidden

    @property
    def alias(self) -> str:
        """The name it was trained under; the file may have been renamed since."""
        return self.facts.alias

    @property
    def family(self) -> str:
        """The base it is for, a name in BASES; empty when nothing tells it."""
        return self.facts.base

    @property
    def rank(self) -> int:
        """The highest of its layers."""
        return self.facts.rank

    @property
    def trigger_words(self) -> tuple[str, ...]:
        """The words that call it."""
        return tuple(self.facts.trigger_words)

    @property
    def hashes(self) -> Hashes:
        """Those that are known without reading the file."""
        return self.row.hashes
