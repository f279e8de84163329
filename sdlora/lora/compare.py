"""Where two LoRAs collide: what of a layer both change, how strongly, and what a blend loses.

Two changes of a layer, D1 and D2, act on the same outputs as far as their column spaces overlap,
and read the same inputs as far as their row spaces do. The overlap is the mean squared cosine of
the principal angles between the spaces (Björck and Golub, 1973): |U1ᵀ U2|² / min(r1, r2) for
orthonormal bases U1 and U2; 0 is apart, 1 is one inside the other, and spaces drawn at random
overlap by max(r1, r2) / m. A blend at equal weights loses 1 - |D1 + D2|² / (|D1|² + |D2|²) of its
energy where the changes work against each other; where they add up this is negative.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sdlora.errors import LoraFileError
from sdlora.lora.changes import Pristine, has_matrix, no_weights, spectrum
from sdlora.lora.file import LoraFile
from sdlora.lora.groups import in_groups
from sdlora.lora.spectrum import Spectrum


@dataclass(frozen=True)
class Collision:
    """How two LoRAs meet in some layers. The overlaps are weighted by how strong both are there."""

    layers: int  # changed by both
    alone: tuple[int, int]  # changed by the one or the other only
    sizes: tuple[float, float]  # Frobenius norms of all their changes, those alone included
    outputs: float  # overlap of the column spaces, 0 to 1
    inputs: float  # overlap of the row spaces, 0 to 1
    chance: float  # overlap of column spaces drawn at random
    loss: float  # share of the energy that a blend at equal weights loses; negative: adds up


@dataclass(frozen=True)
class _Meeting:
    """One layer: norms of the two changes, their inner product, overlaps."""

    norms: tuple[float, float]
    inner: float = 0.0
    overlaps: tuple[float, float, float] = (0.0, 0.0, 0.0)  # outputs, inputs, outputs by chance


def compare(
    one: LoraFile, other: LoraFile, pristine: Pristine = no_weights
) -> dict[str, Collision]:
    """Group of layers -> how the two meet there; 'all' is last. The files name layers alike.

    Only what a LoRA can hold is compared: norms and biases are left out. LoraFileError when a
    layer has two shapes, or nothing is left.
    """
    files = one, other
    names = dict.fromkeys(
        name for file in files for name, adapter in file.layers.items() if has_matrix(adapter)
    )
    if not names:
        raise LoraFileError("neither file changes a matrix; norms and biases are not compared")
    meetings = {name: _meeting(name, files, pristine) for name in names}
    groups = {**in_groups(names), "all": list(names)}
    return {
        group: _collision(meetings[name] for name in layers) for group, layers in groups.items()
    }


def _meeting(name: str, files: tuple[LoraFile, LoraFile], pristine: Pristine) -> _Meeting:
    adapters = [file.layers.get(name) for file in files]
    found = [
        spectrum(adapter, name, pristine) if adapter and has_matrix(adapter) else None
        for adapter in adapters
    ]
    first, second = found
    if first is None or second is None:
        return _Meeting((first.norm if first else 0.0, second.norm if second else 0.0))
    outputs, inputs = ((its.left.shape[0], its.right.shape[1]) for its in (first, second))
    if outputs != inputs:
        raise LoraFileError(
            "layer {layer!r} is {first} in one and {second} in the other: these files are for "
            "different models",
            layer=name[:80],
            first=outputs,
            second=inputs,
        )
    return _Meeting((first.norm, second.norm), first.inner(second), _overlaps(first, second))


def _overlaps(one: Spectrum, other: Spectrum) -> tuple[float, float, float]:
    one, other = one.cut(one.rank), other.cut(other.rank)
    few, many = sorted((one.rank, other.rank))
    outputs = (one.left.T @ other.left).square().sum() / few
    inputs = (one.right @ other.right.T).square().sum() / few
    return float(outputs), float(inputs), many / one.left.shape[0]


def _collision(meetings: Iterable[_Meeting]) -> Collision:
    every = list(meetings)
    shared = [its for its in every if min(its.norms) > 0]
    squares = [sum(its.norms[i] ** 2 for its in every) for i in (0, 1)]
    strength = sum(its.norms[0] * its.norms[1] for its in shared)
    weights = [its.norms[0] * its.norms[1] / strength for its in shared]
    outputs, inputs, chance = (
        sum(w * its.overlaps[i] for w, its in zip(weights, shared, strict=True)) for i in range(3)
    )
    energy = sum(squares)
    return Collision(
        layers=len(shared),
        alone=(
            sum(its.norms[0] > 0 == its.norms[1] for its in every),
            sum(its.norms[1] > 0 == its.norms[0] for its in every),
        ),
        sizes=(squares[0] ** 0.5, squares[1] ** 0.5),
        outputs=outputs,
        inputs=inputs,
        chance=chance,
        # |D1 + D2|² = |D1|² + |D2|² + 2 <D1, D2>
        loss=-2 * sum(its.inner for its in shared) / energy if energy else 0.0,
    )
