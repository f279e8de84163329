"""Adapters that are trained: attached to the layers of an open family, and exported as a LoRA.

`types` has a module for each adapter type; attaching and detaching leaves the base weights alone.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from sdlora.adapters.types import TRAINABLE_TYPES, AdapterSpec
from sdlora.device import generator_for
from sdlora.errors import DeviceError
from sdlora.lora.format.file import LoraFile
from sdlora.lora.format.name_map import original_layer_names
from sdlora.messages import Setting
from sdlora.models.base import ModelFamily
from sdlora.settings.train import TrainSettings

LayerPath = tuple[str, str]  # part of the family, path of a module in it


class AdaptedLayer(Protocol):
    """A module that an adapter type has built around a layer of the family."""

    base_layer: nn.Module
    adapter_type: str  # key of TRAINABLE_TYPES

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters of the base layer and of the adapter."""
        ...


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that are trained at one learning rate."""

    part: str
    group: str  # of the family's TARGETS, or text_encoder
    rate: float  # at its peak
    parameters: list[nn.Parameter]


def attach(family: ModelFamily, settings: TrainSettings) -> list[ParamGroup]:
    """Put fresh adapters on the layers of `settings.targets`; return what is to be trained.

    Nothing changes before the first step: a factor is zero (of LoRA B, arXiv:2106.09685, sec. 4.1),
    or what PiSSA begins with is taken off again. float32 whatever the base; the same numbers for
    the same seed on every device, PiSSA's apart, which come from the base's weights.
    """
    adapter_type, groups = TRAINABLE_TYPES[settings.adapter], _layer_groups(family, settings)
    cuda = family.device.type == "cuda"
    with torch.random.fork_rng(devices=[family.device] if cuda else []):
        torch.manual_seed(generator_for(settings.seed, "adapter").initial_seed())
        for (part, path), group in groups.items():
            base = family.components[part].get_submodule(path)
            family.fetch_weight(part, path)
            layer = adapter_type.build(base, _spec(settings, group, base.weight))
            layer.train(base.training)
            layer.adapter_type = adapter_type.name
            for parameter in layer.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
            family.components[part].set_submodule(path, layer)
    if adapter_type.initialize:
        rng = generator_for(settings.seed, "adapter")
        for place, layer in _adapted_layers(family).items():
            family.fetch_weight(*place)
            adapter_type.initialize(layer, rng)
    return list(_param_groups(family, settings, groups))


def _layer_groups(family: ModelFamily, settings: TrainSettings) -> dict[LayerPath, str]:
    """Every layer that is trained and its group, in the order of the family's layers."""
    unet_targets = settings.targets if settings.train_unet else ()
    targets = family.lora_targets(unet_targets, settings.train_text_encoder)
    groups = {
        (part, path): group
        for part, by_group in targets.items()
        for group, paths in by_group.items()
        for path in paths
    }
    return {place: groups[place] for place in family.module_names().values() if place in groups}


def _spec(settings: TrainSettings, group: str, weight: Tensor) -> AdapterSpec:
    adapter_type = TRAINABLE_TYPES[settings.adapter]
    asked_rank = settings.of_group("rank", group)
    rank = min(asked_rank, adapter_type.max_rank(weight))
    return AdapterSpec(
        rank=rank,
        alpha=settings.scale(group) * (asked_rank if adapter_type.alpha_of_asked_rank else rank),
        dropout=settings.of_group("dropout", group),
        lokr_factor=settings.lokr_factor or -1,
        dora_axis=settings.dora_axis,
    )


