"""What every set of settings can do: be checked, come from a file and go there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from sdlora.errors import SettingsError, did_you_mean
from sdlora.messages import Message, Setting

MAX_TEXT = 100_000  # letters of any text, prompts too
SHOWN_VALUE = 80  # letters of a wrong value that a message repeats
MORE = "More"  # the group of fields that belong to no other


class Settings(BaseModel):
    """A frozen set of settings that says clearly what is wrong with it."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, str_max_length=MAX_TEXT
    )
    # Title -> the fields that forms and --help show under it; those in no group come under MORE
    GROUPS: ClassVar[dict[str, tuple[str, ...]]] = {}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Settings from plain values. SettingsError: one sentence per wrong or unknown one."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            rows = [(_field(cls, row), _message(cls, row)) for row in error.errors()]
            fields = {name: message for name, message in rows if name}
            whole = Message.of_lines(message for _, message in rows)
            raise SettingsError(whole, fields=fields) from None

    @classmethod
    def load(cls, path: Path) -> Self:
        """Settings from a JSON file."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SettingsError(f"{path} cannot be read as settings: {error}") from None
        return cls.of(cls.from_record(values) if isinstance(values, dict) else values)

    @classmethod
    def from_record(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values from a file that an earlier version may have written, as they were meant."""
        return dict(values)

    @classmethod
    def groups(cls) -> dict[str, tuple[str, ...]]:
        """Every field under the title of its group."""
        grouped = {name for names in cls.GROUPS.values() for name in names}
        return {**cls.GROUPS, MORE: tuple(n for n in cls.model_fields if n not in grouped)}

    def given(self) -> dict[str, Any]:
        """The values somebody set, as plain JSON types; the rest are defaults."""
        return self.model_dump(mode="json", exclude_unset=True)

    def to_json(self) -> str:
        """The values somebody set, readable, in the order of the fields."""
        return json.dumps(self.given(), indent=2, ensure_ascii=False) + "\n"


def _field(cls: type[Settings], error: Any) -> str:
    name = str(error["loc"][0]) if error["loc"] else ""
    return name if name in cls.model_fields else ""


def _message(cls: type[Settings], error: Any) -> Message:
    name = ".".join(str(part) for part in error["loc"]) or "settings"
    if error["type"] == "extra_forbidden":
        near = did_you_mean(name, cls.model_fields)
        return Message("there is no setting {name!r}.{near}", name=name, near=near)
    why = error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing" or not error["loc"]:
        return Message("{setting}: {why}", setting=Setting(name), why=why)
    if error["type"] == "string_too_long":
        return Message(
            "{setting} has {given:,} letters; {most:,} at most are taken: shorten it",
            setting=Setting(name),
            given=len(error["input"]),
            most=error["ctx"]["max_length"],
        )
    given = repr(error["input"])
    if len(given) > SHOWN_VALUE:
        given = f"{given[:SHOWN_VALUE]}…"
    return Message("{setting} = {given}: {why}", setting=Setting(name), given=given, why=why)
