"""The keys that a LoRA file is written with, kohya's or PEFT's, and PEFT's way to tell alphas.

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
from sdlora.lora.format.adapter_types import KIND
from sdlora.lora.format.keys import ROLES, dotted
from sdlora.lora.format.layer import Adapter
from sdlora.messages import PerSurface

ADAPTER_METADATA = "lora_adapter_metadata"  # diffusers' name of what `peft_metadata` gives
# What turns every kind into the one that every program reads
AS_LORA = PerSurface(
    "lora convert --to lora makes it a LoRA of nearly the same change",
    "the command `lora convert` makes it a LoRA of nearly the same change",
)
NO_LIMIT = 10_000.0  # of a skew matrix' norm: beyond every rotation but for one by 180 degrees
Layers = Mapping[str, Adapter]

_KOHYA: dict[str, str] = {role: end for end, role in reversed(ROLES.items())}
_PEFT_ROLES = {"down", "up", "alpha", "dora_scale", "magnitude"}
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
    """Whether the denoiser's layers have the names of a transformer in diffusers."""
    return any(name.startswith(_TRANSFORMER) for name in layers)


def kohya_tensors(layers: Layers) -> dict[str, Tensor]:
    """Key -> tensor, of layers of any kind; a transformer in diffusers' names as OneTrainer's."""
    prefix = "lora_transformer_" if is_transformer(layers) else "lora_unet_"
    tensors: dict[str, Tensor] = {}
    for name, adapter in layers.items():
        spelt = prefix + name.removeprefix("lora_unet_") if name.startswith("lora_unet_") else name
        for role, tensor in {**adapter.tensors, **_alpha_of(adapter)}.items():
            if role == "magnitude":
                role, tensor = "dora_scale", _standing(tensor, adapter)
            tensors[spelt + _KOHYA[role]] = tensor
    return tensors


def _alpha_of(adapter: Adapter) -> dict[str, Tensor]:
    """An alpha where it has none and others ask for one, such that it means the same: of a product
    its rank, of a rotation what is no limit. There A1111, SD.Next and sd-scripts read 0 as nothing
    at all, ComfyUI, LyCORIS and we as no limit."""
    alpha = adapter.tensors.get("alpha")
    if adapter.kind in ("OFT", "BOFT"):
        is_limit = alpha is not None and float(alpha) > 0
        return {} if is_limit else {"alpha": torch.tensor(NO_LIMIT)}
    if alpha is not None or "alpha" not in KIND[adapter.kind].may:
        return {}
    return {"alpha": torch.tensor(float(adapter.rank or 1))}


def _standing(magnitude: Tensor, adapter: Adapter) -> Tensor:
    """(out,1[,1,1]), as LyCORIS has what PEFT has as (out,) or, of a convolution, (1,out,1,1)."""
    return magnitude.reshape(-1, *(1 for _ in adapter.shape[1:]))


def peft_tensors(layers: Layers) -> dict[str, Tensor]:
    """Key -> tensor, of LoRA and DoRA layers; their alphas are told by `peft_metadata`.

    LoraFileError when PEFT has no way to write one of them.
    """
    tensors: dict[str, Tensor] = {}
    for (model, path), adapter in _by_place(layers).items():
        tensors[f"{model}.{path}.lora_A.weight"] = adapter.tensors["down"]
        tensors[f"{model}.{path}.lora_B.weight"] = adapter.tensors["up"]
        if adapter.kind == "DoRA":
            tensors[f"{model}.{path}.lora_magnitude_vector"] = _lying(adapter)
    return tensors


def _lying(adapter: Adapter) -> Tensor:
    if "magnitude" in adapter.tensors:
        return adapter.tensors["magnitude"]
    flat = adapter.tensors["dora_scale"].flatten()
    return flat if len(adapter.shape) == 2 else flat[None, :, None, None]


