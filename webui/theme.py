"""Look of the page: Gradio's theme variables set to the colours of page.css, system fonts, no
CDN."""

from __future__ import annotations

import inspect
from pathlib import Path

import gradio as gr

_ASSETS = Path(__file__).parent / "assets"
CSS = (_ASSETS / "page.css").read_text(encoding="utf-8")
SCRIPTS = [path.read_text(encoding="utf-8") for path in sorted(_ASSETS.glob("*.js"))]
ICON = (_ASSETS / "icon.svg").read_text(encoding="utf-8")
FONTS = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONO_FONTS = ("ui-monospace", "SF Mono", "Consolas", "monospace")

# Gradio's name -> the colour of page.css, which knows light and dark itself
_COLOURS = {
    "body_background_fill": "var(--paper)",
    "body_text_color": "var(--ink)",
    "body_text_color_subdued": "var(--soft)",
    "background_fill_primary": "var(--card)",
    "background_fill_secondary": "var(--sunk)",
    "border_color_primary": "var(--line)",
    "border_color_accent": "var(--accent)",
    "block_background_fill": "var(--card)",
    "block_border_color": "var(--line)",
    "block_label_background_fill": "transparent",
    "block_label_text_color": "var(--soft)",
    "block_title_text_color": "var(--ink)",
    "block_info_text_color": "var(--soft)",
    "panel_background_fill": "transparent",
    "input_background_fill": "var(--card)",
    "input_background_fill_focus": "var(--card)",
    "input_border_color": "var(--line)",
    "input_border_color_focus": "var(--accent)",
    "input_placeholder_color": "var(--soft)",
    "button_primary_background_fill": "var(--accent)",
    "button_primary_background_fill_hover": "var(--accent)",
    "button_primary_border_color": "var(--accent)",
    "button_primary_text_color": "var(--paper)",
    "button_secondary_background_fill": "var(--sunk)",
    "button_secondary_background_fill_hover": "var(--line)",
    "button_secondary_border_color": "var(--line)",
    "button_secondary_text_color": "var(--ink)",
    "checkbox_background_color": "var(--card)",
    "checkbox_background_color_selected": "var(--accent)",
    "checkbox_border_color": "var(--soft)",
    "checkbox_border_color_selected": "var(--accent)",
    "checkbox_label_background_fill": "var(--card)",
    "checkbox_label_background_fill_hover": "var(--sunk)",
    "checkbox_label_background_fill_selected": "var(--accent-soft)",
    "checkbox_label_border_color": "var(--line)",
    "checkbox_label_text_color": "var(--ink)",
    "checkbox_label_text_color_selected": "var(--ink)",
    "color_accent": "var(--accent)",
    "color_accent_soft": "var(--accent-soft)",
    "link_text_color": "var(--accent)",
    "slider_color": "var(--accent)",
    "loader_color": "var(--accent)",
    "stat_background_fill": "var(--accent)",
    "accordion_text_color": "var(--ink)",
}


def theme() -> gr.themes.Base:
    """Gradio's plain theme in our colours."""
    base = gr.themes.Base(
        font=FONTS, font_mono=MONO_FONTS, radius_size="lg", spacing_size="md", text_size="md"
    )
    known = inspect.signature(base.set).parameters
    dark = {f"{name}_dark": colour for name, colour in _COLOURS.items() if f"{name}_dark" in known}
    flat = {"block_shadow": "none", "block_shadow_dark": "none", "input_radius": "10px"}
    return base.set(**_COLOURS, **dark, **flat)


def head() -> str:
    """Content of <head>: our scripts, and an icon that needs no request."""
    icon = "data:image/svg+xml," + ICON.replace("#", "%23").replace("\n", "").replace('"', "'")
    scripts = "".join(f"<script>{script}</script>" for script in SCRIPTS)
    return f'<link rel="icon" href="{icon}">{scripts}'
