"""Styles: texts that are put around a prompt, kept in A1111's styles.csv (modules/styles.py)."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sdlora.errors import SettingsError

_PLACE = "{prompt}"


@dataclass(frozen=True)
class Style:
    """A style: what it does to the prompt, and to the negative prompt."""

    name: str
    prompt: str = ""
    negative_prompt: str = ""


def apply_styles(text: str, styles: Iterable[str]) -> str:
    """The text with each style's text around it where that says {prompt}, else after it.

    >>> apply_styles("a cat", ["oil painting of {prompt}", "masterpiece"])
    'oil painting of a cat, masterpiece'
    """
    for style in styles:
        if _PLACE in style:
            text = style.replace(_PLACE, text)
        else:
            text = ", ".join(filter(None, (text.strip(), style.strip())))
    return text


def read_styles(path: Path) -> dict[str, Style]:
    """The styles of a CSV file with the columns name, prompt and negative_prompt, by name.

    SettingsError when the file cannot be read as such; a row without a name is passed over.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, skipinitialspace=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SettingsError(
            f"the styles in {path.name} cannot be read ({error}); it has to be a UTF-8 CSV file "
            "with the columns name, prompt and negative_prompt"
        ) from None
    found = (
        Style(row.get("name") or "", row.get("prompt") or row.get("text") or "",
              row.get("negative_prompt") or "")
        for row in rows
    )  # fmt: skip
    return {style.name: style for style in found if style.name}
