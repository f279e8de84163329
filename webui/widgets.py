"""Building blocks of every tab: options of events that answer at once, and HTML without scripts."""

from __future__ import annotations

from typing import Any

import gradio as gr

# Long work goes into our own queue, so handlers answer at once without Gradio's queue; none of
# them is part of Gradio's API.
QUICK: dict[str, Any] = {
    "queue": False,
    "show_progress": "hidden",
    "api_visibility": "private",
}

# For what changes while somebody types: of what is typed during an answer the last is sent
TYPED: dict[str, Any] = {**QUICK, "trigger_mode": "always_last"}


def html(value: str = "", **look: Any) -> gr.HTML:
    """HTML component for the fragments of `webui.markup`."""
    return gr.HTML(value, js_on_load=None, apply_default_css=False, padding=False, **look)
