"""Merge of several LoRAs into one, and resize of one to another rank, by SVD of the summed deltas.

The exact delta of a layer is the weighted sum of the deltas of its adapters, of any type, or a
sparse sum: TIES (arXiv:2306.01708) keeps the largest values and those that agree in sign, DARE
(arXiv:2311.03099) drops values at random and scales up the rest. The sums are those of peft's
`add_weighted_adapter` with `svd`, `cat`, `ties_svd`, `dare_linear_svd`, `dare_ties_svd`. Adding up
the factors themselves, as `linear` of other programs does, gives another delta and is not offered.
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
    BaseWeight,
    as_lora,
    flat_factors,
    has_matrix,
    max_rank,
    no_weights,
    parameter_delta,
    shape_of_weight,
)
from sdlora.lora.tools.svd import Spectrum, distance
from sdlora.settings.lora_tools import Method

Terms = list[tuple[Adapter, float]]  # the adapters on one layer, each with its weight
ErrorNorms = tuple[float, float]  # Frobenius norms: of the exact delta, of the result's error
Prune = Callable[[Tensor, float, torch.Generator], Tensor]


@dataclass(frozen=True)
class MergeMethod:
    """Method of a merge and limits of its result; where `rank` and `keep` are given, both apply."""

    method: Method = "linear"
    rank: int | None = None
    keep: float | None = None
    density: float = 0.5
    seed: int = 0
    dtype: torch.dtype = torch.float16


def merge(
    files: Sequence[LoraFile],
    weights: Sequence[float],
    spec: MergeMethod,
    base_weight: BaseWeight = no_weights,
) -> tuple[LoraFile, Losses]:
    """Return (merged file without metadata, error of each layer).

    The files use the same names for layers. Without a rank `concat` loses nothing but the rounding
    to its dtype, and the others keep the largest rank that a layer has in a file. LoraFileError
    when the files are for different models.
    """
    terms: dict[str, Terms] = {}
    for file, weight in zip(files, weights, strict=True):
        for name, adapter in file.layers.items():
            terms.setdefault(name, []).append((adapter, weight))
    layers, losses = {}, Losses()
    for name, layer_terms in terms.items():
        layers[name], missed = merge_layer(name, layer_terms, spec, base_weight)
        losses.add(name, *missed)
    embeddings = {word: rows for file in files for word, rows in file.embeddings.items()}
    return LoraFile(layers, {}, embeddings), losses


def resize(
    file: LoraFile, spec: MergeMethod, base_weight: BaseWeight = no_weights
) -> tuple[LoraFile, Losses]:
    """Return (`file`, of any adapter type, as a LoRA of the given rank or energy; its errors)."""
    resized, losses = merge([file], [1.0], spec, base_weight)
    return replace(resized, metadata=file.metadata, embeddings=file.embeddings), losses


def merge_layer(
    name: str, terms: Terms, spec: MergeMethod, base_weight: BaseWeight
) -> tuple[Adapter, ErrorNorms]:
    """Merge the adapters on one layer: a matrix becomes a LoRA; biases and norms stay as they are.

    Returns (adapter, its error).
    """
    matrices = [term for term in terms if has_matrix(term[0])]
    vectors = {
        parameter: _sum_of_deltas(name, parameter, parameter_terms, spec, base_weight)
        for parameter in ("weight", "bias")
        if parameter == "bias" or not matrices
        if (parameter_terms := [term for term in terms if parameter in term[0].parameters])
    }
    stored = {parameter: total.to(spec.dtype) for parameter, total in vectors.items()}
    pairs = [(total, stored[parameter].float()) for parameter, total in vectors.items()]
    if not matrices:
        kind, roles = _VECTORS["weight" in stored]
        tensors = {roles[parameter]: half for parameter, half in stored.items()}
        return Adapter(kind, tensors), _error_norms(pairs)
    lora, missed = _merge_matrix(name, matrices, spec, base_weight)
    if "bias" in stored:
        lora = Adapter("LoRA", {**lora.tensors, "diff_b": stored["bias"]})
    beside = _error_norms(pairs)
    return lora, (math.hypot(missed[0], beside[0]), math.hypot(missed[1], beside[1]))


def _error_norms(pairs: Iterable[tuple[Tensor, Tensor]]) -> ErrorNorms:
    """Norms over pairs (exact vector, stored vector): of the exact ones, of the differences."""
    norms = [(float(exact.norm()), float((exact - stored).norm())) for exact, stored in pairs]
    return math.hypot(*(norm for norm, _ in norms)), math.hypot(*(off for _, off in norms))


def _merge_matrix(
    name: str, terms: Terms, spec: MergeMethod, base_weight: BaseWeight
) -> tuple[Adapter, ErrorNorms]:
    """Return (sum of the deltas of a matrix as a LoRA, its error)."""
    shape = _common_shape(name, terms, base_weight)
    factors = [flat_factors(adapter) for adapter, _ in terms if adapter.factors()]
    if spec.method in _PRUNE or len(factors) < len(terms):
        exact = Spectrum.of_matrix(
            _sum_of_deltas(name, "weight", terms, spec, base_weight).flatten(1)
        )
    else:
        weighted = [up * weight for (_, up), (_, weight) in zip(factors, terms, strict=True)]
        exact = Spectrum.of_factors(
            torch.cat([down for down, _ in factors]), torch.cat(weighted, 1)
        )
    low_rank = exact.cut(_rank_to_keep(exact, terms, spec, shape)).factors()
    lora = as_lora(*low_rank, shape, spec.dtype)
    return lora, (exact.norm, distance(exact.factors(), flat_factors(lora)))


def _rank_to_keep(exact: Spectrum, terms: Terms, spec: MergeMethod, shape: tuple[int, ...]) -> int:
    asked = [max_rank(shape), spec.rank or max_rank(shape)]
    if spec.keep is not None:
        asked.append(exact.rank_for(spec.keep))
    elif spec.rank is None:
        # a full delta has no rank of its own: all of it is kept
        ranks = [adapter.rank or max_rank(shape) for adapter, _ in terms]
        asked.append(sum(ranks) if spec.method == "concat" else max(ranks))
    return min(asked)


def _common_shape(name: str, terms: Terms, base_weight: BaseWeight) -> tuple[int, ...]:
    """Shape of a layer's weight. LoraFileError when its adapters have different ones."""
    shapes = [shape_of_weight(adapter, name, base_weight) for adapter, _ in terms]
    # a 1 x 1 convolution is a linear layer; files write it either way
    if len({shape[:2] if shape[2:] == (1, 1) else shape for shape in shapes}) > 1:
        raise LoraFileError(
            "layer {layer!r} has the shapes {shapes}: these files are for different models",
            layer=name[:80],
            shapes=" and ".join(map(str, shapes)),
        )
    return shapes[0]


