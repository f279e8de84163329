"""Messages to the user: an English template with named values, filled where it is shown.

    Message("{setting} = {given}: use {low} or more", setting=Setting("batch_size"), given=0, low=1)

A message is a `str`: its neutral text, for logs and programs. The command and the page fill the
same template in words of their own: a setting is a flag here and a field's label there, a file its
path here and its name there. As with gettext, the template is also what a translation starts from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Self

from sdlora import PROGRAM


@dataclass(frozen=True)
class Setting:
    """A setting, named as each surface names it: `--batch-size`, or the label "Batch size"."""

    name: str


@dataclass(frozen=True)
class PerSurface:
    """Texts that differ altogether: what to type on the command line, what to press on the page.
    `command` serves neutral texts as well."""

    command: str
    page: str


@dataclass(frozen=True)
class Surface:
    """A place where messages are shown (log, command line, page), and its names of settings and
    files."""

    setting: Callable[[str], str]
    path: Callable[[PurePath], str]
    page: bool = False

    def value_text(self, value: Any) -> Any:
        """Return a value for a format specification: a number as it is, all else as text."""
        if isinstance(value, Message):
            return value.on(self)
        if isinstance(value, Setting):
            return self.setting(value.name)
        if isinstance(value, PerSurface):
            return value.page if self.page else _by_program(value.command)
        if isinstance(value, PurePath):
            return self.path(value)
        if isinstance(value, (list, tuple)):
            return ", ".join(str(self.value_text(part)) for part in value)
        return value


def flag(name: str) -> str:
    """'batch_size' -> '--batch-size'."""
    return f"--{name.replace('_', '-')}"


_LABELS: dict[str, str] = {}  # setting -> its label on the page, where its field has a `title`


def add_label(name: str, text: str) -> None:
    """Make `text` the label of the setting `name`. ValueError: it has another label already."""
    if _LABELS.setdefault(name, text) != text:
        raise ValueError(f"{name} has the labels {_LABELS[name]!r} and {text!r}; choose one")


def label(name: str) -> str:
    """Label of a setting on the page: its field's `title`, else 'batch_size' -> 'Batch size'."""
    return _LABELS.get(name) or name.replace("_", " ").capitalize()


def readable(text: str) -> str:
    """Text that every terminal, page and file can hold: bytes of a file's name that are not UTF-8
    as Windows-1252 reads them, half a character as the replacement character."""
    return text if text.isascii() else _SURROGATE.sub(_as_letter, text)


_SURROGATE = re.compile("[\ud800-\udfff]")


def _as_letter(half: re.Match[str]) -> str:
    code = ord(half[0])
    if 0xDC80 <= code <= 0xDCFF:  # how Python names a byte that is not UTF-8 (PEP 383)
        return bytes((code - 0xDC00,)).decode("cp1252", "replace")
    return "\N{REPLACEMENT CHARACTER}"


TEXT = Surface(str, str)
COMMAND = Surface(flag, str)
PAGE = Surface(label, lambda path: path.name or str(path), page=True)


def command_surface(operands: Mapping[str, str]) -> Surface:
    """Return the surface of a command: its positional arguments (setting -> name in its usage line)
    are named as that line names them, all else is a flag."""
    return Surface(lambda name: operands.get(name) or flag(name), str)


RECORD = Surface(str, PAGE.path)  # neutral words that others may read: no folders of this machine


