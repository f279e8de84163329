"""Several LoRAs in one, and one at another rank: the sum of their changes, cut by its spectrum.

The wanted change of a layer is the weighted sum of the changes of its adapters, of any kind, or a
sparse sum: TIES (arXiv:2306.01708) keeps the largest values and those that agree in sign, DARE
(arXiv:2311.03099) drops values at random and scales up the rest. The sums have the meaning of
peft's `add_weighted_adapter` with `svd`, `cat`, `ties_svd`, `dare_linear_svd`, `dare_ties_svd`.
Adding up the factors themselves, as others' `linear` does, would give another change; it is absent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sdlora.device import generator_for
from sdlora.errors import LoraFileError
from sdlora.lora.format.file import LoraFile
from sdlora.lora.format.layer import Adapter
from sdlora.lora.format.layer_groups import Losses
from sdlora.lora.tools.deltas import (
    Pristine,
    as_lora,
    change,
    flat_factors,
    has_matrix,
    limit,
    no_weights,
    weight_shape,
)
from sdlora.lora.tools.svd import Spectrum, distance
from sdlora.settings.lora_tools import Method

Terms = list[tuple[Adapter, float]]  # the adapters on one layer, each with its weight
Missed = tuple[float, float]  # Frobenius norms: of the wanted change, of what is missing of it
Prune = Callable[[Tensor, float, torch.Generator], Tensor]


@dataclass(frozen=True)
class MergeMethod:
    """How changes are added up and cut; `rank` and `keep` both count where both are given."""

    method: Method = "linear"
    rank: int | None = None
    keep: float | None = None
    density: float = 0.5
    seed: int = 0
    dtype: torch.dtype = torch.float16


def merge(
    files: Sequence[LoraFile],
    weights: Sequence[float],
    recipe: MergeMethod,
    pristine: Pristine = no_weights,
) -> tuple[LoraFile, Losses]:
    """One file, without metadata, that changes what all of them do, and what it misses of that.

    The files name their layers alike. Without a rank `concat` loses nothing but the rounding to
    its dtype, and the others keep the largest rank that a layer comes with. LoraFileError when the
    files are for different models.
    """
    terms: dict[str, Terms] = {}
    for file, weight in zip(files, weights, strict=True):
        for name, adapter in file.layers.items():
            terms.setdefault(name, []).append((adapter, weight))
    layers, losses = {}, Losses()
    for name, its in terms.items():
        layers[name], missed = fold(name, its, recipe, pristine)
        losses.add(name, *missed)
    embeddings = {word: rows for file in files for word, rows in file.embeddings.items()}
    return LoraFile(layers, {}, embeddings), losses


def resize(
    file: LoraFile, recipe: MergeMethod, pristine: Pristine = no_weights
) -> tuple[LoraFile, Losses]:
    """`file`, of any kind, as a LoRA of the recipe's rank or energy, and what it misses."""
    resized, losses = merge([file], [1.0], recipe, pristine)
    return replace(resized, metadata=file.metadata, embeddings=file.embeddings), losses


def fold(
    name: str, terms: Terms, recipe: MergeMethod, pristine: Pristine
) -> tuple[Adapter, Missed]:
    """A matrix as a LoRA, a bias beside it as it is; norms and biases alone as they are."""
    matrices = [term for term in terms if has_matrix(term[0])]
    vectors = {
        parameter: _sum(name, parameter, its, recipe, pristine)
        for parameter in ("weight", "bias")
        if parameter == "bias" or not matrices
        if (its := [term for term in terms if parameter in term[0].parameters])
    }
    stored = {parameter: total.to(recipe.dtype) for parameter, total in vectors.items()}
    pairs = [(total, stored[parameter].float()) for parameter, total in vectors.items()]
    if not matrices:
        kind, roles = _VECTORS["weight" in stored]
        tensors = {roles[parameter]: half for parameter, half in stored.items()}
        return Adapter(kind, tensors), _missed(pairs)
    lora, missed = _fold_matrix(name, matrices, recipe, pristine)
    if "bias" in stored:
        lora = Adapter("LoRA", {**lora.tensors, "diff_b": stored["bias"]})
    beside = _missed(pairs)
    return lora, (math.hypot(missed[0], beside[0]), math.hypot(missed[1], beside[1]))


def _missed(pairs: Iterable[tuple[Tensor, Tensor]]) -> Missed:
    """Of vectors, as they are wanted and as they are stored."""
    norms = [(float(exact.norm()), float((exact - stored).norm())) for exact, stored in pairs]
    return math.hypot(*(norm for norm, _ in norms)), math.hypot(*(off for _, off in norms))


