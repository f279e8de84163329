"""Adapters that learn: fresh ones beside the layers of an open family, and what they have learnt.

They are peft's; attaching and detaching them leaves the base weights alone.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer, LoraModel
from torch import Tensor, nn

from sdlora.device import generator_for
from sdlora.families.base import Family
from sdlora.lora.adapter import Adapter
from sdlora.lora.file import LoraFile
from sdlora.settings import TrainSettings

ADAPTER = "sdlora"


def attach(family: Family, settings: TrainSettings) -> dict[str, list[nn.Parameter]]:
    """Put fresh adapters beside the layers of `settings.targets`; part -> the parameters to train.

    A gaussian, B zero (arXiv:2106.09685, sec. 4.1), so that nothing changes before the first step;
    float32 whatever the base; the same numbers for the same seed on every device.
    """
    targets = family.lora_targets(settings.targets, settings.train_text_encoder)
    with torch.random.fork_rng(devices=[]):  # peft throws the process's dice; ours come below
        for part, groups in targets.items():
            model = family.parts[part]
            LoraModel(model, _config(model, groups, settings), ADAPTER)
    rng = generator_for(settings.seed, "adapter")
    for layer in _adapted(family).values():
        layer.lora_A.float()
        layer.lora_B.float()
        down = layer.lora_A[ADAPTER].weight
        down.data.copy_(torch.randn(down.shape, generator=rng) / layer.r[ADAPTER])
    return {
        part: [p for p in family.parts[part].parameters() if p.requires_grad] for part in targets
    }


def _config(model: nn.Module, groups: dict[str, list[str]], settings: TrainSettings) -> LoraConfig:
    ranks = {"conv": settings.conv_rank}
    by_rank: dict[int, list[str]] = {}
    for group, paths in groups.items():
        for path in paths:
            weight: Any = model.get_submodule(path).weight
            out, *inner = weight.shape
            # a rank above what the layer can hold adds nothing but size
            rank = min(ranks.get(group, settings.rank), out, math.prod(inner))
            by_rank.setdefault(rank, []).append(path)
    patterns = {"|".join(map(re.escape, paths)): rank for rank, paths in by_rank.items()}
    scale = settings.alpha / settings.rank  # of every layer, whatever its rank
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        target_modules=[path for paths in by_rank.values() for path in paths],
        init_lora_weights="gaussian",  # B zero; `attach` draws A from a stream of its own
        rank_pattern=patterns,
        alpha_pattern={pattern: scale * rank for pattern, rank in patterns.items()},
    )


def detach(family: Family) -> None:
    """Take the training adapters away; the base weights are as they were."""
    for (part, path), layer in _adapted(family).items():
        family.parts[part].set_submodule(path, layer.get_base_layer())
    for model in family.parts.values():
        if hasattr(model, "peft_config"):
            del model.peft_config


def collect(family: Family) -> LoraFile:
    """What the attached adapters have learnt so far, copied to the CPU; without metadata."""
    layers = _adapted(family)
    return LoraFile(
        {
            name: Adapter.lora(_copy(layers[place].lora_A), _copy(layers[place].lora_B), alpha)
            for name, place in family.module_names().items()
            if place in layers
            for alpha in [float(layers[place].lora_alpha[ADAPTER])]
        }
    )


def _copy(halves: nn.ModuleDict) -> Tensor:
    return halves[ADAPTER].weight.detach().cpu().clone()  # type: ignore[union-attr,operator]


def _adapted(family: Family) -> dict[tuple[str, str], Any]:
    places = family.module_names().values()
    layers = {(part, path): family.parts[part].get_submodule(path) for part, path in places}
    return {place: layer for place, layer in layers.items() if isinstance(layer, LoraLayer)}


@dataclass(frozen=True)
class Trainable:
    """How much of a family learns."""

    trained: int
    total: int  # the UNet's and text encoders' own parameters
    layers: int

    def __str__(self) -> str:
        share = 100 * self.trained / self.total
        return (
            f"{self.trained:,} parameters in {self.layers} layers learn: "
            f"{share:.2f} % beside {self.total:,} that stay"
        )


def trainable_report(family: Family) -> Trainable:
    """Parameters of the attached adapters, and of what they stand beside."""
    every = [p for model in family.parts.values() for p in model.parameters()]
    trained = sum(p.numel() for p in every if p.requires_grad)
    return Trainable(trained, sum(p.numel() for p in every) - trained, len(_adapted(family)))