class Message(str):
    """A template and its named values. As a `str`, its text in neutral words (`TEXT`)."""

    template: str
    values: dict[str, Any]

    def __new__(cls, template: str, /, **values: Any) -> Self:
        """Without values the template is taken literally, braces and all."""
        plain_values = {name: _storable(value) for name, value in values.items()}
        message = super().__new__(cls, _filled(template, plain_values, TEXT))
        message.template, message.values = str(template), plain_values
        return message

    @classmethod
    def of_lines(cls, messages: Iterable[str]) -> Self:
        """Several messages as one, a line each."""
        lines = [as_message(message) for message in messages]
        names = [f"line_{number}" for number in range(len(lines))]
        template = "\n".join(f"{{{name}}}" for name in names)
        return cls(template, **dict(zip(names, lines, strict=True)))

    def on(self, surface: Surface) -> str:
        """The text in the words of a surface."""
        return _filled(self.template, self.values, surface)

    def sentences(self, surface: Surface) -> list[str]:
        """Return the lines on a surface, each with a capital at its beginning and a stop at its
        end. A file's name or a quoted word at the beginning stays as it is."""
        lines = self.template.split("\n")
        sentences: list[str] = []
        for line in lines:
            inner = self.values.get(line[1:-1]) if _IS_VALUE.fullmatch(line) else None
            if isinstance(inner, Message):
                sentences += inner.sentences(surface)
            else:
                text = _filled(line, self.values, surface).strip()
                sentences += [_sentence(part, line) for part in text.splitlines() if part.strip()]
        return sentences

    def to_json(self) -> dict[str, Any]:
        """Template and values as plain JSON types."""
        values = {name: _to_json(value) for name, value in self.values.items()}
        return {"template": self.template, "values": values}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        """The message that `to_json` wrote. KeyError, TypeError, ValueError: it did not."""
        values = {str(name): _from_json(value) for name, value in row["values"].items()}
        return cls(str(row["template"]), **values)


def size_in_words(size: int) -> str:
    """Return a count of bytes as '0.4 MiB' or '12.0 GiB'."""
    return f"{size / 2**20:.1f} MiB" if size < 2**30 else f"{size / 2**30:.1f} GiB"


def as_message(text: str) -> Message:
    """A message as it is; any other text as a message of its own."""
    return text if isinstance(text, Message) else Message(text)


_IS_VALUE = re.compile(r"\{\w+\}")
_PLAIN_WORD = re.compile(r"[a-z]+[ ,:]")


def _sentence(text: str, template: str) -> str:
    begins_plainly = not template.startswith("{") and _PLAIN_WORD.match(text)
    text = text[0].upper() + text[1:] if begins_plainly else text
    return text if text.endswith((".", "!", "?", "…", ":")) else f"{text}."


def _filled(template: str, values: Mapping[str, Any], surface: Surface) -> str:
    template = _by_program(template)
    if values:
        texts = {name: surface.value_text(value) for name, value in values.items()}
        template = template.format_map(texts)
    return readable(str(template))


def _by_program(text: str) -> str:
    """Return text that names commands, with the program as it is called where it runs."""
    return text.replace("python launch.py", PROGRAM)


def _storable(value: Any) -> Any:
    """Return a value as a message stores it: of types without a meaning here their text, of an
    error of ours its message."""
    value = value.message if isinstance(getattr(value, "message", None), Message) else value
    if isinstance(value, (Message, Setting, PerSurface, PurePath)):
        return value
    if isinstance(value, (list, tuple)):
        return tuple(map(_storable, value))
    return value if type(value) in (bool, int, float) else readable(str(value))


def _to_json(value: Any) -> Any:
    """A value as plain JSON types, a file's name in its readable form."""
    if isinstance(value, Message):
        return value.to_json()
    if isinstance(value, Setting):
        return {"setting": value.name}
    if isinstance(value, PerSurface):
        return {"command": value.command, "page": value.page}
    if isinstance(value, PurePath):
        return {"path": readable(str(value))}
    return list(map(_to_json, value)) if isinstance(value, tuple) else value


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_from_json, value))
    if not isinstance(value, dict):
        return value
    if "template" in value:
        return Message.from_json(value)
    if "setting" in value:
        return Setting(str(value["setting"]))
    if "path" in value:
        return Path(str(value["path"]))
    return PerSurface(str(value["command"]), str(value["page"]))
