"""What every tab builds with: events that answer at once, and HTML that does nothing by itself."""

from __future__ import annotations

from typing import Any

import gradio as gr

# Work goes into our own queue, so handlers answer at once and need none of Gradio's; none of them
# is part of an API.
QUICK: dict[str, Any] = {
    "queue": False,
    "show_progress": "hidden",
    "api_visibility": "private",
}


def html(value: str = "", **look: Any) -> gr.HTML:
    """A place for what `webui.markup` makes."""
    return gr.HTML(value, js_on_load=None, apply_default_css=False, padding=False, **look)
