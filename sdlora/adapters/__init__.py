"""LoRA weights on an open family: blended into its weights to generate, beside them to train.

`blend` is the front: which LoRAs are active. `merged_weights` merges what can be merged and keeps
the weights underneath, `forward_hooks` runs what cannot; `matching` says where a file's layers
belong, `embeddings` adds the words that files bring along. `inject` attaches the adapters that are
trained, `layers` knows their types.
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
)
from sdlora.adapters.matching import LoraMatch, fit

__all__ = [
    "Blend",
    "LoraMatch",
    "ParamGroup",
    "attach",
    "compile_blocks",
    "detach",
    "extract_lora",
    "fit",
    "limit_norms",
    "trainable_report",
]
