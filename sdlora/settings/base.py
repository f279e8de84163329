"""Base class of all settings: validation, reading from a file and writing to one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from sdlora.errors import SettingsError, did_you_mean
from sdlora.messages import Message, Setting, add_label, as_message
from sdlora.text_files import json_value

MAX_TEXT = 100_000  # letters of any text, prompts too
SHOWN_VALUE = 80  # letters of a wrong value that a message repeats
MORE = "More"  # the group of fields that belong to no other
# pydantic's type of an error -> what is accepted; values are those of its `ctx`
_ACCEPTED = {
    "greater_than_equal": "must be {ge} or more",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be {le} or less",
    "less_than": "must be less than {lt}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "finite_number": "must be a finite number",
    "string_too_short": "must not be empty",
    "string_too_long": "has {count:,} letters; {max_length:,} at most are taken: shorten it",
    "too_short": "must have {min_length} or more entries",
    "too_long": "must have {max_length} entries at most",
    "literal_error": "must be one of {expected}",
    "missing": "must be given",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number of less than 4300 digits",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "string_unicode": "must be text",
    "tuple_type": "must be a list",
}
_SELF_EVIDENT = {"missing", "string_too_short", "string_too_long", "too_long", "too_short"}
_LONGEST_GIVEN = 80  # characters of a wrong value that are repeated

SEEDS = 2**64  # torch's generators take so many


class InvalidValue(ValueError):
    """Error of a validator with a template and named values: pydantic keeps only the text of a
    ValueError, but hands the error itself over."""

    def __init__(self, template: str, /, **values: Any) -> None:
        self.message = Message(template, **values) if values else as_message(template)
        super().__init__(self.message)


class Settings(BaseModel):
    """Frozen set of settings; a wrong value is a clear message."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, str_max_length=MAX_TEXT
    )
    # Title -> the fields that forms and --help show under it; those in no group come under MORE
    GROUPS: ClassVar[dict[str, tuple[str, ...]]] = {}

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        """Register the labels (`title`) of the fields, for the page's forms and messages."""
        super().__pydantic_init_subclass__(**options)
        for name, field in cls.model_fields.items():
            if field.title:
                add_label(name, field.title)

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """Return settings from plain values. SettingsError: one sentence per wrong or unknown
        value."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            rows = [(row["loc"], _message(cls, row)) for row in error.errors()]
            fields = {n: message for loc, message in rows for n in _fields(cls, loc, message)}
            whole = Message.of_lines(message for _, message in rows)
            raise SettingsError(whole, fields=fields) from None

    @classmethod
    def load(cls, path: Path) -> Self:
        """Settings from a JSON file."""
        try:
            values = json_value(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SettingsError(
                "{file} cannot be read as settings: {why}", file=path, why=error
            ) from None
        return cls.from_values(cls.from_record(values) if isinstance(values, dict) else values)

    @classmethod
    def from_record(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return values from a file of an earlier version with their meaning at the time."""
        return dict(values)

    @classmethod
    def groups(cls) -> dict[str, tuple[str, ...]]:
        """Every field under the title of its group."""
        grouped = {name for names in cls.GROUPS.values() for name in names}
        return {**cls.GROUPS, MORE: tuple(n for n in cls.model_fields if n not in grouped)}

    def given(self) -> dict[str, Any]:
        """Return the values that were set, as plain JSON types; the rest are defaults."""
        return self.model_dump(mode="json", exclude_unset=True)

    def to_json(self) -> str:
        """The values somebody set, readable, in the order of the fields."""
        return json.dumps(self.given(), indent=2, ensure_ascii=False) + "\n"


def validated(check: Callable[[Any], Any], value: Any) -> Any:
    """`check(value)` in a validator: a SettingsError becomes the field's own, beside the others."""
    try:
        return check(value)
    except SettingsError as error:
        raise InvalidValue(error.message) from None


def accepted(error: Any) -> str:
    """Return the accepted values by pydantic's `error`: "must be 1 or more"."""
    template = _ACCEPTED.get(error["type"])
    return template.format_map(_bounds(error)) if template else str(error["msg"])


def _bounds(error: Any) -> dict[str, Any]:
    """The values of an error's `ctx`; 1, not 1.0, of a field that takes fractions."""
    return {
        name: int(value) if isinstance(value, float) and value.is_integer() else value
        for name, value in error.get("ctx", {}).items()
    }


def _fields(cls: type[Settings], loc: tuple[Any, ...], message: Message) -> list[str]:
    """Return the names of the fields that an error is about: the field that raised it, else those
    that its message names."""
    spoken = [v.name for v in message.values.values() if isinstance(v, Setting)]
    return [str(n) for n in loc[:1] or spoken if n in cls.model_fields]


def _message(cls: type[Settings], error: Any) -> Message:
    name, *inside = error["loc"] or ("",)
    kind, why = error["type"], error.get("ctx", {}).get("error")
    if kind == "extra_forbidden":
        near = did_you_mean(str(name), cls.model_fields)
        return Message("there is no setting {name!r}.{near}", name=name, near=near)
    if isinstance(why, InvalidValue):
        return why.message
    if not name:
        return as_message(error["msg"].removeprefix("Value error, "))
    setting: Any = Setting(str(name))
    if inside:  # of several values
        place = int(inside[0]) + 1 if str(inside[0]).isdigit() else inside[0]
        setting = Message("{setting}, entry {place},", setting=setting, place=place)
    given, values = repr(error["input"]), {**_bounds(error), "setting": setting}
    given = given if len(given) <= _LONGEST_GIVEN else f"{given[:_LONGEST_GIVEN]}…"
    if kind == "string_too_long":
        values["count"] = len(error["input"])
    if kind in _SELF_EVIDENT:
        return Message(f"{{setting}} {_ACCEPTED[kind]}", **values)
    if kind in _ACCEPTED:
        return Message(f"{{setting}} {_ACCEPTED[kind]}; {{given}} was given", **values, given=given)
    why = error["msg"].removeprefix("Value error, ")
    return Message("{setting} cannot be {given}: {why}", setting=setting, given=given, why=why)
