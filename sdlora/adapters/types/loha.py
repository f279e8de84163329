"""LoHa, arXiv:2108.06098, by peft's layers; dropout is of outputs."""

from __future__ import annotations

from functools import partial

from peft import LoHaConfig
from peft.tuners import loha
from torch import nn

from sdlora.adapters.types import lycoris
from sdlora.adapters.types.lycoris import LycorisLayer
from sdlora.adapters.types.trainable_type import (
    ADAPTER,
    AdapterSpec,
    AdapterType,
    BaseLayer,
    smaller_side,
)


def build(base: BaseLayer, spec: AdapterSpec) -> LycorisLayer:
    """Return peft's layer, of which one factor is zero."""
    layer_class = loha.Linear if isinstance(base, nn.Linear) else loha.Conv2d
    config = LoHaConfig(rank_dropout=spec.dropout)
    layer: LycorisLayer = layer_class(base, ADAPTER, config, r=spec.rank, alpha=spec.alpha)
    return layer


LOHA = AdapterType(
    name="loha",
    build=build,
    export=partial(lycoris.export, kind="LoHa"),
    max_rank=smaller_side,
    limit_norm=lycoris.limit_norm,
)
