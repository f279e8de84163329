"""One component per setting: its label, sentence and widget from the field, and back to a value.

Numbers are text fields: a browser's own number field rounds what is typed, sends 0 for nothing and
loses digits above 2^53. What is typed goes to the settings as it is, which use it or refuse it.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import gradio as gr
from gradio.components import Component
from gradio.components.textbox import InputHTMLAttributes
from pydantic.fields import FieldInfo

from sdlora.messages import label
from sdlora.settings.base import Settings

# Classes: of numbers, of those that may be negative, of fields that need a row of their own
NUMBER, SIGNED, WIDE = "number", "signed", "wide"
_MARKDOWN = re.compile(r"[\\`*_\[\]<~]")
AUTO = "auto"  # what stands in an empty field whose default is to be found out


class Widget(NamedTuple):
    """How fields of one type are shown and read back. `holds`: True for what it can show again."""

    fits: Callable[[Any], bool]
    build: Callable[[FieldInfo, Any, dict[str, Any]], Component]
    show: Callable[[Any], Any] = lambda value: value
    parse: Callable[[Any], Any] = lambda value: value
    holds: Callable[[Any, Any], bool] = lambda shown, kind: isinstance(shown, str)


def lowest(field: FieldInfo) -> float | None:
    """The least value of a number, where it has one."""
    rules = (getattr(rule, name, None) for rule in field.metadata for name in ("ge", "gt"))
    return next((float(value) for value in rules if value is not None), None)


def number_text(value: float) -> str:
    """A number as it would be typed: exact, and as short as that can be."""
    mantissa, _, exponent = repr(value).partition("e")
    return mantissa.removesuffix(".0") + (f"e{int(exponent)}" if exponent else "")


def parsed_number(text: str) -> int | float | str:
    """A typed number. What is none goes on as it is, for the settings to refuse it."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def parsed_field(text: Any) -> int | float | str | None:
    """What a number's field holds; None when it is empty."""
    typed = str(text).strip()
    return parsed_number(typed) if typed else None


def placeholder(value: float | None) -> str:
    """What an empty number's field stands for."""
    return AUTO if value is None else number_text(value)


def _number(field: FieldInfo, kind: Any, look: dict[str, Any]) -> Component:
    low = lowest(field)
    classes = [*look.pop("elem_classes"), NUMBER]
    classes += [SIGNED] if low is None or low < 0 else []
    hint = "" if field.is_required() else placeholder(field.default)
    plain = InputHTMLAttributes(autocomplete="off", spellcheck=False)
    return gr.Textbox(
        max_lines=1,
        **{"placeholder": hint, "html_attributes": plain, "elem_classes": classes, **look},
    )


def _choices(kind: Any) -> list[tuple[str, str]]:
    return [(value.replace("_", " "), value) for value in typing.get_args(kind)]


def _is_tuple_of(kind: Any, *origins: Any) -> bool:
    inner = typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else None
    return inner in origins or (inner is not None and typing.get_origin(inner) in origins)


def _some_of(shown: Any, kind: Any) -> bool:
    known = typing.get_args(typing.get_args(kind)[0])
    return isinstance(shown, list) and all(choice in known for choice in shown)


# The first row that fits a field's type counts.
WIDGETS = (
    Widget(
        lambda kind: kind is bool,
        lambda field, kind, look: gr.Checkbox(**look),
        holds=lambda shown, kind: isinstance(shown, bool),
    ),
    Widget(lambda kind: kind in (int, float), _number, number_text, parsed_field),
    Widget(
        lambda kind: typing.get_origin(kind) is Literal,
        lambda field, kind, look: gr.Dropdown(_choices(kind), **look),
        holds=lambda shown, kind: shown in typing.get_args(kind),
    ),
    Widget(
        lambda kind: _is_tuple_of(kind, Literal),
        lambda field, kind, look: gr.CheckboxGroup(
            _choices(typing.get_args(kind)[0]),
            **{**look, "elem_classes": [*look["elem_classes"], WIDE]},
        ),
        show=list,
        parse=tuple,
        holds=_some_of,
    ),
    Widget(
        lambda kind: _is_tuple_of(kind, str),
        lambda field, kind, look: gr.Textbox(**{"lines": 2, "placeholder": "one per line", **look}),
        show="\n".join,
        parse=lambda text: tuple(line.strip() for line in text.splitlines() if line.strip()),
    ),
    Widget(
        lambda kind: _is_tuple_of(kind, float, int),
        lambda field, kind, look: gr.Textbox(placeholder="numbers, a space between", **look),
        show=lambda values: " ".join(map(number_text, values)),
        parse=lambda text: tuple(map(parsed_number, text.replace(",", " ").split())),
    ),
    Widget(lambda kind: kind is str, lambda field, kind, look: gr.Textbox(**look)),
)


def widget(field: FieldInfo) -> tuple[Widget, Any]:
    """The row for a field, and its type without `None`."""
    kind: Any = field.annotation
    if isinstance(kind, types.UnionType):
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    return next(row for row in WIDGETS if row.fits(kind)), kind


def shown(field: FieldInfo, value: Any) -> Any:
    """A setting's value as its component holds it; "" for a number that is not set."""
    row, kind = widget(field)
    if value is None:
        return "" if kind in (int, float) else None
    return row.show(value)


def read(field: FieldInfo, held: Any) -> Any:
    """The setting's value that its component holds; None when it holds none."""
    return None if held is None else widget(field)[0].parse(held)


def default(field: FieldInfo) -> Any:
    """The value of a setting that nobody set; None where it has to be set."""
    return None if field.is_required() else field.default


def plain(sentence: str | None) -> str | None:
    """A sentence as Gradio's Markdown shows it unchanged: `__name__` is no bold name."""
    return sentence and _MARKDOWN.sub(r"\\\g<0>", sentence)


def component(
    settings: type[Settings],
    name: str,
    compact: bool = False,
    build: Callable[..., Component] | None = None,
    **look: Any,
) -> Component:
    """The component for one field, with its default. `compact`: without its sentence.

    `look` are arguments of the Gradio component that shall be other than the field makes them,
    `elem_classes` as a list;
    `build` makes another component than the field's type has.
    """
    field = settings.model_fields[name]
    row, kind = widget(field)
    said = {
        "label": label(name),
        "info": None if compact else plain(field.description),
        "value": shown(field, default(field)),
        "elem_classes": [],
    }
    if build:
        return build(**{**said, **look})
    return row.build(field, kind, {**said, **look})
