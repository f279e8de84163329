"""The kinds of layer that a report speaks of, told by a layer's name in any naming; no torch.

Names are canonical (`lora_unet_...`, `lora_te1_...`), their paths those of diffusers, Stability or
Black Forest Labs, so the patterns look for words that the three share.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

# Group -> what its layers' names have; the first that is found counts.
GROUPS = {
    "text encoder": r"^lora_te\d?_",
    "feed forward": r"_ff_|(?<!embedder)_mlp_|_proj_mlp$",
    "attention": r"attn|attentions_\d+_proj_|(_\d+_1|middle_block_1)_proj_(in|out)$|_linear[12]$"
    r"|single_transformer_blocks_\d+_proj_out$",
    "convolution": r"_conv|_(in_layers_2|out_layers_3|skip_connection|op|input_blocks_0_0|out_2)$",
    "other": "",
}


def group_of(name: str) -> str:
    """The group of a layer by its canonical name, a key of GROUPS."""
    return next(group for group, pattern in GROUPS.items() if re.search(pattern, name))


def part_of(name: str) -> str:
    """'unet', which a transformer is called as well, or the text encoder: 'te', 'te1' ..."""
    return name.split("_", 2)[1]


def in_groups(names: Iterable[str]) -> dict[str, list[str]]:
    """Group -> its layers, in the order of GROUPS; groups without a layer are left out."""
    found: dict[str, list[str]] = {group: [] for group in GROUPS}
    for name in names:
        found[group_of(name)].append(name)
    return {group: layers for group, layers in found.items() if layers}


@dataclass
class Losses:
    """What was wanted of each layer and how far the result is from it, as Frobenius norms."""

    layers: dict[str, tuple[float, float]] = field(default_factory=dict)

    def add(self, name: str, wanted: float, missed: float) -> None:
        """A layer: the norm of the wanted change, and that of its difference from the result.

        What is said of a layer's parameters one after the other is taken together.
        """
        before = self.layers.get(name, (0.0, 0.0))
        self.layers[name] = math.hypot(before[0], wanted), math.hypot(before[1], missed)

    def by_group(self) -> dict[str, float]:
        """Group -> relative error of its layers together; 'all' is last."""
        groups = {**in_groups(self.layers), "all": list(self.layers)}
        return {group: self._error(names) for group, names in groups.items() if names}

    def _error(self, names: Iterable[str]) -> float:
        rows = [self.layers[name] for name in names]
        wanted, missed = (math.hypot(*norms) for norms in zip(*rows, strict=True))
        return missed / wanted if wanted else 0.0
