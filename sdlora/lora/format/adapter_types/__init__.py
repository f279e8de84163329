"""The table of adapter types that LoRA files hold: one module and one row each; no torch at import.

To add a type, write a module with a `StoredType` and name it here: reading, checking, merging,
converting and writing ask the row. Types that can be trained have a module in
`sdlora.adapters.types` as well.
"""

from __future__ import annotations

from sdlora.lora.format.adapter_types.boft import BOFT
from sdlora.lora.format.adapter_types.dora import DORA
from sdlora.lora.format.adapter_types.full import FULL
from sdlora.lora.format.adapter_types.glora import GLORA
from sdlora.lora.format.adapter_types.ia3 import IA3
from sdlora.lora.format.adapter_types.loha import LOHA
from sdlora.lora.format.adapter_types.lokr import LOKR
from sdlora.lora.format.adapter_types.lora import LORA
from sdlora.lora.format.adapter_types.norm import NORM
from sdlora.lora.format.adapter_types.oft import OFT
from sdlora.lora.format.adapter_types.stored_type import StoredType

__all__ = ["ADAPTER_TYPES", "StoredType"]

# In the order in which a layer's roles are compared with them
_ROWS = (LORA, DORA, LOHA, LOKR, GLORA, IA3, OFT, BOFT, FULL, NORM)
ADAPTER_TYPES: dict[str, StoredType] = {row.name: row for row in _ROWS}
