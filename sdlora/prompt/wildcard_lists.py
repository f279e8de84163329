"""The lists that wildcards are drawn from: files of the folder `wildcards`.

    colours/warm.txt      a line an entry, without blanks and # comments: __colours/warm__, __warm__
    clothes.yaml, .yml    lists below keys, as sd-dynamic-prompts has them: __shoes/winter__ of
    clothes.json          {"shoes": {"winter": ["boots"]}}, also __clothes/shoes/winter__

A `*` in a name stands for anything but '/', `**` for anything: __colours/*__ draws from all of
them. A name is looked up among the files found, in any case, so none leads out of the folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Self

import yaml

from sdlora.messages import Message
from sdlora.text_files import UnreadTextError, read_text_file

LIST_SUFFIXES = (".txt", ".yaml", ".yml", ".json")
MAX_LIST_BYTES = 4 * 2**20
MAX_ENTRIES = 200_000  # of one structured file; YAML's references can make many of few
MAX_DEPTH = 16
# Reads all scalars as text, also 'no' and '1.0'
_YAML_LOADER: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
Entries = dict[str, list[str]]


class WordList(tuple[str, ...]):
    """Lines of a list, and messages about parts of its files that are not used."""

    problems: tuple[str, ...] = ()

    @classmethod
    def with_problems(cls, lines: list[str], problems: tuple[str, ...]) -> Self:
        """Return a list of the lines, with each problem once."""
        made = cls(lines)
        made.problems = tuple(dict.fromkeys(problems))
        return made


class StructuredFile(NamedTuple):
    """The lists of a YAML or JSON file by their keys, joined with '/'; '' is the file's own."""

    lists: Mapping[str, list[str]]
    problems: tuple[str, ...] = ()


class WildcardFolder:
    """Lists in a folder and its sub-folders, by name. Files are listed once, and read when a name
    is looked up."""

    def __init__(self, folder: Path) -> None:
        root = folder.resolve()
        self._texts: dict[str, Path] = {}
        self._structured_files: list[tuple[str, Path]] = []
        self._others: dict[str, Path] = {}  # files that are no lists
        paths = [path for path in sorted(root.rglob("*")) if _is_inside(path, root)]
        for path in paths:
            name = path.relative_to(root).with_suffix("").as_posix().lower()
            if path.suffix.lower() == ".txt":
                self._texts[name] = path
            elif path.suffix.lower() in LIST_SUFFIXES:
                self._structured_files.append((name, path))
            else:
                self._others.setdefault(name, path)
        self._short = {name.rpartition("/")[2]: path for name, path in _reversed_items(self._texts)}

    def __call__(self, name: str) -> WordList | None:
        """Return the list of that name; None when there is none. An empty one has a problem."""
        lowered = name.lower()
        if "*" in lowered:
            return self._matching_lists(lowered)
        if path := self._texts.get(lowered) or self._short.get(lowered):
            return _read_lines(path)
        if (structured := self._structured.get(lowered)) is not None:
            return structured
        return self._explain_missing(lowered)

    def _matching_lists(self, pattern: str) -> WordList | None:
        stars = re.split(r"(\*+)", pattern)
        parts = [re.escape(p) if i % 2 == 0 else _star_pattern(p) for i, p in enumerate(stars)]
        matches = re.compile("".join(parts)).fullmatch
        lists = [_read_lines(path) for name, path in self._texts.items() if matches(name)]
        lists += [word_list for name, word_list in self._structured.items() if matches(name)]
        if not lists:
            return None
        lines = dict.fromkeys(line for word_list in lists for line in word_list)
        return WordList.with_problems(
            list(lines), tuple(problem for word_list in lists for problem in word_list.problems)
        )

    @cached_property
    def _structured(self) -> dict[str, WordList]:
        """The lists of all structured files: by their keys, and with the file's name before."""
        lists: dict[str, WordList] = {}
        for name, path in self._structured_files:
            file = _structured_file(path)
            for keys, lines in file.lists.items():
                word_list = WordList.with_problems(lines, file.problems)
                lists.setdefault(f"{name}/{keys}".rstrip("/"), word_list)
                lists.setdefault(keys or name.rpartition("/")[2], word_list)
        return lists

    def _explain_missing(self, name: str) -> WordList | None:
        """Return an empty list with the reasons if unusable files may be the list of that name."""
        problems: list[str] = []
        for _, path in self._structured_files:
            file = _structured_file(path)
            problems += [] if file.lists else file.problems
        for other, path in self._others.items():
            if name in (other, other.rpartition("/")[2]):
                problems.append(
                    Message(
                        "{file} is not read as a list; lists are {suffixes} files",
                        file=path,
                        suffixes=LIST_SUFFIXES,
                    )
                )
        return WordList.with_problems([], tuple(problems)) if problems else None


