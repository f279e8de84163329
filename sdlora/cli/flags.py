"""Command-line flags from settings: one per field, with its description and its default."""

from __future__ import annotations

import argparse
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic.fields import FieldInfo

from sdlora.settings.base import MORE, Settings
from sdlora.workspace import default_workspace

_OPERANDS = {"files": "FILE", "models": "MODEL"}  # of several, one is named in the usage line
_METAVARS = {int: "N", float: "X"}


def add_flags(
    parser: argparse.ArgumentParser,
    settings: type[Settings],
    but: Sequence[str] = (),
    needed: bool = False,
) -> None:
    """Add one flag per field, except those in `but`, by group. A flag not given leaves its
    default. `needed`: a setting without one has to be given here, and its help says so."""
    for group, names in settings.groups().items():
        part = parser if group == MORE else parser.add_argument_group(group)
        for name in (name for name in names if name not in but):
            field = settings.model_fields[name]
            part.add_argument(
                f"--{name.replace('_', '-')}",
                dest=name,
                default=argparse.SUPPRESS,
                help=f"{field.description}{_default(field, needed)}".replace("%", "%%"),
                **_shape(field),
            )


def add_operands(
    parser: argparse.ArgumentParser, settings: type[Settings], names: Sequence[str]
) -> None:
    """Add these fields as positional arguments, in this order."""
    name_operands(parser, {name: _OPERANDS.get(name, name.upper()) for name in names})
    for name in names:
        field = settings.model_fields[name]
        many = {"nargs": "+"} if typing.get_origin(field.annotation) is tuple else {}
        parser.add_argument(
            name,
            metavar=_OPERANDS.get(name, name.upper()),
            help=f"{field.description}{_default(field)}".replace("%", "%%"),
            **many,  # type: ignore[arg-type]
        )


def name_operands(parser: argparse.ArgumentParser, operands: Mapping[str, str]) -> None:
    """Make messages of this command call these settings as its usage line does: they are no
    flags."""
    parser.set_defaults(operands=operands)


def add_shared_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that every verb has."""
    parser.add_argument(
        "--workspace",
        default=default_workspace(),
        metavar="DIR",
        help="folder of all you make (default: %(default)s)",
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object per line, for programs"
    )


def given(options: argparse.Namespace, settings: type[Settings]) -> dict[str, Any]:
    """Return the settings among the parsed flags."""
    return {key: value for key, value in vars(options).items() if key in settings.model_fields}


def _default(field: FieldInfo, needed: bool = False) -> str:
    value = field.default
    if needed and field.is_required():
        return " (must be given)"
    if field.is_required() or value in ("", None, ()):
        return ""
    shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
    return f" (default: {shown})"


def _shape(field: FieldInfo) -> dict[str, Any]:
    """Return argparse's arguments for a field; bounds are checked by the settings themselves."""
    kind: Any = field.annotation
    if isinstance(kind, types.UnionType):  # int | None
        kind = typing.get_args(kind)[0]
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if typing.get_origin(kind) is tuple:
        return {"nargs": "+", **_value(typing.get_args(kind)[0])}
    return _value(kind)


def _value(kind: Any) -> dict[str, Any]:
    if typing.get_origin(kind) is Literal:
        return {"choices": typing.get_args(kind)}
    return {"type": kind, "metavar": _METAVARS.get(kind, "TEXT")}