def _sum_of_deltas(
    name: str, parameter: str, terms: Terms, spec: MergeMethod, base_weight: BaseWeight
) -> Tensor:
    """Weighted sum of the deltas of one parameter, sparse if the method is TIES or DARE."""
    deltas = [parameter_delta(adapter, name, parameter, base_weight) for adapter, _ in terms]
    changes = torch.stack([delta.view_as(deltas[0]) for delta in deltas])
    weights = torch.tensor([weight for _, weight in terms]).view(-1, *(1,) * deltas[0].dim())
    if prune := _PRUNE.get(spec.method):
        rng = generator_for(spec.seed, "dare", name, parameter)
        changes = torch.stack([prune(delta, spec.density, rng) for delta in changes])
    agree = _MEAN.get(spec.method)
    return (changes * weights).sum(0) if agree is None else agree(changes, weights)


def _keep_largest(values: Tensor, density: float, _: torch.Generator) -> Tensor:
    """Keep the share `density` of the values, the largest; zero elsewhere (TIES, sec. 3.1)."""
    indices = values.abs().flatten().topk(int(density * values.numel())).indices
    mask = torch.zeros(values.numel()).index_fill_(0, indices, 1.0)
    return values * mask.view_as(values)


def _drop_random(values: Tensor, density: float, rng: torch.Generator) -> Tensor:
    """Drop values at random, scale the others up so that the mean stays (DARE, eq. 1)."""
    return values * torch.bernoulli(torch.full(values.shape, density), generator=rng) / density


def _mean_of_agreeing(changes: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of the values that have the sign of the sum (TIES, sec. 3.1, steps 2, 3)."""
    sign = torch.where(changes.sum(0) >= 0, 1, -1)
    agree = changes.sign() == sign
    return (changes * weights * agree).sum(0) / agree.sum(0).clamp(min=1)


_PRUNE: dict[str, Prune] = {"ties": _keep_largest, "dare": _drop_random, "dare_ties": _drop_random}
_MEAN = {"ties": _mean_of_agreeing, "dare_ties": _mean_of_agreeing}
# True if a weight is among the vectors -> adapter type that stores vectors, and their roles
_VECTORS = {
    True: ("norm", {"weight": "w_norm", "bias": "b_norm"}),
    False: ("full", {"bias": "diff_b"}),
}
