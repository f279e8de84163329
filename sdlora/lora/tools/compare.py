"""Comparison of two LoRAs: per group of layers, their sizes, overlap and the loss of a blend.

Two changes of a layer, D1 and D2, act on the same outputs as far as their column spaces overlap,
and read the same inputs as far as their row spaces do. The overlap is the mean squared cosine of
the principal angles between the spaces (Björck and Golub, 1973): |U1ᵀ U2|² / min(r1, r2) for
orthonormal bases U1 and U2; 0 is apart, 1 is one inside the other, and spaces drawn at random
overlap by max(r1, r2) / m. A blend at equal weights loses 1 - |D1 + D2|² / (|D1|² + |D2|²) of its
energy where the changes work against each other; where they add up this is negative. The chart of a
comparison has a row per group of layers and a column per measure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from sdlora.errors import LoraFileError
from sdlora.lora.format.file import LoraFile
from sdlora.lora.format.layer_groups import in_groups
from sdlora.lora.tools.deltas import BaseWeight, has_matrix, no_weights, spectrum
from sdlora.lora.tools.svd import Spectrum

SCALE = 2  # pixels per unit of the sizes below, for sharp displays
EDGE, TOP, ROW, LABEL, COLUMN, BAR, GAP = 28, 108, 44, 130, 210, 10, 3
LETTERS = 44  # of a name at most
INK, FAINT, RAIL = "#1f2430", "#7a8194", "#eef0f4"
ONE, OTHER, BOTH, LOST, GAINED = "#4c6ef5", "#f08c00", "#7048e8", "#e03131", "#2f9e44"


@dataclass(frozen=True)
class _Bar:
    share: float  # of the column's width, -1 to 1; negative goes left of a middle line
    colour: str
    label: str
    mark: float | None = None  # a thin line at this share


@dataclass(frozen=True)
class _Column:
    title: str
    bars: Callable[
        [LoraOverlap, float], tuple[_Bar, ...]
    ]  # (row, largest size of all rows) -> bars
    centred: bool = False


def _output_bars(overlap: LoraOverlap, _: float) -> tuple[_Bar, ...]:
    return (_Bar(overlap.outputs, BOTH, f"{overlap.outputs:.0%}", overlap.chance),)


def _input_bars(overlap: LoraOverlap, _: float) -> tuple[_Bar, ...]:
    return (_Bar(overlap.inputs, BOTH, f"{overlap.inputs:.0%}"),)


def _size_bars(overlap: LoraOverlap, largest: float) -> tuple[_Bar, ...]:
    colours = zip(overlap.sizes, (ONE, OTHER), strict=True)
    return tuple(_Bar(size / (largest or 1.0), colour, f"{size:.3g}") for size, colour in colours)


def _loss_bars(overlap: LoraOverlap, _: float) -> tuple[_Bar, ...]:
    return (_Bar(-overlap.loss, LOST if overlap.loss > 0 else GAINED, f"{-overlap.loss:+.1%}"),)


_COLUMNS = (
    _Column("size of the change", _size_bars),
    _Column("same outputs (line: by chance)", _output_bars),
    _Column("same inputs", _input_bars),
    _Column("energy of an equal blend", _loss_bars, centred=True),
)


def draw(table: Mapping[str, LoraOverlap], first_name: str, second_name: str) -> Image.Image:
    """Draw `compare`'s table as a bar chart; the names are shown as a title, cut to LETTERS."""
    width = EDGE * 2 + LABEL + COLUMN * len(_COLUMNS)
    height = TOP + ROW * len(table) + EDGE
    image = Image.new("RGB", (width * SCALE, height * SCALE), "white")
    pen = _Pen(ImageDraw.Draw(image))
    beside = pen.text(EDGE, 22, first_name[:LETTERS], 17, ONE)
    beside = pen.text(beside + 10, 22, "and", 17, FAINT)
    pen.text(beside + 10, 22, second_name[:LETTERS], 17, OTHER)
    pen.text(EDGE, 50, "where the two collide, by kind of layer", 12, FAINT)
    largest = max(size for overlap in table.values() for size in overlap.sizes)
    for number, column in enumerate(_COLUMNS):
        left = EDGE + LABEL + COLUMN * number
        pen.text(left, TOP - 26, column.title, 12, INK)
        for row, overlap in enumerate(table.values()):
            pen.bars(left, TOP + ROW * row, column.bars(overlap, largest), column.centred)
    for row, (group, overlap) in enumerate(table.items()):
        pen.text(EDGE, TOP + ROW * row + 4, group, 13, INK)
        pen.text(EDGE, TOP + ROW * row + 20, f"{overlap.layers} shared layers", 10, FAINT)
    return image


