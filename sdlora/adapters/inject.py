"""Adapters that learn: fresh ones beside the layers of an open family, and what they have learnt.

`layers` knows the kinds; attaching and detaching them leaves the base weights alone.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sdlora.adapters.layers import (
    ADAPTER,
    KINDS,
    AdapterLayer,
    AdapterSpec,
    highest_rank,
    limit_norm,
)
from sdlora.device import generator_for
from sdlora.errors import DeviceError
from sdlora.lora.format.file import LoraFile
from sdlora.lora.format.name_map import original_layer_names
from sdlora.messages import Setting
from sdlora.models.base import Family
from sdlora.settings.train import TrainSettings

Place = tuple[str, str]  # part, path in it


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that learn at one rate."""

    part: str
    group: str  # of the family's TARGETS, or text_encoder
    rate: float  # at its peak
    parameters: list[nn.Parameter]


def attach(family: Family, settings: TrainSettings) -> list[ParamGroup]:
    """Put fresh adapters beside the layers of `settings.targets`; returns what is to be trained.

    Nothing changes before the first step: a factor is zero (of LoRA B, arXiv:2106.09685, sec. 4.1),
    or what PiSSA begins with is taken off again. float32 whatever the base; the same numbers for
    the same seed on every device, PiSSA's apart, which come from the base's weights.
    """
    kind, groups = KINDS[settings.adapter], _group_of(family, settings)
    cuda = family.device.type == "cuda"
    with torch.random.fork_rng(devices=[family.device] if cuda else []):
        torch.manual_seed(generator_for(settings.seed, "adapter").initial_seed())
        for (part, path), group in groups.items():
            base = family.parts[part].get_submodule(path)
            ask = _ask(settings, group, base.weight)
            layer = kind.build(base, ask).train(base.training)
            layer.learns_as = settings.adapter  # type: ignore[assignment]
            for parameter in layer.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
            family.parts[part].set_submodule(path, layer)
    if settings.adapter in ("lora", "dora", "rslora"):
        _draw(family, settings.seed)
    return list(_learning(family, settings, groups))


def _group_of(family: Family, settings: TrainSettings) -> dict[Place, str]:
    """Every layer that learns and its group, in the order of the family's layers."""
    of_unet = settings.targets if settings.train_unet else ()
    targets = family.lora_targets(of_unet, settings.train_text_encoder)
    groups = {
        (part, path): group
        for part, its in targets.items()
        for group, paths in its.items()
        for path in paths
    }
    return {place: groups[place] for place in family.module_names().values() if place in groups}


def _ask(settings: TrainSettings, group: str, weight: Tensor) -> AdapterSpec:
    wanted = settings.of_group("rank", group)
    rank = min(wanted, highest_rank(settings.adapter, weight))
    # rslora's alpha is for all ranks, the others' scale is
    alpha = settings.scale(group) * (wanted if settings.adapter == "rslora" else rank)
    dropout = settings.of_group("dropout", group)
    return AdapterSpec(rank, alpha, dropout, settings.lokr_factor or -1, settings.dora_axis)


def _draw(family: Family, seed: int) -> None:
    """A gaussian, from a stream of its own that does not depend on how peft begins."""
    rng = generator_for(seed, "adapter")
    for layer in _adapted(family).values():
        down = layer.lora_A[ADAPTER].weight
        down.data.copy_(torch.randn(down.shape, generator=rng) / layer.r[ADAPTER])


def _learning(
    family: Family, settings: TrainSettings, groups: dict[Place, str]
) -> Iterator[ParamGroup]:
    """By part and group; with LoRA+ (arXiv:2402.12354) the B matrices apart."""
    layers = _adapted(family)
    for part, group in dict.fromkeys((part, group) for (part, _), group in groups.items()):
        some = [layers[place] for place in groups if (place[0], groups[place]) == (part, group)]
        every = [p for layer in some for p in layer.parameters() if p.requires_grad]
        rate = settings.of_group("learning_rate", group)
        if settings.lora_plus_ratio == 1:
            yield ParamGroup(part, group, rate, every)
            continue
        upper = {id(layer.lora_B[ADAPTER].weight) for layer in some}
        yield ParamGroup(part, group, rate, [p for p in every if id(p) not in upper])
        faster = [p for p in every if id(p) in upper]
        yield ParamGroup(part, group, rate * settings.lora_plus_ratio, faster)


def limit_norms(family: Family, settings: TrainSettings) -> None:
    """After a step: no layer's change is larger than `settings.max_norm`, if there is one."""
    if settings.max_norm:
        for layer in _adapted(family).values():
            limit_norm(KINDS[settings.adapter], layer, settings.max_norm)


def compile_blocks(family: Family, backend: str = "inductor") -> None:
    """Compile the denoiser's repeated blocks, adapters included, each kind of them once
    (docs.pytorch.org, regional compilation). DeviceError: what it needs is not there."""
    if family.device.type == "cuda" and not importlib.util.find_spec("triton"):
        raise DeviceError(
            "{setting} needs the package triton: install it with `python -m pip install triton` "
            "(triton-windows on Windows), or leave it off",
            setting=Setting("compile_blocks"),
        )
    family.denoiser.compile_repeated_blocks(backend=backend)


def detach(family: Family) -> None:
    """Take the training adapters away; the base weights are as they were, and nothing compiled."""
    for module in family.denoiser.modules():
        module._compiled_call_impl = None
    for (part, path), layer in _adapted(family).items():
        family.parts[part].set_submodule(path, layer.base_layer)


def collect(family: Family) -> LoraFile:
    """What the attached adapters have learnt so far, copied to the CPU, with the names that others
    read; without metadata."""
    layers, names = _adapted(family), family.module_names()
    spelt = original_layer_names(family.name, names)
    return LoraFile(
        {
            spelt.get(name, name): KINDS[layers[place].learns_as].read(layers[place])
            for name, place in names.items()
            if place in layers
        }
    )


def _adapted(family: Family) -> dict[Place, Any]:
    places = family.module_names().values()
    layers = {(part, path): family.parts[part].get_submodule(path) for part, path in places}
    return {place: layer for place, layer in layers.items() if isinstance(layer, AdapterLayer)}


@dataclass(frozen=True)
class Trainable:
    """How much of a family learns."""

    trained: int
    total: int  # the UNet's and text encoders' own parameters
    layers: int
    note: str = ""

    def __str__(self) -> str:
        share = 100 * self.trained / self.total
        return (
            f"{self.trained:,} parameters in {self.layers} layers learn: "
            f"{share:.2f} % beside {self.total:,} that stay{self.note}"
        )


BY_OUTPUT = "; a DoRA by output, which ComfyUI, Forge, A1111 and InvokeAI misread"


def trainable_report(family: Family) -> Trainable:
    """Parameters of the attached adapters, and of what they stand beside."""
    layers = _adapted(family).values()
    fresh = {id(p): p for layer in layers for p in layer.parameters()}
    for layer in layers:
        for parameter in layer.base_layer.parameters():
            del fresh[id(parameter)]
    every = [p for model in family.parts.values() for p in model.parameters()]
    trained = sum(p.numel() for p in every if p.requires_grad)
    total = sum(p.numel() for p in every if id(p) not in fresh)
    norms = [m for layer in layers for m in getattr(layer, "lora_magnitude_vector", {}).values()]
    note = BY_OUTPUT if any(its.axis == 0 for its in norms) else ""
    return Trainable(trained, total, len(layers), note)
