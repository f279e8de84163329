"""What is typed into a tab, kept in the browser: it survives a reload and a restarted server.

The page's script stores what differs from the usual values whenever something is done, for the
browser's tab and for the next new one. A page that opens hands it to the server with its first
request, so that defaults, presets and the draft arrive as one update.
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
    """The components for one tab, built where its buttons shall stand."""

    def __init__(self, place: str) -> None:
        self.place = place
        hidden: dict[str, Any] = {"elem_classes": "unseen"}
        # what the fields hold while nobody has set them, by name, as JSON
        self.usual = gr.Textbox(label="Usual values", elem_id=f"{place}-usual", **hidden)
        # the page's script hands over the stored draft in its place
        self.stored = gr.Textbox(label="Draft", elem_id=f"{place}-draft", **hidden)
        # pressed by the script a moment after something was done; every field's own event would
        # be a hundred calls when a preset fills the form
        self.collect = gr.Button("Keep the draft", elem_id=f"{place}-collect", **hidden)
        self.reset = gr.Button("Reset all fields", size="sm", elem_id=f"{place}-reset")
        self.undo = gr.Button("Undo the reset", size="sm", visible=False, elem_id=f"{place}-undo")
        self.lost = html(elem_id=f"{place}-lost")  # what of a draft did not come back

    def wire(
        self,
        held: Mapping[str, Component],
        outputs: Iterable[Component],
        fill: Callable[[dict[str, Any]], Updates],
    ) -> None:
        """Keep what these components hold; `fill` brings a draft into the form, {} its defaults."""
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
    """JavaScript that hands over the stored drafts, in the order of their `stored` components."""
    return f"() => window.sdloraDrafts.stored({json.dumps([draft.place for draft in drafts])})"


def parsed(text: str | None) -> dict[str, Any]:
    """A stored draft; nothing where the text is none."""
    try:
        draft = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return draft if isinstance(draft, dict) else {}


def recall(
    draft: Mapping[str, Any], *forms: Form, beside: Iterable[str] = ()
) -> tuple[Updates, list[Message]]:
    """Updates that bring back what a draft holds of these forms, and a sentence for each part of
    it that cannot come back. `beside` are names that belong to no form."""
    updates: Updates = {}
    problems: list[Message] = []
    unknown = draft.keys() - set(beside)
    for form in forms:
        recalled, lost = form.recall(draft)
        updates, problems = {**updates, **recalled}, [*problems, *lost]
        unknown -= form.fields.keys()
    problems += [
        Message("{name} was filled in last time; this version has no such setting", name=name[:80])
        for name in sorted(unknown)
    ]
    return updates, problems


def lost(problems: Iterable[Message]) -> str:
    """A notice of what of a draft did not come back; nothing where all did."""
    return markup.notices(Warned(problem) for problem in problems)
