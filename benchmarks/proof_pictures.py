"""The tables of `benchmarks.proof` as pictures: curves by matplotlib, and what the LoRAs draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdlora import runs
from sdlora.grid import Row, lay_out
from sdlora.review import averaged
from sdlora.starter.sets import SETS

if TYPE_CHECKING:
    from benchmarks.proof import Lab

INK, FAINT, BLUE, ORANGE, VIOLET, GREEN = (
    *("#1f2430", "#7a8194", "#4c6ef5", "#f08c00"), "#7048e8", "#2f9e44",
)  # fmt: skip
PROMPTS = (
    "a big blue house, night background",
    "a red star, meadow background",
    "a yellow fish, sea background",
    "a green tree, snow background",
)
SHOWN = ("rank-1", "rank-4", "rank-16", "rank-64", "rank-32-alpha-32", "style-attention",
         "style-feed_forward", "style-conv")  # fmt: skip


def draw(lab: Lab, table: Mapping[str, Any], folder: Path) -> None:
    """Write the pictures of what was measured into `folder`."""
    if {"ranks", "weights", "by heart", "layers"} <= table.keys():
        curves(lab, table, folder / "proof.png")
    if {"ranks", "layers"} <= table.keys():
        draw_ranks(lab).save(folder / "proof-ranks.png")
    if "together" in table:
        draw_together(lab).save(folder / "proof-together.png")
