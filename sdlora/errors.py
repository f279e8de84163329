"""Errors that a user can fix.

SdloraError
├── SettingsError    a setting, flag or name is not one we accept
├── DataError        a picture folder cannot be trained on
├── ModelError       a base model cannot be found, recognised or opened
├── LoraFileError    a LoRA file cannot be read, or is for another base model
├── RunError         a run's folder is damaged, or a run cannot go on
├── DeviceError      the device is missing, full or lost
├── DownloadError    a download was refused, broke off or gave something else
└── BusyError        something else holds what was asked for: a port, a workspace, a run
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from sdlora.messages import Message, as_message


class SdloraError(Exception):
    """Error with a message of what was given, what is accepted and what to do next. `message` is
    filled in the words of the surface that shows it; `str()` is its neutral text."""

    def __init__(self, template: str, /, **values: Any) -> None:
        self.message = Message(template, **values) if values else as_message(template)
        super().__init__(self.message)


class SettingsError(SdloraError):
    """A setting, flag or name is not one we accept. `fields`: setting -> its problem."""

    def __init__(
        self, template: str, /, *, fields: Mapping[str, Message] | None = None, **values: Any
    ) -> None:
        super().__init__(template, **values)
        self.fields = dict(fields or {})


class DataError(SdloraError):
    """A picture folder cannot be trained on."""


class ModelError(SdloraError):
    """A base model cannot be found, recognised or opened."""


class LoraFileError(SdloraError):
    """A LoRA file cannot be read, or is for another base model.

    `code` is the short name of the error in `lora.format.errors`; empty where no file was read.
    """

    def __init__(self, template: str, /, code: str = "", **values: Any) -> None:
        super().__init__(template, **values)
        self.code = code


class RunError(SdloraError):
    """A run's folder is damaged, or a run cannot go on."""


class DeviceError(SdloraError):
    """The device is missing, full or lost."""


class DownloadError(SdloraError):
    """A download was refused, broke off or gave something else than a model.

    `transient`: the same request may succeed later, after `wait_s` seconds or more. `refused`: the
    host took no connection, which is worth another try only where it did before. `http_status` is
    that of the answer; 0: there was none.
    """

    def __init__(
        self, template: str, /, *, transient: bool = False, wait_s: float = 0.0, **values: Any
    ) -> None:
        super().__init__(template, **values)
        self.transient, self.wait_s, self.http_status = transient, wait_s, 0
        self.refused = False


class BusyError(SdloraError):
    """Something else holds what was asked for."""


def near(word: str, known: Iterable[str], limit: int = 3) -> list[str]:
    """Return up to `limit` known words that look like `word`, or else begin like it, best first,
    whatever their case."""
    given, by_lower = word.lower(), {name.lower(): name for name in known}
    hits = difflib.get_close_matches(given, by_lower, limit, 0.5)
    if hits or len(given) < 3:
        return [by_lower[hit] for hit in hits]
    begun = {name[: len(given)]: name for name in reversed(by_lower)}  # the first of each counts
    alike = difflib.get_close_matches(given, begun, limit, 0.7)
    return [by_lower[begun[hit]] for hit in alike]


def did_you_mean(word: str, known: Iterable[str]) -> Message:
    """' Did you mean a or b?' or nothing."""
    hits = near(word, known)
    names = " or ".join(hits)
    return Message(" Did you mean {names}?", names=names) if hits else Message("")
