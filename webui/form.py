"""A settings class as a form: shown, read back, kept as a draft, and marked where a value is wrong.

Values are checked by the settings class alone; the form has no rules of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
from gradio.components import Component

from sdlora.errors import SdloraError
from sdlora.messages import PAGE, Message, Setting, label
from sdlora.settings.base import Settings
from webui import fields, markup
from webui.fields import component, widget_for
from webui.markup import esc
from webui.widgets import html

__all__ = ["Form", "component", "error_notice", "error_renderer", "label", "widget_for"]

FIND = (
    '<input type="search" class="find-setting" placeholder="Find a setting" '
    'aria-label="Find a setting"><p class="hint" role="status" data-found></p>'
)


FIELD = "setting"  # CSS class of every field of a tab's form


@dataclass(frozen=True)
class Form:
    """Fields of a settings class on the page. `place` is the prefix of their ids, `fold` the id of
    the accordion that holds some of them, `looks` has arguments of `component` by field."""

    settings: type[Settings]
    place: str = ""
    fold: str = ""
    looks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    fields: dict[str, Component] = field(default_factory=dict)

    def add(self, *names: str, **look: Any) -> None:
        """Show these fields here; `look` are arguments of `component`."""
        for name in names:
            own = {**look, **self.looks.get(name, {})}
            if self.place:
                own.setdefault("elem_id", f"{self.place}-{name.replace('_', '-')}")
                own["elem_classes"] = [FIELD, *own.get("elem_classes", ())]
            self.fields[name] = component(self.settings, name, **own)

    def add_rest(self, *elsewhere: str) -> None:
        """Show every field that is neither in the form nor `elsewhere`, by group: each group under
        a title that opens it, the first one open, with one search over all."""
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
        """Values that the user set: those that differ from the preset's, else from the default."""
        values: dict[str, Any] = {}
        for name, part in self.fields.items():
            usual = (preset or {}).get(name, self._default(name))
            value = fields.from_component(self.settings.model_fields[name], sent[part])
            if value is None and usual is not None:
                continue  # an empty field stands for the usual value, shown as its placeholder
            if value != usual:
                values[name] = value
        return values

    def valid_values(self, sent: Mapping[Component, Any], *names: str) -> dict[str, Any]:
        """Values of these fields for a preview; the default where the typed value is not valid
        yet."""
        values = {name: self._default(name) for name in names}
        given = self.read({part: sent.get(part) for part in self.fields.values()})
        for name in names & given.keys():
            try:
                values[name] = getattr(self.settings.from_values({name: given[name]}), name)
            except SdloraError:
                continue
        return values

    def held(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Component values by field name for these settings, with defaults for the other fields."""
        return {
            name: fields.to_component(
                self.settings.model_fields[name], values.get(name, self._default(name))
            )
            for name in self.fields
        }

    def show(self, values: Mapping[str, Any]) -> dict[Component, Any]:
        """Updates that show these values in the form, and the defaults in the other fields."""
        return {self.fields[name]: shown for name, shown in self.held(values).items()}

    def change(self, values: Mapping[str, Any]) -> dict[Component, Any]:
        """Updates that show these values in the form; the other fields stay."""
        held = self.held(values)
        return {self.fields[name]: held[name] for name in self.fields.keys() & values.keys()}

    def recall(self, draft: Mapping[str, Any]) -> tuple[dict[Component, Any], list[Message]]:
        """Updates that restore a draft (component values by field name), and a sentence for each
        value that this version cannot show."""
        updates: dict[Component, Any] = {}
        problems = []
        for name in self.fields.keys() & draft.keys():
            row, kind = widget_for(self.settings.model_fields[name])
            shown = draft[name]
            if kind in (int, float) and type(shown) in (int, float):
                shown = fields.number_text(shown)  # draft of a version whose fields held numbers
            if row.holds(shown, kind):
                updates[self.fields[name]] = shown
            else:
                problems.append(
                    Message(
                        "{setting} is reset to its default: {given} is not accepted any more",
                        setting=Setting(name),
                        given=_shortened(shown),
                    )
                )
        return updates, problems

    def _default(self, name: str) -> Any:
        return fields.default_value(self.settings.model_fields[name])


def _shortened(value: Any, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def error_notice(error: SdloraError, *forms: Form) -> str:
    """Notice of an error. A sentence about fields of these forms is shown by the page's script
    under each of them, with the first in view; the notice then counts these fields, and holds the
    other sentences."""
    messages: Mapping[str, Message] = getattr(error, "fields", {})
    parts = {
        name: part
        for form in forms
        for name, part in form.fields.items()
        if name in messages and part.elem_id
    }
    if not parts:
        return markup.problem(error)
    at_fields = {name: messages[name].sentences(PAGE) for name in parts}
    shown = {line for lines in at_fields.values() for line in lines}
    others = [line for line in error.message.sentences(PAGE) if line not in shown]
    count = "1 field needs" if len(parts) == 1 else f"{len(parts)} fields need"
    names = ", ".join(part.label for part in parts.values())
    marks = {part.elem_id: " ".join(at_fields[name]) for name, part in parts.items()}
    accordion = next((form.fold for form in forms if form.fold), "")
    attributes = f'data-marks="{esc(json.dumps(marks))}" data-fold="{esc(accordion)}"'
    lines = [f"{count} attention: {names}", *others]
    return (
        markup.problem(Message.of_lines(map(Message, lines))) + f"<div hidden {attributes}></div>"
    )


def error_renderer(*forms: Form) -> Callable[[SdloraError], str]:
    """`error_notice` for these forms."""
    return lambda error: error_notice(error, *forms)
