"""Difference of a finetuned model from its base, as a LoRA.

The difference of every linear layer and convolution, cut by its singular values, as
kohya-ss/sd-scripts, networks/extract_lora_from_models.py, does it. What has changed elsewhere, in
norms, biases and embeddings, no plain LoRA can hold; those parameters are named.
"""

from __future__ import annotations

import torch

from sdlora.errors import LoraFileError, ModelError
from sdlora.lora.format.file import LoraFile
from sdlora.lora.format.layer import Adapter
from sdlora.lora.format.layer_groups import Losses
from sdlora.lora.tools.deltas import no_weights
from sdlora.lora.tools.merge import MergeMethod, merge_layer
from sdlora.models.base import ModelFamily


@torch.no_grad()
def extract_from_models(
    base: ModelFamily, tuned: ModelFamily, recipe: MergeMethod, device: torch.device | None = None
) -> tuple[LoraFile, Losses, list[str]]:
    """`tuned` - `base`, layer by layer, so that one difference at a time is on the `device`.

    The LoRA without metadata, what it misses of its layers, and the names of the parameters that
    differ and that it cannot have. Layers that are alike are left out. ModelError when the two are
    not of one architecture, LoraFileError when nothing differs.
    """
    _check_alike(base, tuned)
    layers: dict[str, Adapter] = {}
    losses = Losses()
    for name, (part, path) in base.module_names().items():
        before, after = (
            model.components[part].get_submodule(path).weight for model in (base, tuned)
        )
        difference = after.to(device, torch.float32) - before.to(device, torch.float32)
        if difference.any():
            terms = [(Adapter("full", {"diff": difference}), 1.0)]
            lora, missed = merge_layer(name, terms, recipe, no_weights)
            layers[name] = Adapter(lora.kind, {r: t.cpu() for r, t in lora.tensors.items()})
            losses.add(name, *missed)
    if not layers:
        raise LoraFileError("the two models have the same layers: there is nothing to extract")
    return LoraFile(layers), losses, _other_differences(base, tuned)


def _check_alike(base: ModelFamily, tuned: ModelFamily) -> None:
    shapes = [
        {f"{part}.{name}": p.shape for part, model in family.components.items() for name, p in
         model.named_parameters()}
        for family in (base, tuned)
    ]  # fmt: skip
    if shapes[0] != shapes[1]:
        odd = next(iter(dict(shapes[0].items() ^ shapes[1].items())))
        raise ModelError(
            "the two models are not of one architecture: {layer!r} differs in shape", layer=odd
        )


def _other_differences(base: ModelFamily, tuned: ModelFamily) -> list[str]:
    """The parameters that differ and are not weights of linear layers or convolutions."""
    held = {f"{part}.{path}.weight" for part, path in base.module_names().values()}
    return [
        f"{part}.{name}"
        for part, model in base.components.items()
        for (name, parameter), other in zip(
            model.named_parameters(), tuned.components[part].parameters(), strict=True
        )
        if f"{part}.{name}" not in held and not torch.equal(parameter.float(), other.float())
    ]
