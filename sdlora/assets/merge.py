"""Merging of base models of one family, tensor by tensor in float32.

Weights per block are those of the "merge block weighted" extensions: IN00 ... M00 ... OUT00 ..., in
that order; time and size embeddings go with the first block, the output layers with the last
(bbc-mc/sdweb-merge-block-weighted-gui, scripts/mbw/merge_block_weighted.py). All else has the base
weight.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from sdlora.architectures import FAMILIES
from sdlora.disk_room import check_output_room
from sdlora.errors import ModelError, SettingsError
from sdlora.files import write_if_absent
from sdlora.messages import Setting
from sdlora.models.checkpoint_facts import DENOISER
from sdlora.models.stored_model import (
    StoredModel,
    marks,
    prediction_metadata,
    tensor_bytes,
    write_tensors,
)

ModelMergeMethod = Literal["weighted", "add_difference"]
_BLOCK = re.compile(r"(input_blocks|middle_block|output_blocks)\.(\d+)\.")


@dataclass(frozen=True)
class ModelMerge:
    """Recipe. weighted: (1 - weight) A + weight B; add_difference: A + weight (B - C)."""

    method: ModelMergeMethod = "weighted"
    weight: float = 0.5
    block_weights: tuple[float, ...] = ()  # of the denoiser's blocks; empty: `weight`

    def blend(self, first: Tensor, second: Tensor, third: Tensor | None, weight: float) -> Tensor:
        """Return the merge of a tensor, in float32."""
        change = second - (first if third is None else third)
        return first + weight * change


def merge_models(
    models: Sequence[StoredModel], recipe: ModelMerge, output: Path, dtype: torch.dtype
) -> dict[str, int]:
    """Write the merge of two or three models as one file; return the count of tensors that were
    merged, and of those of the first model that another one lacks or has in another shape.

    ModelError: they do not go together. RunError: there is no room for it. FileExistsError: there
    is a file of that name."""
    _check_alike(models, recipe)
    first, *others = models
    counts = {"merged": 0, "kept of the first": 0}
    weights = block_weight_table(recipe, first.shapes)
    first_facts = first.facts

    def merged(name: str) -> Tensor:
        tensor = first.read(name, torch.float32)
        if any(model.shapes.get(name) != first.shapes[name] for model in others):
            counts["kept of the first"] += 1
            return tensor
        counts["merged"] += 1
        second, *rest = (model.read(name, torch.float32) for model in others)
        return recipe.blend(tensor, second, rest[0] if rest else None, weights[name])

    metadata = {
        "modelspec.title": output.stem,
        "modelspec.architecture": FAMILIES[first_facts.family].architecture,
        "modelspec.merged_from": ", ".join(model.path.stem for model in models),
        "sdlora.merge": json.dumps({
            "method": recipe.method, "weight": recipe.weight,
            "block_weights": recipe.block_weights,
            "models": [model.path.name for model in models],
        }),
        **prediction_metadata(first_facts),
    }  # fmt: skip
    table = {**first.shapes, **marks(first_facts)}
    check_output_room(output.parent, tensor_bytes(table.values(), dtype))
    write_if_absent(output, lambda file: write_tensors(file, table, dtype, merged, metadata))
    return counts


def block_weight_table(recipe: ModelMerge, shapes: Iterable[str]) -> dict[str, float]:
    """Return name of a tensor -> its weight. SettingsError: another number of weights than the
    denoiser has blocks."""
    names = list(shapes)
    counts = {side: 1 + max(_numbers(names, side), default=-1) for side in _SIDES}
    starts = {"input_blocks": 0, "middle_block": counts["input_blocks"]}
    starts["output_blocks"] = starts["middle_block"] + 1
    count = starts["output_blocks"] + counts["output_blocks"]
    base, weights = recipe.weight, list(recipe.block_weights)
    if len(weights) == count + 1:
        base, *weights = weights
    if weights and len(weights) != count:
        raise SettingsError(
            "{setting} has {given} numbers; this model takes {count}, those of IN00 to "
            "IN{last:02}, M00, OUT00 to OUT{last:02}, or one more before them for all that is no "
            "block",
            setting=Setting("block_weights"), given=len(weights), count=count,
            last=counts["input_blocks"] - 1,
        )  # fmt: skip
    table = {}
    for name in names:
        place = _place(name, starts, count) if weights else None
        table[name] = base if place is None else weights[place]
    return table


_SIDES = ("input_blocks", "output_blocks")


def _numbers(names: Sequence[str], side: str) -> list[int]:
    pattern = re.compile(re.escape(f"{DENOISER}{side}.") + r"(\d+)\.")
    return [int(match[1]) for name in names if (match := pattern.match(name))]


def _place(name: str, starts: dict[str, int], count: int) -> int | None:
    """Return the place of a tensor's weight; None: it is in no block of the denoiser."""
    if not name.startswith(DENOISER):
        return None
    inner = name.removeprefix(DENOISER)
    if match := _BLOCK.match(inner):
        return starts[match[1]] + (int(match[2]) if match[1] != "middle_block" else 0)
    return count - 1 if inner.startswith("out.") else 0


def _check_alike(models: Sequence[StoredModel], recipe: ModelMerge) -> None:
    needed = 3 if recipe.method == "add_difference" else 2
    if len(models) != needed:
        raise SettingsError(
            "{method} takes {needed} models; {given} are named",
            method=recipe.method, needed=needed, given=len(models),
        )  # fmt: skip
    first, *others = models
    for model in others:
        pair = {"first": first.path.name, "second": model.path.name}
        if model.facts.family != first.facts.family:
            titles = [FAMILIES[m.facts.family].title for m in (first, model)]
            raise ModelError(
                "{first} is {one} and {second} is {other}; only models of one family are merged",
                **pair, one=titles[0], other=titles[1],
            )  # fmt: skip
        known = "family" not in (first.facts.told_by, model.facts.told_by)
        if known and model.facts.prediction != first.facts.prediction:
            raise ModelError(
                "{first} and {second} predict different things, noise and v; a merge of them would "
                "draw neither",
                **pair,
            )
