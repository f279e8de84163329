"""Keys that a LoRA file is written with, kohya's or PEFT's, and PEFT's metadata with its alphas.

PEFT's keys have no alpha: diffusers keeps ranks and alphas in the file's metadata, as arguments of
`peft.LoraConfig` by model (diffusers, loaders/lora_base.py, `_pack_dict_with_prefix`).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sdlora.errors import LoraFileError
from sdlora.lora.format.keys import ROLES, dotted
from sdlora.lora.format.layer import Adapter
from sdlora.messages import PerSurface

ADAPTER_METADATA = "lora_adapter_metadata"  # diffusers' name of what `peft_metadata` gives
# The way from every type to the one that every program reads
AS_LORA = PerSurface(
    "lora convert --to lora makes it a LoRA of nearly the same change",
    "the command `lora convert` makes it a LoRA of nearly the same change",
)
Layers = Mapping[str, Adapter]

_KOHYA: dict[str, str] = {role: suffix for suffix, role in reversed(ROLES.items())}
_PEFT_MODELS = {
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
}
# The first code's blocks, which PEFT's files do not name; a transformer's own, in diffusers
_FIRST_CODE = ("input_", "middle_", "output_", "joint_", "double_", "single_blocks_")
_TRANSFORMER = ("lora_unet_transformer_blocks_", "lora_unet_single_transformer_blocks_")


def is_transformer(layers: Layers) -> bool:
    """Return whether the denoiser's layers have the names of a transformer in diffusers."""
    return any(name.startswith(_TRANSFORMER) for name in layers)


def kohya_tensors(layers: Layers) -> dict[str, Tensor]:
    """Key -> tensor, of layers of any type; a transformer in diffusers' names as OneTrainer's."""
    prefix = "lora_transformer_" if is_transformer(layers) else "lora_unet_"
    tensors: dict[str, Tensor] = {}
    for name, adapter in layers.items():
        spelt = prefix + name.removeprefix("lora_unet_") if name.startswith("lora_unet_") else name
        by_role = adapter.type.to_kohya(adapter.tensors, adapter.shape, adapter.rank)
        tensors |= {spelt + _KOHYA[role]: tensor for role, tensor in by_role.items()}
    return tensors


def peft_tensors(layers: Layers) -> dict[str, Tensor]:
    """Key -> tensor, of layers that PEFT can hold; their alphas are in `peft_metadata`.

    LoraFileError when PEFT has no way to write one of them.
    """
    return {
        f"{model}.{path}{suffix}": tensor
        for (model, path), adapter in _peft_layers(layers).items()
        for suffix, tensor in (_as_peft(adapter) or {}).items()
    }


def _as_peft(adapter: Adapter) -> Mapping[str, Tensor] | None:
    row = adapter.type
    return row.to_peft(adapter.tensors, adapter.shape) if row.to_peft else None


def _peft_layers(layers: Layers) -> dict[tuple[str, str], Adapter]:
    """(model, path in it) -> adapter. LoraFileError when PEFT's format cannot hold one."""
    denoiser = "transformer" if is_transformer(layers) else "unet"
    by_path: dict[tuple[str, str], Adapter] = {}
    for name, adapter in layers.items():
        start = name[: name.index("_", len("lora_")) + 1]
        flat = name.removeprefix(start)
        if _as_peft(adapter) is None:
            raise LoraFileError(
                "layer {layer!r:.82} is a {kind} layer that PEFT's format cannot hold; it holds "
                "LoRA, and DoRA by output. {advice}",
                layer=name, kind=adapter.title, advice=AS_LORA,
            )  # fmt: skip
        if flat.startswith(_FIRST_CODE):
            raise LoraFileError(
                "layer {layer!r} has the name of the base model's first code; PEFT's format has "
                "diffusers' names: convert the file to them",
                layer=name[:80],
            )
        by_path[_PEFT_MODELS.get(start, denoiser), dotted(flat)] = adapter
    return by_path


def peft_metadata(layers: Layers) -> dict[str, str]:
    """The metadata that holds ranks and alphas; empty when no layer has an alpha."""
    models: dict[str, dict[str, Adapter]] = {}
    for (model, path), adapter in _peft_layers(layers).items():
        models.setdefault(model, {})[path] = adapter
    for model, adapters in models.items():
        if len({adapter.kind for adapter in adapters.values()}) > 1:
            raise LoraFileError(
                "the {model} has LoRA and DoRA layers; PEFT's format holds one of the two",
                model=model,
            )
    if not any("alpha" in adapter.tensors for adapter in layers.values()):
        return {}
    arguments = {
        f"{model}.{key}": value
        for model, adapters in models.items()
        for key, value in _peft_config(adapters, model).items()
    }
    return {ADAPTER_METADATA: json.dumps(arguments, indent=2, sort_keys=True)}


def _peft_config(adapters: Mapping[str, Adapter], model: str) -> dict[str, object]:
    # a path stands for every path that ends with it, unless ^ ties it to the start; newer text
    # encoders have lost their text_model, so theirs are left untied
    tied = "" if model in _PEFT_MODELS.values() else "^"
    by_path = {path.removeprefix("text_model."): adapter for path, adapter in adapters.items()}
    ranks = {path: adapter.rank for path, adapter in by_path.items()}
    alphas = {path: float(a.tensors.get("alpha", a.rank)) for path, a in by_path.items()}
    common_rank, common_alpha = _most_common(ranks), _most_common(alphas)
    return {
        "r": common_rank,
        "lora_alpha": common_alpha,
        "rank_pattern": {tied + path: r for path, r in ranks.items() if r != common_rank},
        "alpha_pattern": {tied + path: a for path, a in alphas.items() if a != common_alpha},
        "target_modules": sorted(by_path),
        "use_dora": any(adapter.needs_weight for adapter in adapters.values()),
    }


def _most_common(values: Mapping[str, float]) -> float:
    return Counter(values.values()).most_common(1)[0][0]


def peft_alphas(metadata: Mapping[str, str], ranks: Mapping[str, int]) -> dict[str, float]:
    """Key of a down matrix -> alpha, for a scale alpha / r, as PEFT's metadata has it.

    `ranks` are by those keys. Metadata that cannot be read counts as none.
    """
    try:
        config = json.loads(metadata.get(ADAPTER_METADATA, "{}"))
        alphas = {key: _alpha(config, key, rank) for key, rank in ranks.items()} if config else {}
    except (AttributeError, TypeError, ValueError, OverflowError, RecursionError):
        return {}
    return {key: alpha for key, alpha in alphas.items() if alpha is not None and _is_number(alpha)}


def _is_number(alpha: float) -> bool:
    return abs(alpha) <= torch.finfo(torch.float32).max  # and not nan


def _alpha(config: Mapping[str, Any], key: str, rank: int) -> float | None:
    model, _, rest = key.removeprefix("base_model.model.").partition(".")
    steps = rest.partition(".lora_")[0].split(".")
    patterns = config.get(f"{model}.alpha_pattern") or {}
    ends = (".".join(steps[i:]) for i in range(len(steps)))
    spelt = [f"^{'.'.join(steps)}", *ends]
    exact = (patterns[end] for end in spelt if end in patterns)
    alpha = next(exact, config.get(f"{model}.lora_alpha"))
    if alpha is None:
        return None
    # arXiv:2312.03732: the scale is alpha / sqrt(r)
    return float(alpha) * (math.sqrt(rank) if config.get(f"{model}.use_rslora") else 1.0)
