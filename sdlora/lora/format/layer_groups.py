"""Groups of layers in reports, recognised by the layer's name; no torch.

Names are canonical (`lora_unet_...`, `lora_te1_...`), their paths those of diffusers, Stability or
Black Forest Labs, so the patterns match words that the three share.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

# Group, named as in settings.layer_groups -> pattern in its layers' names; the first that matches
# counts
GROUPS = {
    "text_encoder": r"^lora_te\d?_",
    "feed_forward": r"_ff_|(?<!embedder)_mlp_|_proj_mlp$",
    "attention": r"attn|attentions_\d+_proj_|(_\d+_1|middle_block_1)_proj_(in|out)$|_linear[12]$"
    r"|single_transformer_blocks_\d+_proj_out$",
    "conv": r"_conv|_(in_layers_2|out_layers_3|skip_connection|op|input_blocks_0_0|out_2)$",
    "other": "",
}


def group_of(name: str) -> str:
    """Return the group of a layer, a key of GROUPS, by its canonical name."""
    return next(group for group, pattern in GROUPS.items() if re.search(pattern, name))


def part_of(name: str) -> str:
    """Return 'unet' (also of a transformer), or the text encoder: 'te', 'te1' ..."""
    return name.split("_", 2)[1]


def in_groups(names: Iterable[str]) -> dict[str, list[str]]:
    """Return group -> its layers, in the order of GROUPS; groups without a layer are left out."""
    grouped: dict[str, list[str]] = {group: [] for group in GROUPS}
    for name in names:
        grouped[group_of(name)].append(name)
    return {group: layers for group, layers in grouped.items() if layers}


@dataclass
class Losses:
    """Error of each layer of a result: Frobenius norms of the exact delta and of the difference."""

    layers: dict[str, tuple[float, float]] = field(default_factory=dict)

    def add(self, name: str, exact: float, missed: float) -> None:
        """Add a layer: norms of the exact delta and of its difference from the result.

        Several calls for one layer, one per parameter, are combined.
        """
        before = self.layers.get(name, (0.0, 0.0))
        self.layers[name] = math.hypot(before[0], exact), math.hypot(before[1], missed)

    def by_group(self) -> dict[str, float]:
        """Return group -> relative error of its layers together; 'all' is last."""
        groups = {**in_groups(self.layers), "all": list(self.layers)}
        return {group: self._error(names) for group, names in groups.items() if names}

    def _error(self, names: Iterable[str]) -> float:
        rows = [self.layers[name] for name in names]
        exact, missed = (math.hypot(*norms) for norms in zip(*rows, strict=True))
        return missed / exact if exact else 0.0