def _param_groups(
    family: ModelFamily, settings: TrainSettings, groups: Mapping[LayerPath, str]
) -> Iterator[ParamGroup]:
    """By part and group; with LoRA+ (arXiv:2402.12354) the B matrices apart."""
    layers = _adapted_layers(family)
    up_matrix = TRAINABLE_TYPES[settings.adapter].up_matrix
    for part, group in dict.fromkeys((part, group) for (part, _), group in groups.items()):
        in_group = [layers[path] for path in groups if (path[0], groups[path]) == (part, group)]
        every = [p for layer in in_group for p in layer.parameters() if p.requires_grad]
        rate = settings.of_group("learning_rate", group)
        if settings.lora_plus_ratio == 1 or up_matrix is None:
            yield ParamGroup(part, group, rate, every)
            continue
        upper = {id(up_matrix(layer)) for layer in in_group}
        yield ParamGroup(part, group, rate, [p for p in every if id(p) not in upper])
        faster = [p for p in every if id(p) in upper]
        yield ParamGroup(part, group, rate * settings.lora_plus_ratio, faster)


def limit_norms(family: ModelFamily, settings: TrainSettings) -> None:
    """Make no layer's change larger than `settings.max_norm`, if that is set; after each step."""
    limit_norm = TRAINABLE_TYPES[settings.adapter].limit_norm
    if settings.max_norm and limit_norm:
        for layer in _adapted_layers(family).values():
            limit_norm(layer, settings.max_norm)


def why_uncompiled(device: torch.device) -> str:
    """Return why blocks are not compiled for a device; '' where they are.

    On a processor a step spends its time in convolutions and matrix products, which the compiler
    calls as they are: a step of SD 1.5's shape at 128 px took 3.5 s of one core instead of 3.1.
    """
    return "" if device.type != "cpu" else "left off: on a processor it makes steps slower"


def compile_blocks(family: ModelFamily, backend: str = "inductor") -> None:
    """Compile the denoiser's repeated blocks, adapters included, each kind of them once.

    As in docs.pytorch.org, regional compilation. DeviceError: a package that it needs is missing.
    """
    if family.device.type == "cuda" and not importlib.util.find_spec("triton"):
        raise DeviceError(
            "{setting} needs the package triton: install it with `python -m pip install triton` "
            "(triton-windows on Windows), or leave it off",
            setting=Setting("compile_blocks"),
        )
    family.compile_blocks(backend)


def detach(family: ModelFamily) -> None:
    """Remove the training adapters; the base weights are as they were, and nothing compiled."""
    family.discard_compiled_blocks()
    for (part, path), layer in _adapted_layers(family).items():
        family.components[part].set_submodule(path, layer.base_layer)


def extract_lora(family: ModelFamily) -> LoraFile:
    """Return what the attached adapters have learnt so far, copied to the CPU.

    Under the layer names that kohya writes; without metadata.
    """
    layers, names = _adapted_layers(family), family.module_names()
    spelt = original_layer_names(family.name, names)
    return LoraFile(
        {
            spelt.get(name, name): TRAINABLE_TYPES[layers[path].adapter_type].export(layers[path])
            for name, path in names.items()
            if path in layers
        }
    )


def _adapted_layers(family: ModelFamily) -> dict[LayerPath, AdaptedLayer]:
    paths = family.module_names().values()
    layers = {(part, path): family.components[part].get_submodule(path) for part, path in paths}
    return {
        path: cast(AdaptedLayer, layer)
        for path, layer in layers.items()
        if hasattr(layer, "adapter_type")
    }


@dataclass(frozen=True)
class Trainable:
    """Counts of the parameters of a family that are trained, and of all."""

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


def trainable_report(family: ModelFamily) -> Trainable:
    """Count the parameters of the attached adapters, and those of the family itself."""
    layers = _adapted_layers(family).values()
    fresh = {id(p): p for layer in layers for p in layer.parameters()}
    for layer in layers:
        for parameter in layer.base_layer.parameters():
            del fresh[id(parameter)]
    every = [p for model in family.components.values() for p in model.parameters()]
    trained = sum(p.numel() for p in every if p.requires_grad)
    total = sum(p.numel() for p in every if id(p) not in fresh)
    notes = (TRAINABLE_TYPES[layer.adapter_type].note(layer) for layer in layers)
    return Trainable(trained, total, len(layers), next(filter(None, notes), ""))