@dataclass(frozen=True)
class _Pen:
    on: ImageDraw.ImageDraw

    def text(self, x: float, y: float, string: str, size: int, colour: str) -> float:
        """Draw text; return the x at which it ends."""
        self.on.text((x * SCALE, y * SCALE), string, fill=colour, font=_font(size))
        return x + self.width(string, size)

    def width(self, text: str, size: int) -> float:
        return self.on.textlength(text, font=_font(size)) / SCALE

    def bars(self, left: float, top: float, bars: tuple[_Bar, ...], centred: bool) -> None:
        rail = COLUMN - 74  # the label stands to its right
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
            self.text(left + rail + 8, y - 1, bar.label, 10, INK)

    def box(self, left: float, top: float, right: float, bottom: float, colour: str) -> None:
        box = [round(edge * SCALE) for edge in (left, top, right, bottom)]
        self.on.rectangle((box[0], box[1], max(box[2] - 1, box[0]), box[3] - 1), fill=colour)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * SCALE)


@dataclass(frozen=True)
class LoraOverlap:
    """Overlap of two LoRAs in a group of layers.

    `outputs`, `inputs` and `chance` are means over the shared layers, each weighted by the product
    of the norms of its two changes.
    """

    layers: int  # changed by both
    alone: tuple[int, int]  # changed by the one or the other only
    sizes: tuple[float, float]  # Frobenius norms of all their changes, those alone included
    outputs: float  # overlap of the column spaces, 0 to 1
    inputs: float  # overlap of the row spaces, 0 to 1
    chance: float  # overlap of column spaces drawn at random
    loss: float  # share of the energy that a blend at equal weights loses; negative: adds up


@dataclass(frozen=True)
class _LayerOverlap:
    """Overlap of two LoRAs in one layer: norms of the two changes, inner product, overlaps."""

    norms: tuple[float, float]
    inner: float = 0.0
    overlaps: tuple[float, float, float] = (0.0, 0.0, 0.0)  # outputs, inputs, outputs by chance


def compare(
    first: LoraFile, second: LoraFile, base_weight: BaseWeight = no_weights
) -> dict[str, LoraOverlap]:
    """Return group of layers -> overlap of the two files there; 'all' is last.

    The files use the same names for layers. Only matrices are compared: norms and biases are left
    out. LoraFileError when a layer has two shapes, or neither file changes a matrix.
    """
    files = first, second
    names = dict.fromkeys(
        name for file in files for name, adapter in file.layers.items() if has_matrix(adapter)
    )
    if not names:
        raise LoraFileError("neither file changes a matrix; norms and biases are not compared")
    overlaps = {name: _layer_overlap(name, files, base_weight) for name in names}
    groups = {**in_groups(names), "all": list(names)}
    return {
        group: _group_overlap(overlaps[name] for name in layers) for group, layers in groups.items()
    }


def _layer_overlap(
    name: str, files: tuple[LoraFile, LoraFile], base_weight: BaseWeight
) -> _LayerOverlap:
    adapters = [file.layers.get(name) for file in files]
    spectra = [
        spectrum(adapter, name, base_weight) if adapter and has_matrix(adapter) else None
        for adapter in adapters
    ]
    first, second = spectra
    if first is None or second is None:
        return _LayerOverlap((first.norm if first else 0.0, second.norm if second else 0.0))
    outputs, inputs = ((svd.left.shape[0], svd.right.shape[1]) for svd in (first, second))
    if outputs != inputs:
        raise LoraFileError(
            "layer {layer!r} is {first} in one and {second} in the other: these files are for "
            "different models",
            layer=name[:80],
            first=outputs,
            second=inputs,
        )
    return _LayerOverlap((first.norm, second.norm), first.inner(second), _overlaps(first, second))


def _overlaps(first: Spectrum, second: Spectrum) -> tuple[float, float, float]:
    first, second = first.cut(first.rank), second.cut(second.rank)
    few, many = sorted((first.rank, second.rank))
    outputs = (first.left.T @ second.left).square().sum() / few
    inputs = (first.right @ second.right.T).square().sum() / few
    return float(outputs), float(inputs), many / first.left.shape[0]


def _group_overlap(overlaps: Iterable[_LayerOverlap]) -> LoraOverlap:
    layers_of_group = list(overlaps)
    shared = [overlap for overlap in layers_of_group if min(overlap.norms) > 0]
    squares = [sum(overlap.norms[i] ** 2 for overlap in layers_of_group) for i in (0, 1)]
    strength = sum(overlap.norms[0] * overlap.norms[1] for overlap in shared)
    weights = [overlap.norms[0] * overlap.norms[1] / strength for overlap in shared]
    outputs, inputs, chance = (
        sum(w * overlap.overlaps[i] for w, overlap in zip(weights, shared, strict=True))
        for i in range(3)
    )
    energy = sum(squares)
    return LoraOverlap(
        layers=len(shared),
        alone=(
            sum(overlap.norms[0] > 0 == overlap.norms[1] for overlap in layers_of_group),
            sum(overlap.norms[1] > 0 == overlap.norms[0] for overlap in layers_of_group),
        ),
        sizes=(squares[0] ** 0.5, squares[1] ** 0.5),
        outputs=outputs,
        inputs=inputs,
        chance=chance,
        # |D1 + D2|² = |D1|² + |D2|² + 2 <D1, D2>
        loss=-2 * sum(overlap.inner for overlap in shared) / energy if energy else 0.0,
    )
