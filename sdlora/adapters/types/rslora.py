"""rsLoRA, arXiv:2312.03732: a LoRA whose scale is alpha / sqrt(r)."""

from __future__ import annotations

from functools import partial

from sdlora.adapters.types import lora
from sdlora.adapters.types.trainable_type import AdapterType, smaller_side

RSLORA = AdapterType(
    name="rslora",
    build=partial(lora.build_peft, use_rslora=True),
    export=lora.export,
    max_rank=smaller_side,
    initialize=lora.initialize,
    limit_norm=lora.limit_norm,
    up_matrix=lora.up_matrix,
    alpha_of_asked_rank=True,
)
