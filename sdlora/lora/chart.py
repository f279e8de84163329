"""The picture of a comparison: a row per group of layers, a column per question; no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from sdlora.lora.compare import Collision

SCALE = 2  # pixels per unit of what is below, for sharp displays
EDGE, TOP, ROW, LABEL, COLUMN, BAR, GAP = 28, 108, 44, 130, 210, 10, 3
LETTERS = 44  # of a name
INK, FAINT, RAIL = "#1f2430", "#7a8194", "#eef0f4"
ONE, OTHER, BOTH, LOST, GAINED = "#4c6ef5", "#f08c00", "#7048e8", "#e03131", "#2f9e44"


@dataclass(frozen=True)
class _Bar:
    share: float  # of the column's width, -1 to 1; negative goes left of a middle line
    colour: str
    words: str
    mark: float | None = None  # a thin line at this share


@dataclass(frozen=True)
class _Column:
    title: str
    bars: Callable[[Collision, float], tuple[_Bar, ...]]  # of a row; the largest size of all rows
    centred: bool = False


def _overlaps(its: Collision, _: float) -> tuple[_Bar, ...]:
    return (_Bar(its.outputs, BOTH, f"{its.outputs:.0%}", its.chance),)


def _reads(its: Collision, _: float) -> tuple[_Bar, ...]:
    return (_Bar(its.inputs, BOTH, f"{its.inputs:.0%}"),)


def _sizes(its: Collision, largest: float) -> tuple[_Bar, ...]:
    colours = zip(its.sizes, (ONE, OTHER), strict=True)
    return tuple(_Bar(size / (largest or 1.0), colour, f"{size:.3g}") for size, colour in colours)


def _loss(its: Collision, _: float) -> tuple[_Bar, ...]:
    return (_Bar(-its.loss, LOST if its.loss > 0 else GAINED, f"{-its.loss:+.1%}"),)


_COLUMNS = (
    _Column("size of the change", _sizes),
    _Column("same outputs (line: by chance)", _overlaps),
    _Column("same inputs", _reads),
    _Column("energy of an equal blend", _loss, centred=True),
)


def draw(table: Mapping[str, Collision], one: str, other: str) -> Image.Image:
    """`compare`'s table for the LoRAs called `one` and `other`, on white."""
    width = EDGE * 2 + LABEL + COLUMN * len(_COLUMNS)
    height = TOP + ROW * len(table) + EDGE
    image = Image.new("RGB", (width * SCALE, height * SCALE), "white")
    pen = _Pen(ImageDraw.Draw(image))
    beside = pen.text(EDGE, 22, one[:LETTERS], 17, ONE)
    beside = pen.text(beside + 10, 22, "and", 17, FAINT)
    pen.text(beside + 10, 22, other[:LETTERS], 17, OTHER)
    pen.text(EDGE, 50, "where the two collide, by kind of layer", 12, FAINT)
    largest = max(size for its in table.values() for size in its.sizes)
    for number, column in enumerate(_COLUMNS):
        left = EDGE + LABEL + COLUMN * number
        pen.text(left, TOP - 26, column.title, 12, INK)
        for row, its in enumerate(table.values()):
            pen.bars(left, TOP + ROW * row, column.bars(its, largest), column.centred)
    for row, (group, its) in enumerate(table.items()):
        pen.text(EDGE, TOP + ROW * row + 4, group, 13, INK)
        pen.text(EDGE, TOP + ROW * row + 20, f"{its.layers} shared layers", 10, FAINT)
    return image


@dataclass(frozen=True)
class _Pen:
    on: ImageDraw.ImageDraw

    def text(self, x: float, y: float, words: str, size: int, colour: str) -> float:
        """Draw; where the words end."""
        self.on.text((x * SCALE, y * SCALE), words, fill=colour, font=_font(size))
        return x + self.width(words, size)

    def width(self, words: str, size: int) -> float:
        return self.on.textlength(words, font=_font(size)) / SCALE

    def bars(self, left: float, top: float, bars: tuple[_Bar, ...], centred: bool) -> None:
        rail = COLUMN - 74  # words stand to its right
        tall = len(bars) * BAR + (len(bars) - 1) * GAP
        for number, bar in enumerate(bars):
            y = top + (ROW - 12 - tall) / 2 + number * (BAR + GAP)
            zero = left + rail / 2 if centred else left
            end = zero + max(-1.0, min(1.0, bar.share)) * (rail / 2 if centred else rail)
            self.box(left, y, left + rail, y + BAR, RAIL)
            if bar.share:
                self.box(min(zero, end), y, max(zero, end), y + BAR, bar.colour)
            if bar.mark is not None:
                at = left + min(bar.mark, 1.0) * rail
                self.box(at - 0.5, y - 3, at + 0.5, y + BAR + 3, INK)
            self.text(left + rail + 8, y - 1, bar.words, 10, INK)

    def box(self, left: float, top: float, right: float, bottom: float, colour: str) -> None:
        box = [round(edge * SCALE) for edge in (left, top, right, bottom)]
        self.on.rectangle((box[0], box[1], max(box[2] - 1, box[0]), box[3] - 1), fill=colour)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * SCALE)
