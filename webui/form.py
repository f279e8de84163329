"""Settings as a form: one component per field, its label, bounds and sentence from the field.

What a form sends is checked by the settings themselves; nothing is written here a second time.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import gradio as gr
from gradio.components import Component
from pydantic.fields import FieldInfo

from sdlora.checked import Settings
from webui.parts import html

FIND = (
    '<input type="search" class="find-setting" placeholder="Find a setting" '
    'aria-label="Find a setting">'
)
WIDEST_SLIDER = 100  # a range wider than this is set more easily by typing


class Widget(NamedTuple):
    """How fields of one type are shown and read back."""

    fits: Callable[[Any], bool]
    build: Callable[[FieldInfo, Any, dict[str, Any]], Component]
    show: Callable[[Any], Any] = lambda value: value
    parse: Callable[[Any], Any] = lambda value: value


def label(name: str) -> str:
    """'learning_rate' -> 'Learning rate'."""
    return name.replace("_", " ").capitalize()


def bounds(field: FieldInfo) -> dict[str, float]:
    """The bounds of a number by their names: ge, gt, le, lt."""
    return {
        name: float(value)
        for rule in field.metadata
        for name in ("ge", "gt", "le", "lt")
        if (value := getattr(rule, name, None)) is not None
    }


def _number(field: FieldInfo, kind: Any, look: dict[str, Any]) -> Component:
    limit, whole, compact = bounds(field), kind is int, look.pop("compact", False)
    if not field.is_required() and field.default is None:
        return gr.Number(placeholder="auto", precision=0 if whole else None, **look)
    low, high = limit.get("ge"), limit.get("le", limit.get("lt"))
    # Without a lowest value that it may have, a number spans magnitudes: a slider cannot set it.
    if compact or low is None or high is None or high - low > WIDEST_SLIDER:
        return gr.Number(precision=0 if whole else None, step=1 if whole else 0.0001, **look)
    return gr.Slider(low, high, step=1 if whole else 0.1 if high > 1 else 0.01, **look)


def _choices(kind: Any) -> list[tuple[str, str]]:
    return [(value.replace("_", " "), value) for value in typing.get_args(kind)]


def _is_tuple_of(kind: Any, origin: Any) -> bool:
    inner = typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else None
    return inner is origin or (inner is not None and typing.get_origin(inner) is origin)


def _as_number(word: str) -> float | str:
    """What is no number goes on as it is, for the settings to refuse it."""
    try:
        return float(word)
    except ValueError:
        return word


# The first row that fits a field's type counts.
WIDGETS = (
    Widget(lambda kind: kind is bool, lambda field, kind, look: gr.Checkbox(**look)),
    Widget(lambda kind: kind in (int, float), _number),
    Widget(
        lambda kind: typing.get_origin(kind) is Literal,
        lambda field, kind, look: gr.Dropdown(_choices(kind), **look),
    ),
    Widget(
        lambda kind: _is_tuple_of(kind, Literal),
        lambda field, kind, look: gr.CheckboxGroup(_choices(typing.get_args(kind)[0]), **look),
        show=list,
        parse=tuple,
    ),
    Widget(
        lambda kind: _is_tuple_of(kind, str),
        lambda field, kind, look: gr.Textbox(lines=2, placeholder="one per line", **look),
        show="\n".join,
        parse=lambda text: tuple(line.strip() for line in text.splitlines() if line.strip()),
    ),
    Widget(
        lambda kind: _is_tuple_of(kind, float) or _is_tuple_of(kind, int),
        lambda field, kind, look: gr.Textbox(placeholder="numbers, a space between", **look),
        show=lambda values: " ".join(f"{value:g}" for value in values),
        parse=lambda text: tuple(map(_as_number, text.replace(",", " ").split())),
    ),
    Widget(lambda kind: kind is str, lambda field, kind, look: gr.Textbox(**look)),
)


def widget(field: FieldInfo) -> tuple[Widget, Any]:
    """The row for a field, and its type without `None`."""
    kind: Any = field.annotation
    if isinstance(kind, types.UnionType):
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    return next(row for row in WIDGETS if row.fits(kind)), kind


def component(settings: type[Settings], name: str, compact: bool = False, **look: Any) -> Component:
    """The component for one field, with its default. `compact`: no sentence, and no slider.

    `look` are arguments of the Gradio component that shall be other than the field makes them.
    """
    field = settings.model_fields[name]
    row, kind = widget(field)
    value = None if field.is_required() or field.default is None else row.show(field.default)
    said = {"label": label(name), "info": None if compact else field.description, "value": value}
    if compact and kind in (int, float):
        look["compact"] = True
    return row.build(field, kind, {**said, **look})


@dataclass(frozen=True)
class Form:
    """Some fields of a settings class, on the page."""

    settings: type[Settings]
    fields: dict[str, Component] = field(default_factory=dict)

    def add(self, *names: str, **look: Any) -> None:
        """Show these fields here."""
        for name in names:
            self.fields[name] = component(self.settings, name, **look)

    def add_rest(self, *elsewhere: str) -> None:
        """Show every field that is on the page neither here nor `elsewhere`, by its group: each
        under a title that opens it, the first open, and all of them under one search."""
        groups = {
            group: [name for name in names if name not in {*self.fields, *elsewhere}]
            for group, names in self.settings.groups().items()
        }
        html(FIND)
        for place, (group, names) in enumerate((g, n) for g, n in groups.items() if n):
            is_open = str(place == 0).lower()
            title = f'<button type="button" data-group aria-expanded="{is_open}">{group}</button>'
            with gr.Column(elem_classes="group"):
                html(title)
                with gr.Row(elem_classes="fields"):
                    self.add(*names, min_width=140)

    def read(
        self, sent: Mapping[Component, Any], preset: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """What the user set: the values that are neither the preset's nor the default."""
        values: dict[str, Any] = {}
        for name, part in self.fields.items():
            usual, given = (preset or {}).get(name, self._default(name)), sent[part]
            if given is None and usual is not None:
                continue  # a number that was wiped out is the usual one again
            value = widget(self.settings.model_fields[name])[0].parse(given)
            if value != usual:
                values[name] = value
        return values

    def show(self, values: Mapping[str, Any]) -> dict[Component, Any]:
        """Updates that bring these values into the form, and its other fields to their defaults."""
        return self.change({name: values.get(name, self._default(name)) for name in self.fields})

    def change(self, values: Mapping[str, Any]) -> dict[Component, Any]:
        """Updates that bring these values into the form; its other fields stay as they are."""
        shown = {}
        for name in self.fields.keys() & values.keys():
            row, value = widget(self.settings.model_fields[name])[0], values[name]
            shown[self.fields[name]] = value if value is None else row.show(value)
        return shown

    def _default(self, name: str) -> Any:
        info = self.settings.model_fields[name]
        return None if info.is_required() else info.default