def _fold_matrix(
    name: str, terms: Terms, recipe: MergeMethod, pristine: Pristine
) -> tuple[Adapter, Missed]:
    """The sum of changes of a matrix as a LoRA."""
    shape = _shape(name, terms, pristine)
    factors = [flat_factors(adapter) for adapter, _ in terms if adapter.factors()]
    if recipe.method in _PRUNE or len(factors) < len(terms):
        wanted = Spectrum.of_matrix(_sum(name, "weight", terms, recipe, pristine).flatten(1))
    else:
        weighted = [up * weight for (_, up), (_, weight) in zip(factors, terms, strict=True)]
        wanted = Spectrum.of_factors(
            torch.cat([down for down, _ in factors]), torch.cat(weighted, 1)
        )
    kept = wanted.cut(_rank(wanted, terms, recipe, shape)).factors()
    lora = as_lora(*kept, shape, recipe.dtype)
    return lora, (wanted.norm, distance(wanted.factors(), flat_factors(lora)))


def _rank(wanted: Spectrum, terms: Terms, recipe: MergeMethod, shape: tuple[int, ...]) -> int:
    asked = [limit(shape), recipe.rank or limit(shape)]
    if recipe.keep is not None:
        asked.append(wanted.rank_for(recipe.keep))
    elif recipe.rank is None:
        # a change that is given as it is has no rank of its own: all of it stays
        ranks = [adapter.rank or limit(shape) for adapter, _ in terms]
        asked.append(sum(ranks) if recipe.method == "concat" else max(ranks))
    return min(asked)


def _shape(name: str, terms: Terms, pristine: Pristine) -> tuple[int, ...]:
    """The shape of a layer's weight, which all adapters on it have to agree on."""
    shapes = [weight_shape(adapter, name, pristine) for adapter, _ in terms]
    # a 1 x 1 convolution is a linear layer; files write it either way
    if len({shape[:2] if shape[2:] == (1, 1) else shape for shape in shapes}) > 1:
        raise LoraFileError(
            "layer {layer!r} has the shapes {shapes}: these files are for different models",
            layer=name[:80],
            shapes=" and ".join(map(str, shapes)),
        )
    return shapes[0]


def _sum(
    name: str, parameter: str, terms: Terms, recipe: MergeMethod, pristine: Pristine
) -> Tensor:
    """The weighted sum of the changes of one parameter, sparse where the method says so."""
    found = [change(adapter, name, parameter, pristine) for adapter, _ in terms]
    changes = torch.stack([its.view_as(found[0]) for its in found])
    weights = torch.tensor([weight for _, weight in terms]).view(-1, *(1,) * found[0].dim())
    if prune := _PRUNE.get(recipe.method):
        rng = generator_for(recipe.seed, "dare", name, parameter)
        changes = torch.stack([prune(its, recipe.density, rng) for its in changes])
    agree = _AGREEING.get(recipe.method)
    return (changes * weights).sum(0) if agree is None else agree(changes, weights)


def _largest(values: Tensor, density: float, _: torch.Generator) -> Tensor:
    """The largest values by size, as many as `density` says; zero elsewhere (TIES, sec. 3.1)."""
    kept = values.abs().flatten().topk(int(density * values.numel())).indices
    mask = torch.zeros(values.numel()).index_fill_(0, kept, 1.0)
    return values * mask.view_as(values)


def _dropped(values: Tensor, density: float, rng: torch.Generator) -> Tensor:
    """Values dropped at random, the others scaled up so that the mean stays (DARE, eq. 1)."""
    return values * torch.bernoulli(torch.full(values.shape, density), generator=rng) / density


def _agreeing(changes: Tensor, weights: Tensor) -> Tensor:
    """The mean over those that have the sign of the sum, weighted (TIES, sec. 3.1, steps 2, 3)."""
    sign = torch.where(changes.sum(0) >= 0, 1, -1)
    agree = changes.sign() == sign
    return (changes * weights * agree).sum(0) / agree.sum(0).clamp(min=1)


_PRUNE: dict[str, Prune] = {"ties": _largest, "dare": _dropped, "dare_ties": _dropped}
_AGREEING = {"ties": _agreeing, "dare_ties": _agreeing}
# Whether a weight is among them -> the kind that holds vectors as they are, and their roles
_VECTORS = {
    True: ("norm", {"weight": "w_norm", "bias": "b_norm"}),
    False: ("full", {"bias": "diff_b"}),
}
