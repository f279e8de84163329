"""Tables of docs/kohya.md, generated from the reader's tables."""

from __future__ import annotations

from sdlora.kohya.keys import ALWAYS, INSTEAD, KEYS, OURS
from sdlora.kohya.network import ALGORITHMS, MODULES


def markdown() -> str:
    """Return Markdown tables of all keys and the settings they are read as."""
    used = [
        f"| `{key}` | `{row.ours}` | {'ours' if row.missing is OURS else f'`{row.missing}`'} |"
        for key, row in KEYS.items()
    ]
    always = [
        f"| {', '.join(f'`{key}`' for key in keys)} | {why} |" for why, keys in ALWAYS.items()
    ]
    instead = [f"| `{key}` | {replacement} |" for key, replacement in INSTEAD.items()]
    modules = [f"| `{name}` | `{module.adapter}` |" for name, module in MODULES.items()]
    modules += [f"| `lycoris.kohya`, `algo={name}` | `{a}` |" for name, a in ALGORITHMS.items()]
    parts = (
        (("sd-scripts", "sdlora", "left out"), used),
        (("network", "adapter"), modules),
        (("always so", "because"), always),
        (("not done", "instead"), instead),
    )
    return "\n\n".join(_markdown_table(heads, rows) for heads, rows in parts)


def _markdown_table(heads: tuple[str, ...], rows: list[str]) -> str:
    first = f"| {' | '.join(heads)} |"
    return "\n".join([first, "|---" * len(heads) + "|", *rows])
