"""LoRA weights on an open family: blended into its weights to generate, beside them to train.

`blend` is the front: which LoRAs stand. It merges what can be merged and leaves to `lowrank` what
cannot; `places` says where a file's layers belong, `pristine` keeps the weights underneath,
`embeddings` the words that files bring along. `training` attaches the adapters that learn, `layers`
knows their kinds.
"""

from sdlora.adapters.blend import Blend
from sdlora.adapters.places import Fit, fit
from sdlora.adapters.training import (
    Learning,
    attach,
    collect,
    compile_blocks,
    detach,
    limit_norms,
    trainable_report,
)

__all__ = [
    "Blend",
    "Fit",
    "Learning",
    "attach",
    "collect",
    "compile_blocks",
    "detach",
    "fit",
    "limit_norms",
    "trainable_report",
]
