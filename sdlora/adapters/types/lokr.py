"""LoKr, arXiv:2212.10650, by peft's layers; dropout is of outputs."""

from __future__ import annotations

from peft import LoKrConfig
from peft.tuners import lokr
from torch import nn

from sdlora.adapters.types import lycoris
from sdlora.adapters.types.lycoris import LycorisLayer
from sdlora.adapters.types.trainable_type import ADAPTER, AdapterSpec, AdapterType, BaseLayer
from sdlora.lora.format.layer import Adapter


def build(base: BaseLayer, spec: AdapterSpec) -> LycorisLayer:
    """Return peft's layer, zero in the half that LyCORIS has zero, so that learning rates fit."""
    layer_class = lokr.Linear if isinstance(base, nn.Linear) else lokr.Conv2d
    config = LoKrConfig(
        rank_dropout=spec.dropout, decompose_factor=spec.lokr_factor, init_weights="lycoris"
    )
    layer: LycorisLayer = layer_class(base, ADAPTER, config, r=spec.rank, alpha=spec.alpha)
    return layer


def export(layer: LycorisLayer) -> Adapter:
    """Return the tensors; of two whole halves the scale is in the first, for there is no rank."""
    adapter = lycoris.export(layer, "LoKr")
    tensors = dict(adapter.tensors)
    if not {"lokr_w1", "lokr_w2"} <= tensors.keys():
        return adapter
    del tensors["alpha"]
    tensors["lokr_w1"] *= layer.scaling[ADAPTER]
    return Adapter("LoKr", tensors)


LOKR = AdapterType(name="lokr", build=build, export=export, limit_norm=lycoris.limit_norm)
