"""LoRA weights on an open family: blended into its weights to generate, injected to train.

`blend` is the front: the active LoRAs. `merged_weights` merges what can be merged and backs the
weights up, `forward_hooks` runs what cannot; `matching` assigns a file's layers to modules,
`embeddings` adds textual inversions that files bring along. `inject` attaches the adapters that are
trained, `types` has a module for each adapter type.
"""

from sdlora.adapters.blend import Blend
from sdlora.adapters.inject import (
    ParamGroup,
    attach,
    compile_blocks,
    detach,
    extract_lora,
    limit_norms,
    trainable_report,
    why_uncompiled,
)
from sdlora.adapters.matching import LoraMatch, match_layers

__all__ = [
    "Blend",
    "LoraMatch",
    "ParamGroup",
    "attach",
    "compile_blocks",
    "detach",
    "extract_lora",
    "limit_norms",
    "match_layers",
    "trainable_report",
    "why_uncompiled",
]
