"""LoRA weights on an open family: blended into its weights to generate, beside them to train.

A blend is arithmetic on pristine weights, W = cast(W0.float() + sum of weight · delta), done once
when the blend changes and never by subtracting. So taking a LoRA away gives W0 back bit for bit,
nothing drifts, and a step costs what it costs without LoRAs. W0 is kept for touched layers only.
Training adapters are peft's; attaching and detaching them leaves the base weights alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer, LoraModel
from torch import Tensor, nn

from sdlora.device import free_memory_gib, generator_for
from sdlora.errors import LoraFileError
from sdlora.families.base import Family
from sdlora.lora.bases import BASES
from sdlora.lora.file import LoraFile, LoraPair
from sdlora.settings import TrainSettings

ADAPTER = "sdlora"
SPARE_GIB = 1.0  # left free on the device when pristine weights are put aside there

Place = tuple[str, str]  # part of the family, path in it
Recipe = tuple[tuple[LoraPair, float], ...]
Weighted = tuple[LoraFile, float, float]  # a LoRA, its weight on the UNet, on the text encoders


@dataclass(frozen=True)
class Fit:
    """How a LoRA sits on a family: its layers by place, and the names that have none."""

    places: Mapping[Place, LoraPair]
    unmatched: tuple[str, ...]

    @property
    def layers(self) -> int:
        """Layers that it changes."""
        return len(self.places)


def fit(file: LoraFile, family: Family) -> Fit:
    """Where the layers of `file` belong. LoraFileError, naming both bases, when they do not fit."""
    places: dict[Place, LoraPair] = {}
    unmatched: list[str] = []
    for name, pair in file.pairs.items():
        place = _place(name, family)
        if place is None:
            unmatched.append(name)
        elif _plain(_weight(family, place).shape) != _plain(pair.shape):
            raise LoraFileError(_misfit(file, family))
        else:
            places[place] = pair
    if not places:
        raise LoraFileError(_misfit(file, family))
    return Fit(places, tuple(unmatched))


def _place(name: str, family: Family) -> Place | None:
    # some programs call the only text encoder te1, or the first of two te
    spellings = (name, name.replace("lora_te1_", "lora_te_"), name.replace("lora_te_", "lora_te1_"))
    known = family.module_names()
    return next((known[spelling] for spelling in spellings if spelling in known), None)


def _plain(shape: Sequence[int]) -> tuple[int, ...]:
    """A 1 x 1 convolution is a linear layer; files write it either way."""
    return tuple(shape[:2]) if tuple(shape[2:]) == (1, 1) else tuple(shape)


def _misfit(file: LoraFile, family: Family) -> str:
    theirs = BASES.get(file.base)
    if theirs and theirs.name != family.name:
        return f"it is a LoRA for {theirs.title}; the open model is {family.title}"
    return f"its layers do not fit the open model, {family.title}; it was trained on another one"


def _weight(family: Family, place: Place) -> Tensor:
    part, path = place
    weight: Tensor = family.parts[part].get_submodule(path).weight
    return weight


class Blend:
    """Which LoRAs, at which weights, stand in an open family now."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self._standing: dict[Place, Recipe] = {}
        self._pristine: dict[Place, Tensor] = {}

    @torch.no_grad()
    def apply(self, loras: Iterable[Weighted]) -> list[Fit]:
        """Make exactly these LoRAs stand; what already stands so is not touched.

        The same LoRA twice adds up. LoraFileError when one does not fit, or the sum overflows: the
        family is then as it was, or pristine.
        """
        wanted: dict[Place, Recipe] = {}
        fits: list[Fit] = []
        for file, unet, text_encoder in loras:
            fits.append(fit(file, self.family))
            for place, pair in fits[-1].places.items():
                weight = unet if place[0] == "denoiser" else text_encoder
                if weight:
                    wanted[place] = (*wanted.get(place, ()), (pair, weight))
        self._become(wanted)
        return fits

    def clear(self) -> None:
        """Give the pristine weights back, bit for bit."""
        for place in list(self._standing):
            self._restore(place)

    def _become(self, wanted: Mapping[Place, Recipe]) -> None:
        finished = False
        try:
            for place in [place for place in self._standing if place not in wanted]:
                self._restore(place)
            changed = [p for p, recipe in wanted.items() if self._standing.get(p) != recipe]
            shelf = self._shelf(changed)
            finite = [self._mix(place, wanted[place], shelf) for place in changed]
            if finite and not torch.stack(finite).all():  # asked once, for it waits for the device
                raise LoraFileError("the weights are too high: the sum overflows; lower them")
            finished = True
        finally:
            if not finished:
                self.clear()

    def _mix(self, place: Place, recipe: Recipe, shelf: torch.device) -> Tensor:
        """Compute one layer from its pristine weight; says (0-d bool) whether all is finite."""
        weight = _weight(self.family, place)
        if place not in self._pristine:
            self._pristine[place] = weight.detach().to(shelf, copy=True)
        self._standing[place] = recipe
        total = self._pristine[place].to(weight.device, torch.float32, copy=True)
        for pair, strength in recipe:
            total.add_(pair.delta(weight.device).view_as(total), alpha=strength)
        weight.data.copy_(total)
        return weight.isfinite().all()

    def _restore(self, place: Place) -> None:
        _weight(self.family, place).data.copy_(self._pristine[place])
        del self._standing[place], self._pristine[place]

    def _shelf(self, places: Iterable[Place]) -> torch.device:
        """Where to keep pristine weights: beside the model while it has room, else in RAM."""
        fresh = (_weight(self.family, place) for place in places if place not in self._pristine)
        needed_gib = sum(weight.nbytes for weight in fresh) / 2**30
        device = self.family.device
        roomy = device.type == "cpu" or free_memory_gib(device) > needed_gib + SPARE_GIB
        return device if roomy else torch.device("cpu")


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
            name: LoraPair(_copy(layers[place].lora_A), _copy(layers[place].lora_B), alpha)
            for name, place in family.module_names().items()
            if place in layers
            for alpha in [float(layers[place].lora_alpha[ADAPTER])]
        }
    )


def _copy(halves: nn.ModuleDict) -> Tensor:
    return halves[ADAPTER].weight.detach().cpu().clone()  # type: ignore[union-attr,operator]


def _adapted(family: Family) -> dict[Place, Any]:
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
