"""Disk space: what a training will need, and what it does when there is none left.

A training does not end for want of space. A checkpoint that does not fit is warned of, and the next
is tried; what comes at its end, or when it is stopped, waits until it fits, and all that was learnt
waits in memory with it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sdlora.cache import Cache
from sdlora.disk_room import free_bytes, written_when_room
from sdlora.errors import RunError
from sdlora.events import Event, Warned
from sdlora.files import DISK_FULL
from sdlora.messages import Message, Setting, size_in_words
from sdlora.settings.cadence import times_left
from sdlora.settings.train import TrainSettings
from sdlora.training.checkpoints import checkpoint_folders

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class DiskSpace:
    """The disk that a training writes to, and the cache there, which can be made again."""

    folder: Path
    cache: Path

    @property
    def free(self) -> int:
        """Bytes that are free."""
        return free_bytes(self.folder)

    def written(
        self, write: Callable[[], ResultT], size: int, wait: bool = False
    ) -> Generator[Event, None, ResultT]:
        """Return what `write` gives, which needs `size` bytes. Where the disk is full, the cache is
        emptied first; then, if it shall `wait`, it is tried until there is room. RunError: there
        is none. OSError: another error than a full disk."""

        def problem(error: OSError) -> Message:
            return Message(
                "{why}; {size} are needed{then}", why=self._reason(error),
                size=size_in_words(size), then="; it waits" if wait else "",
            )  # fmt: skip

        try:
            return write()
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            reason, needed = self._reason(error), problem(error)
        if freed := Cache(self.cache).trim():
            template = "{why}; the cache was emptied of {freed}"
            yield Warned(Message(template, why=reason, freed=size_in_words(freed)), "")
        elif not wait:
            raise RunError(needed)
        advice = "make room, and it goes on by itself; what was learnt waits in memory"
        return (yield from written_when_room(write, problem, advice, gives_up=lambda: not wait))

    def _reason(self, error: OSError) -> Message:
        template = "{why}: the disk of {folder} has {free} free"
        free = size_in_words(self.free)
        return Message(template, folder=self.folder, free=free, why=error.strerror)

    def check(
        self, settings: TrainSettings, step: int, checkpoint: int, lora: int
    ) -> Iterator[Event]:
        """Check after `step` that all fits that will be written, where a checkpoint and the LoRA
        take so many bytes; warn otherwise. RunError: not one of each does."""
        free, more = self.free, self._checkpoints_to_come(settings, step)
        least = min(more, 1) * checkpoint + 2 * lora  # in the run's folder, and where prompts look
        if free < least:
            raise RunError(
                "the disk of {folder} has {free} free, and this training needs at least {least}, "
                "for a checkpoint and its LoRA. Make room and resume it",
                folder=self.folder, free=size_in_words(free), least=size_in_words(least),
            )  # fmt: skip
        if free < (needed := more * checkpoint + 2 * lora):
            yield Warned(
                Message(
                    "the disk of {folder} has {free} free, and this training writes up to "
                    "{needed}: {more} checkpoints of {each} each and its LoRA",
                    folder=self.folder, free=size_in_words(free), needed=size_in_words(needed),
                    more=more, each=size_in_words(checkpoint),
                ),
                Message(
                    "make room, or lower {keep}; a checkpoint that does not fit is left out",
                    keep=Setting("keep_checkpoints"),
                ),
            )  # fmt: skip

    def _checkpoints_to_come(self, settings: TrainSettings, step: int) -> int:
        """Return how many more there will be at once. One is written before the oldest is taken
        away; the best is kept beside the newest; and one is written when the training ends
        early."""
        held_out = settings.validation_share or settings.validation_data
        limit = settings.keep_checkpoints + 1 + bool(settings.validate_every and held_out)
        due = times_left(step, settings.save_every, settings.steps)
        early = int(step < settings.steps)
        present = len(checkpoint_folders(self.folder))
        return min(max(limit - present, 1), max(due, early))
