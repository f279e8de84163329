"""One component per setting: label, help text and widget from the field, and the way back to a
value.

Numbers are text fields: a browser's own number field rounds, sends 0 for an empty field and loses
digits above 2^53. The typed text goes to the settings unchanged, which accept or refuse it.
"""

from __future__ import annotations

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

# CSS classes: of numbers, of those that may be negative, of fields that need a row of their own
NUMBER, SIGNED, WIDE = "number", "signed", "wide"
AUTO = "auto"  # placeholder of an empty field whose default is worked out later


class Widget(NamedTuple):
    """Component for fields of one type, and the conversions to and from its value. `holds`: True
    for a value of the component that it can show again."""

    fits: Callable[[Any], bool]
    build: Callable[[FieldInfo, Any, dict[str, Any]], Component]
    show: Callable[[Any], Any] = lambda value: value
    parse: Callable[[Any], Any] = lambda value: value
    holds: Callable[[Any, Any], bool] = lambda to_component, kind: isinstance(to_component, str)


def lower_bound(field: FieldInfo) -> float | None:
    """Lower bound of a number's field; None where it has none."""
    rules = (getattr(rule, name, None) for rule in field.metadata for name in ("ge", "gt"))
    return next((float(value) for value in rules if value is not None), None)


def number_text(value: float) -> str:
    """A number as it would be typed: exact, and as short as possible."""
    mantissa, _, exponent = repr(value).partition("e")
    return mantissa.removesuffix(".0") + (f"e{int(exponent)}" if exponent else "")


def parse_number(text: str) -> int | float | str:
    """Typed text as a number; any other text unchanged, for the settings to refuse."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def parse_field(text: Any) -> int | float | str | None:
    """Number in a number's field; None when the field is empty."""
    typed = str(text).strip()
    return parse_number(typed) if typed else None


def placeholder(value: float | None) -> str:
    """Placeholder of a number's field: the value that it stands for when empty."""
    return AUTO if value is None else number_text(value)


def _number_box(field: FieldInfo, kind: Any, look: dict[str, Any]) -> Component:
    low = lower_bound(field)
    classes = [*look.pop("elem_classes"), NUMBER]
    classes += [SIGNED] if low is None or low < 0 else []
    hint = "" if field.is_required() else placeholder(field.default)
    attributes = InputHTMLAttributes(autocomplete="off", spellcheck=False)
    return gr.Textbox(
        max_lines=1,
        **{
            "placeholder": hint,
            "html_attributes": attributes,
            "elem_classes": classes,
            **look,
        },
    )


def _choices(kind: Any) -> list[tuple[str, str]]:
    return [(value.replace("_", " "), value) for value in typing.get_args(kind)]


def _is_tuple_of(kind: Any, *origins: Any) -> bool:
    inner = typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else None
    return inner in origins or (inner is not None and typing.get_origin(inner) in origins)


def _are_choices(to_component: Any, kind: Any) -> bool:
    known = typing.get_args(typing.get_args(kind)[0])
    return isinstance(to_component, list) and all(choice in known for choice in to_component)


# The first row that fits a field's type counts.
WIDGETS = (
    Widget(
        lambda kind: kind is bool,
        lambda field, kind, look: gr.Checkbox(**look),
        holds=lambda to_component, kind: isinstance(to_component, bool),
    ),
    Widget(lambda kind: kind in (int, float), _number_box, number_text, parse_field),
    Widget(
        lambda kind: typing.get_origin(kind) is Literal,
        lambda field, kind, look: gr.Dropdown(_choices(kind), **look),
        holds=lambda to_component, kind: to_component in typing.get_args(kind),
    ),
    Widget(
        lambda kind: _is_tuple_of(kind, Literal),
        lambda field, kind, look: gr.CheckboxGroup(
            _choices(typing.get_args(kind)[0]),
            **{**look, "elem_classes": [*look["elem_classes"], WIDE]},
        ),
        show=list,
        parse=tuple,
        holds=_are_choices,
    ),
    Widget(
        lambda kind: _is_tuple_of(kind, str),
        lambda field, kind, look: gr.Textbox(**{"lines": 2, "placeholder": "one per line", **look}),
        show="\n".join,
        parse=lambda text: tuple(line.strip() for line in text.splitlines() if line.strip()),
    ),
    Widget(
        lambda kind: _is_tuple_of(kind, float, int),
        lambda field, kind, look: gr.Textbox(placeholder="numbers, separated by spaces", **look),
        show=lambda values: " ".join(map(number_text, values)),
        parse=lambda text: tuple(map(parse_number, text.replace(",", " ").split())),
    ),
    Widget(lambda kind: kind is str, lambda field, kind, look: gr.Textbox(**look)),
)


def widget_for(field: FieldInfo) -> tuple[Widget, Any]:
    """The Widget for a field, and the field's type without `None`."""
    kind: Any = field.annotation
    if isinstance(kind, types.UnionType):
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    return next(row for row in WIDGETS if row.fits(kind)), kind


def to_component(field: FieldInfo, value: Any) -> Any:
    """A setting's value as the value of its component; "" for a number that is not set."""
    row, kind = widget_for(field)
    if value is None:
        return "" if kind in (int, float) else None
    return row.show(value)


def from_component(field: FieldInfo, held: Any) -> Any:
    """The setting's value from its component's value; None where that is None."""
    return None if held is None else widget_for(field)[0].parse(held)


def default_value(field: FieldInfo) -> Any:
    """Default of a setting; None for one that is required."""
    return None if field.is_required() else field.default


def component(
    settings: type[Settings],
    name: str,
    compact: bool = False,
    build: Callable[..., Component] | None = None,
    **look: Any,
) -> Component:
    """Component for one field, with its default. `compact`: without its help text. `look`:
    arguments of the Gradio component that replace those from the field, `elem_classes` as a list.
    `build` makes another component than the field's type has."""
    field = settings.model_fields[name]
    row, kind = widget_for(field)
    arguments = {
        "label": label(name),
        "info": None if compact else field.description,
        "value": to_component(field, default_value(field)),
        "elem_classes": [],
    }
    if build:
        return build(**{**arguments, **look})
    return row.build(field, kind, {**arguments, **look})