def _is_inside(path: Path, root: Path) -> bool:
    try:
        return path.resolve().is_relative_to(root) and path.is_file()
    except (OSError, RuntimeError):  # a link to itself
        return False


def _reversed_items(files: Mapping[str, Path]) -> Iterator[tuple[str, Path]]:
    """Items in reverse order, so that of two files of one short name the first wins."""
    return reversed(list(files.items()))


def _star_pattern(stars: str) -> str:
    return "[^/]*" if len(stars) == 1 else ".*"


def _read_lines(path: Path) -> WordList:
    try:
        text, problems = read_text_file(path, MAX_LIST_BYTES)
    except UnreadTextError as error:
        return WordList.with_problems([], (error.message,))
    lines = (line.strip() for line in text.splitlines())
    return WordList.with_problems([x for x in lines if x and not x.startswith("#")], problems)


def _structured_file(path: Path) -> StructuredFile:
    try:
        stat = path.stat()
    except OSError as error:
        why = Message("{file} is not used: {why}", file=path, why=error.strerror or str(error))
        return StructuredFile({}, (why,))
    return _parse_structured(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _parse_structured(path: Path, size: int, mtime_ns: int) -> StructuredFile:
    """Parse the file at `path`. Cached by size and time: a prompt is expanded at each keystroke."""
    try:
        text, problems = read_text_file(path, MAX_LIST_BYTES)
    except UnreadTextError as error:
        return StructuredFile({}, (error.message,))
    try:
        value = (
            json.loads(text) if path.suffix.lower() == ".json" else yaml.load(text, _YAML_LOADER)
        )
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())[:300]
        broken = Message("{file} is not used: it is damaged ({why})", file=path, why=why)
        return StructuredFile({}, (broken,))
    lists: Entries = {}
    left_out = _collect(value, lists)
    further = []
    if left_out:
        example, count = repr(left_out[0])[:80], len(left_out)
        further = [
            Message(
                "{count} entries of {file} are not used, for they are no texts, such as {example}; "
                "put a text with braces or a colon in quotes",
                count=count,
                file=path,
                example=example,
            )
        ]
    return StructuredFile(lists, (*problems, *further))


def _collect(value: Any, lists: Entries) -> list[Any]:
    """Fill `lists` by the path of their keys; return the values that are no list, text or table."""
    left_out: list[Any] = []
    waiting: list[tuple[tuple[str, ...], Any]] = [((), value)]
    count = 0
    while waiting and count < MAX_ENTRIES:
        keys, value = waiting.pop()
        count += 1
        if isinstance(value, dict) and len(keys) < MAX_DEPTH:
            rows = [((*keys, str(key).strip().lower()), inner) for key, inner in value.items()]
            waiting.extend(reversed(rows))
            continue
        entries = value if isinstance(value, list) else [value]
        count += len(entries)
        lines_or_none = [_entry_text(entry) for entry in entries]
        left_out += [e for e, word in zip(entries, lines_or_none, strict=True) if word is None]
        if lines := [word for word in lines_or_none if word]:
            lists.setdefault("/".join(keys), []).extend(lines)
    return left_out + [value for _, value in waiting]


def _entry_text(value: Any) -> str | None:
    """Return an entry as a line; '' for null; None if it is neither text nor number."""
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return "" if value is None else None
