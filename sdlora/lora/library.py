"""The LoRA files that prompts can name: an index by header only, so thousands are listed at once.

A LoRA's name is its file's stem. It is found by that, whatever the case, with '.', '_', '-' and
space alike, with its sub-folder, or by the name it was trained under. No torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path

from sdlora.errors import LoraFileError, did_you_mean
from sdlora.lora.bases import base_of
from sdlora.lora.formats import pairs_of
from sdlora.lora.header import body_hash, read_header

MAX_TRIGGERS = 3


@dataclass(frozen=True)
class LoraEntry:
    """One file. `problem` says why it cannot be used; `family` is empty when nothing tells it."""

    name: str
    path: Path
    folder: str = ""  # below the library's folder, with '/'
    family: str = ""
    rank: int = 0
    trigger_words: tuple[str, ...] = ()
    size_bytes: int = 0
    metadata: dict[str, str] = field(default_factory=dict, repr=False, hash=False, compare=False)
    problem: str = ""
    also: tuple[Path, ...] = ()  # files of the same name, which this one hides

    @property
    def alias(self) -> str:
        """The name it was trained under; the file may have been renamed since."""
        return self.metadata.get("ss_output_name", "")

    @property
    def full_name(self) -> str:
        """The name with its sub-folder, such as `styles/neon`."""
        return f"{self.folder}/{self.name}" if self.folder else self.name

    @cached_property
    def autov3(self) -> str:
        """The hash that A1111 writes into pictures: 12 letters of sha256 over the tensors."""
        return body_hash(self.path)[:12]


def _folded(name: str) -> str:
    return name.lower().replace("\\", "/").translate(str.maketrans("._-", "   "))


# How a name is looked up, the most exact way first: what of an entry has to equal what of the name
_LOOKUPS: tuple[tuple[Callable[[LoraEntry], str], Callable[[str], str]], ...] = (
    (lambda entry: entry.name, str),
    (lambda entry: entry.full_name, str),
    (lambda entry: _folded(entry.name), _folded),
    (lambda entry: _folded(entry.full_name), _folded),
    (lambda entry: _folded(entry.alias), _folded),
)


class Library:
    """The LoRA files in some folders and the folders below them; the first folder's come first."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self.folders = tuple(folders)

    def list(self) -> list[LoraEntry]:
        """All of them, one per name, by name. An unusable file is there with its problem."""
        found: dict[str, LoraEntry] = {}
        for entry in self._scan():
            first = found.setdefault(entry.full_name, entry)
            if first is not entry:
                found[entry.full_name] = replace(first, also=(*first.also, entry.path))
        return sorted(found.values(), key=lambda entry: _folded(entry.full_name))

    def find(self, name: str) -> LoraEntry:
        """The entry that `name` means. LoraFileError with near names when there is none.

        Where several files fit equally well, the first is taken and its `also` names the others.
        """
        entries = list(self._scan())
        for of_entry, of_name in _LOOKUPS:
            wanted = of_name(name.strip())
            fits = [entry for entry in entries if wanted and of_entry(entry) == wanted]
            if fits:
                return replace(fits[0], also=tuple(entry.path for entry in fits[1:]))
        near = did_you_mean(name[:80], (entry.full_name for entry in entries))
        raise LoraFileError(f"there is no LoRA {name[:80]!r}.{near}")

    def _scan(self) -> Iterable[LoraEntry]:
        for root in self.folders:
            files = root.rglob("*") if root.is_dir() else ()
            for path in sorted(files, key=lambda p: (len(p.parts), str(p).lower())):
                if path.suffix.lower() == ".safetensors" and path.name[0] != ".":
                    folder = path.parent.relative_to(root).as_posix().removeprefix(".")
                    yield _entry(path, folder, stamp(path))


def stamp(path: Path) -> tuple[int, int]:
    """(size, time of change): tells whether a file is still the one that was read."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


@lru_cache(maxsize=20_000)
def _entry(path: Path, folder: str, seen: tuple[int, int]) -> LoraEntry:
    entry = LoraEntry(path.stem, path, folder, size_bytes=seen[0])
    try:
        header = read_header(path)
        entry = replace(entry, metadata=header.metadata)
        pairs = pairs_of(header.shapes)
    except LoraFileError as error:
        return replace(entry, problem=str(error))
    downs = {name: header.shapes[keys.down] for name, keys in pairs.items()}
    return replace(
        entry,
        family=base_of(downs, header.metadata),
        rank=max(shape[0] for shape in downs.values()),
        trigger_words=trigger_words(header.metadata),
    )


def trigger_words(metadata: dict[str, str]) -> tuple[str, ...]:
    """The words that call a LoRA: as its maker says, else the tags that all its captions had."""
    said = metadata.get("modelspec.trigger_phrase") or metadata.get("trained_words", "")
    if said:
        words = _json(said, said)
        words = words if isinstance(words, list) else str(words).split(",")
        return tuple(str(word).strip() for word in words if str(word).strip())
    return _most_frequent(_json(metadata.get("ss_tag_frequency", ""), {}))


def _most_frequent(frequency: object) -> tuple[str, ...]:
    """The tags of `{folder: {tag: count}}` that stand as often as the most frequent one."""
    folders = frequency.values() if isinstance(frequency, dict) else ()
    counts = {
        tag.strip(): count
        for tags in folders
        if isinstance(tags, dict)
        for tag, count in tags.items()
        if isinstance(count, int)
    }
    most = [tag for tag, count in counts.items() if count == max(counts.values())]
    # where every tag stands equally often none of them is special
    return tuple(most) if len(most) <= MAX_TRIGGERS else ()


def _json(text: str, otherwise: object) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return otherwise
