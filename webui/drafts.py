"""Drafts: the contents of a tab's form, stored in the browser, so that they survive a reload and a
restarted server.

After every change the page's script stores the values that differ from the defaults, for this
browser tab and for the next new one. A newly opened page sends its draft with the first request, so
that defaults, presets and the draft arrive as one update.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import gradio as gr
from gradio.components import Component

from sdlora.events import Warned
from sdlora.messages import Message
from webui import markup
from webui.form import Form
from webui.notice import Updates
from webui.widgets import QUICK, html

KEEP = "() => { window.sdloraDrafts?.collect(); return []; }"
READY = "() => { window.sdloraDrafts?.ready(); return []; }"


class Draft:
    """Hidden components and buttons of one tab's draft, built where the buttons stand."""

    def __init__(self, place: str) -> None:
        self.place = place
        hidden: dict[str, Any] = {"elem_classes": "unseen"}
        # default values of the fields by name, as JSON
        self.usual = gr.Textbox(label="Usual values", elem_id=f"{place}-usual", **hidden)
        # the page's script sends the stored draft in place of its value
        self.stored = gr.Textbox(label="Draft", elem_id=f"{place}-draft", **hidden)
        # clicked by the script shortly after a change; an event for each field would be a hundred
        # calls when a preset fills the form
        self.collect = gr.Button("Keep the draft", elem_id=f"{place}-collect", **hidden)
        self.reset = gr.Button("Reset all fields", size="sm", elem_id=f"{place}-reset")
        self.undo = gr.Button("Undo the reset", size="sm", visible=False, elem_id=f"{place}-undo")
        self.lost = html(elem_id=f"{place}-lost")  # values that were not restored

    def wire(
        self,
        held: Mapping[str, Component],
        outputs: Iterable[Component],
        fill: Callable[[dict[str, Any]], Updates],
    ) -> None:
        """Store the values of the components `held`; `fill` gives the updates that bring a draft
        into the form, for {} the defaults."""
        ids = json.dumps({name: part.elem_id for name, part in held.items()})
        call = f"window.sdloraDrafts?.typed({json.dumps(self.place)}, {ids}, "
        self.collect.click(
            None,
            [self.usual, *held.values()],
            None,
            js=f"(usual, ...values) => {{ {call} usual, values); return []; }}",
            **QUICK,
        )
        changed = [*outputs, self.undo, self.lost]

        def reset() -> Updates:
            return {**fill({}), self.undo: gr.Button(visible=True)}

        def undo(stored: str) -> Updates:
            return {**fill(parsed(stored)), self.undo: gr.Button(visible=False)}

        stash, stashed = (
            f"() => window.sdloraDrafts.{name}({json.dumps(self.place)})"
            for name in ("stash", "stashed")
        )
        begun = self.reset.click(reset, None, changed, js=stash, **QUICK)
        undone = self.undo.click(undo, [self.stored], changed, js=stashed, **QUICK)
        for event in (begun, undone):
            event.then(None, js=KEEP, **QUICK)


def stored(*drafts: Draft) -> str:
    """JavaScript that returns the stored drafts, in the order of their `stored` components."""
    return f"() => window.sdloraDrafts.stored({json.dumps([draft.place for draft in drafts])})"


def parsed(text: str | None) -> dict[str, Any]:
    """A stored draft; {} where the text is not one."""
    try:
        draft = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return draft if isinstance(draft, dict) else {}


def recall(
    draft: Mapping[str, Any], *forms: Form, beside: Iterable[str] = ()
) -> tuple[Updates, list[Message]]:
    """Updates that restore a draft into these forms, and a sentence for each value that cannot be
    restored. `beside`: names in the draft that belong to no form."""
    updates: Updates = {}
    problems: list[Message] = []
    unknown = draft.keys() - set(beside)
    for form in forms:
        recalled, lost = form.recall(draft)
        updates, problems = {**updates, **recalled}, [*problems, *lost]
        unknown -= form.fields.keys()
    problems += [
        Message("the saved draft has {name}; this version has no such setting", name=name[:80])
        for name in sorted(unknown)
    ]
    return updates, problems


def lost(problems: Iterable[Message]) -> str:
    """Notice of the values that were not restored; '' where there are none."""
    return markup.notices(Warned(problem) for problem in problems)
