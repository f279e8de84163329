"""Caption augmentation: prefix and suffix around a caption, and the parts that are drawn at random
each time: one of its lines, wildcards, the order of tags, and the tags that are dropped.

The draw depends on the random generator given alone, so a step reads the same captions whenever it
is run.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sdlora.data.captions import tags_of
from sdlora.data.image_augmentation import seeded_random
from sdlora.prompt.scanner import tokens
from sdlora.prompt.wildcards import Lists, expand_wildcards
from sdlora.settings.train import TrainSettings

WordLists = Mapping[str, tuple[str, ...]]  # name in small letters -> lines


def find_wildcard_lists(texts: Iterable[str], lists: Lists) -> dict[str, tuple[str, ...]]:
    """Return every wildcard list that __name__ in one of the texts means, and those that their
    lines name in turn, as they are now: name in small letters -> lines, () where there is no such
    list."""
    lists_by_name: dict[str, tuple[str, ...]] = {}
    pending = [*texts]
    while pending:
        for token in tokens(pending.pop()):
            name = token.text.strip("_").lower()
            if token.kind == "wildcard" and name not in lists_by_name:
                lists_by_name[name] = tuple(lists(name) or ())
                pending += lists_by_name[name]
    return lists_by_name


@dataclass(frozen=True)
class CaptionAugmenter:
    """Augmentation of captions as the settings ask. A caption is lines with newlines between, one
    of which is drawn. `lists` are those that its wildcards name.

    `own` is False for a regularisation picture, whose caption gets neither prefix nor suffix.
    """

    settings: TrainSettings
    lists: WordLists = field(default_factory=dict)

    def plain(self, caption: str, own: bool = True) -> str:
        """Return the caption without augmentation: its first line, with all tags in order, its
        wildcards always the same."""
        line = caption.partition("\n")[0]
        return self._around(
            self._filled(line, seeded_random(self.settings.seed, "plain", line)), own
        )

    def varies(self, caption: str) -> bool:
        """Return True if augmentation can give a text other than the plain one; caption dropout
        aside."""
        wild = self.settings.caption_wildcards and ("{" in caption or "__" in caption)
        loose = len(tags_of(caption)) > self.settings.keep_tags
        return wild or "\n" in caption or (self._draws_tags and loose)

    def drawn(self, caption: str, rng: random.Random, own: bool = True) -> str:
        """Return the caption as `rng` augments it."""
        line = self._filled(rng.choice(caption.split("\n")), rng)
        return self._around(self._tags_drawn(line, rng) if self._draws_tags else line, own)

    def variants(self, caption: str, picture: str, own: bool = True) -> tuple[str, ...]:
        """Return the augmented texts of a picture's caption that are encoded ahead and cached."""
        if not self.varies(caption):
            return (self.plain(caption, own),)
        seed, count = self.settings.seed, max(1, self.settings.caption_variants)
        rolls = (seeded_random(seed, "wording", number, picture) for number in range(count))
        return tuple(self.drawn(caption, rng, own) for rng in rolls)

    def _filled(self, line: str, rng: random.Random) -> str:
        """The line with its wildcards drawn."""
        if not self.settings.caption_wildcards:
            return line
        lists = self.lists
        return expand_wildcards(
            line, rng.getrandbits(32), lambda name: lists.get(name.lower())
        ).text

    @property
    def _draws_tags(self) -> bool:
        return self.settings.shuffle_tags or self.settings.tag_dropout > 0

    def _tags_drawn(self, line: str, rng: random.Random) -> str:
        """Return the line with its first `keep_tags` tags as they are, the others shuffled and some
        dropped."""
        tags = tags_of(line)
        fixed, loose = tags[: self.settings.keep_tags], tags[self.settings.keep_tags :]
        loose = [tag for tag in loose if rng.random() >= self.settings.tag_dropout]
        if self.settings.shuffle_tags:
            rng.shuffle(loose)
        return ", ".join([*fixed, *loose])

    def _around(self, line: str, own: bool) -> str:
        if not own:
            return line
        before, after = self.settings.caption_prefix.strip(), self.settings.caption_suffix.strip()
        begun = " ".join(filter(None, (before, line)))
        return (
            f"{begun}{after}" if after.startswith((",", ".", ";")) else f"{begun} {after}".strip()
        )
