"""Layers of peft whose tensors have LyCORIS' names (arXiv:2309.14859): shared by LoHa and LoKr."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from sdlora.adapters.types.trainable_type import ADAPTER, copied, scale_product
from sdlora.lora.format.layer import Adapter


class LycorisLayer(Protocol):
    """peft's layer of such a type, as far as it is used here."""

    base_layer: nn.Module
    adapter_layer_names: tuple[str, ...]
    scaling: dict[str, float]
    alpha: dict[str, float]

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """Return the change of the base's weight."""
        ...


def tensors_of(layer: LycorisLayer) -> dict[str, Tensor]:
    """Return the trained tensors by peft's names, which are the roles of LyCORIS' files."""
    named = ((name, getattr(layer, name)) for name in layer.adapter_layer_names)
    return {name: by_adapter[ADAPTER] for name, by_adapter in named if ADAPTER in by_adapter}


def export(layer: LycorisLayer, kind: str) -> Adapter:
    """Return copies of the tensors, and the alpha that they were trained with."""
    tensors = {name: copied(tensor) for name, tensor in tensors_of(layer).items()}
    return Adapter(kind, {**tensors, "alpha": torch.tensor(float(layer.alpha[ADAPTER]))})


@torch.no_grad()
def limit_norm(layer: LycorisLayer, limit: float) -> None:
    """Scale all tensors so that the norm of the change is at most `limit`."""
    norm = layer.get_delta_weight(ADAPTER).norm()
    scale_product([*tensors_of(layer).values()], norm, limit)
