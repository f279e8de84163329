"""The table of adapter types that can be trained: one module and one row each, on peft's layers.

Their tensors have peft's names in training; `export` gives those of files (`adapter_types` of
`sdlora.lora.format`). To add a type, write a module with an `AdapterType`, name it here, and give
it a row in `sdlora.settings.adapter_choices`.
"""

from __future__ import annotations

from typing import Any

from sdlora.adapters.types.dora import DORA
from sdlora.adapters.types.loha import LOHA
from sdlora.adapters.types.lokr import LOKR
from sdlora.adapters.types.lora import LORA
from sdlora.adapters.types.oft import OFT
from sdlora.adapters.types.pissa import PISSA
from sdlora.adapters.types.rslora import RSLORA
from sdlora.adapters.types.trainable_type import ADAPTER, AdapterSpec, AdapterType

__all__ = ["ADAPTER", "TRAINABLE_TYPES", "AdapterSpec", "AdapterType"]

_ROWS: tuple[AdapterType[Any], ...] = (LORA, DORA, RSLORA, PISSA, LOHA, LOKR, OFT)
TRAINABLE_TYPES: dict[str, AdapterType[Any]] = {row.name: row for row in _ROWS}