def _by_place(layers: Layers) -> dict[tuple[str, str], Adapter]:
    """(model, path in it) -> adapter, after a check that PEFT can have it there."""
    denoiser = "transformer" if is_transformer(layers) else "unet"
    places: dict[tuple[str, str], Adapter] = {}
    for name, adapter in layers.items():
        start = name[: name.index("_", len("lora_")) + 1]
        flat = name.removeprefix(start)
        scale = adapter.tensors.get("dora_scale")
        by_input = scale is not None and scale.shape[0] != adapter.shape[0]
        if adapter.kind not in ("LoRA", "DoRA") or adapter.tensors.keys() - _PEFT_ROLES or by_input:
            raise LoraFileError(
                "layer {layer!r:.82} is a {kind} layer that PEFT's format cannot hold; it holds "
                "LoRA, and DoRA by output. {advice}",
                layer=name, kind="DoRA by input" if by_input else adapter.kind, advice=AS_LORA,
            )  # fmt: skip
        if flat.startswith(_FIRST_CODE):
            raise LoraFileError(
                "layer {layer!r} has the name of the base model's first code; PEFT's format has "
                "diffusers' names: convert the file to them",
                layer=name[:80],
            )
        places[_PEFT_MODELS.get(start, denoiser), dotted(flat)] = adapter
    return places


def peft_metadata(layers: Layers) -> dict[str, str]:
    """The metadata that tells ranks and alphas; empty when every layer's scale is 1 unsaid."""
    models: dict[str, dict[str, Adapter]] = {}
    for (model, path), adapter in _by_place(layers).items():
        models.setdefault(model, {})[path] = adapter
    for model, adapters in models.items():
        if len({adapter.kind for adapter in adapters.values()}) > 1:
            raise LoraFileError(
                "the {model} has LoRA and DoRA layers; PEFT's format holds one of the two",
                model=model,
            )
    if not any("alpha" in adapter.tensors for adapter in layers.values()):
        return {}
    said = {
        f"{model}.{key}": value
        for model, adapters in models.items()
        for key, value in _config(adapters, model).items()
    }
    return {ADAPTER_METADATA: json.dumps(said, indent=2, sort_keys=True)}


def _config(adapters: Mapping[str, Adapter], model: str) -> dict[str, Any]:
    # a path stands for every path that ends with it, unless ^ ties it to the start; newer text
    # encoders have lost their text_model, so theirs are left untied
    tied = "" if model in _PEFT_MODELS.values() else "^"
    by_path = {path.removeprefix("text_model."): adapter for path, adapter in adapters.items()}
    ranks = {path: it.rank for path, it in by_path.items()}
    alphas = {path: float(it.tensors.get("alpha", it.rank)) for path, it in by_path.items()}
    rank, alpha = _usual(ranks), _usual(alphas)
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {tied + path: its for path, its in ranks.items() if its != rank},
        "alpha_pattern": {tied + path: its for path, its in alphas.items() if its != alpha},
        "target_modules": sorted(by_path),
        "use_dora": any(adapter.kind == "DoRA" for adapter in adapters.values()),
    }


def _usual(values: Mapping[str, float]) -> float:
    return Counter(values.values()).most_common(1)[0][0]


def said_alphas(metadata: Mapping[str, str], ranks: Mapping[str, int]) -> dict[str, float]:
    """What metadata tells in PEFT's way: the key of a down matrix -> alpha, for a scale alpha / r.

    `ranks` are by those keys. What cannot be understood counts as not said.
    """
    try:
        said = json.loads(metadata.get(ADAPTER_METADATA, "{}"))
        found = {key: _alpha(said, key, rank) for key, rank in ranks.items()} if said else {}
    except (AttributeError, TypeError, ValueError, OverflowError, RecursionError):
        return {}
    return {key: alpha for key, alpha in found.items() if alpha is not None and _is_number(alpha)}


def _is_number(alpha: float) -> bool:
    return abs(alpha) <= torch.finfo(torch.float32).max  # and not nan


def _alpha(said: Mapping[str, Any], key: str, rank: int) -> float | None:
    model, _, rest = key.removeprefix("base_model.model.").partition(".")
    steps = rest.partition(".lora_")[0].split(".")
    patterns = said.get(f"{model}.alpha_pattern") or {}
    ends = (".".join(steps[i:]) for i in range(len(steps)))
    spelt = [f"^{'.'.join(steps)}", *ends]
    exact = (patterns[end] for end in spelt if end in patterns)
    alpha = next(exact, said.get(f"{model}.lora_alpha"))
    if alpha is None:
        return None
    # arXiv:2312.03732: the scale is alpha / sqrt(r)
    return float(alpha) * (math.sqrt(rank) if said.get(f"{model}.use_rslora") else 1.0)
