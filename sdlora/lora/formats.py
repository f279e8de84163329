"""How LoRA files name their tensors: kohya, Stability's block names, diffusers and PEFT; no torch.

Every key becomes (canonical name, role). A canonical name is kohya's with the block names of
diffusers, without suffix, such as `lora_unet_down_blocks_0_attentions_0_proj_in`; roles are `down`,
`up` and `alpha`. What cannot be read so is refused by the name of its kind.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from sdlora.errors import LoraFileError
from sdlora.lora.bases import Shapes

ROLES = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    "_lora.down.weight": "down",  # diffusers before 0.22: attn1.processor.to_q_lora
    "_lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".alpha": "alpha",
}
PREFIXES = {
    "unet.": "lora_unet_",
    "text_encoder.": "lora_te_",
    "text_encoder_2.": "lora_te2_",
    "base_model.model.unet.": "lora_unet_",
    "base_model.model.text_encoder.": "lora_te_",
    "base_model.model.text_encoder_2.": "lora_te2_",
}
# a part of a key -> the kind of adapter that has it
OTHER_KINDS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "boft_": "BOFT",
    "oft_": "OFT",
    ".a1.weight": "GLoRA",
    ".on_input": "IA3",
    "lora_mid": "CP-decomposed LoCon",
    ".diff.": "full-weight difference",
    ".diff_b.": "full-weight difference",
    ".w_norm": "norm",
    "bundle_emb.": "bundle of LoRA and textual inversion",
}
OTHER_MODELS = {
    "lora_unet_double_blocks_": "FLUX",
    "lora_unet_single_blocks_": "FLUX",
    "lora_unet_joint_blocks_": "Stable Diffusion 3",
    "transformer.": "a transformer model such as FLUX or Stable Diffusion 3",
    "lora_transformer_": "a transformer model such as FLUX or Stable Diffusion 3",
    "diffusion_model.": "a transformer model such as FLUX or Stable Diffusion 3",
}
# inside a block of Stability's UNet -> in diffusers'
_INNER = {
    "in_layers_2": "conv1",
    "out_layers_3": "conv2",
    "emb_layers_1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}
_OUTER = {
    "input_blocks_0_0": "conv_in",
    "out_2": "conv_out",
    "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
}
_BLOCK = re.compile(r"(input|middle|output)_blocks?_(\d+)(?:_(\d+))?_(.+)")
_TEXT = ("lora_te_", "lora_te1_", "lora_te2_")
_TO_OUT = re.compile("to_out$")
_MIDDLE = {"0": "resnets_0", "1": "attentions_0", "2": "resnets_1"}


@dataclass(frozen=True)
class Keys:
    """The tensors of one layer's pair in a file; `alpha` is empty when the file leaves it out."""

    down: str
    up: str
    alpha: str = ""


def pairs_of(shapes: Shapes) -> dict[str, Keys]:
    """Canonical name -> the keys of its pair, from the tensors' names and shapes.

    LoraFileError when a key is none of ours, a half is missing, or the halves do not fit together:
    down (r,in[,k,k]), up (out,r[,1,1]), alpha one number, 1 <= r <= min(in k k, out).
    """
    found: dict[str, dict[str, str]] = {}
    for key, (name, role) in canonical(shapes).items():
        if found.setdefault(name, {}).setdefault(role, key) != key:
            raise LoraFileError(f"layer {name[:80]!r} stands twice, as {found[name][role]!r} too")
    for name, roles in found.items():
        if missing := {"down", "up"} - set(roles):
            raise LoraFileError(f"layer {name[:80]!r} lacks its {missing.pop()} matrix")
    pairs = {name: Keys(**roles) for name, roles in found.items()}
    for name, keys in pairs.items():
        alpha = shapes[keys.alpha] if keys.alpha else ()
        if not _fit(shapes[keys.down], shapes[keys.up]) or math.prod(alpha) != 1:
            raise LoraFileError(
                f"layer {name[:80]!r} has matrices that do not fit together: "
                f"down {list(shapes[keys.down])}, up {list(shapes[keys.up])}"
            )
    return pairs


def _fit(down: tuple[int, ...], up: tuple[int, ...]) -> bool:
    if len(down) != len(up) or len(down) not in (2, 4) or down[0] != up[1]:
        return False
    return up[2:] in ((), (1, 1)) and down[0] <= min(math.prod(down[1:]), up[0])


def canonical(keys: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Key -> (canonical name, role). LoraFileError names the kind when a key is none of ours."""
    keys = list(keys)
    known = {key: split for key in keys if (split := _split(key))}
    foreign = any(key.startswith(start) for key in keys for start in OTHER_MODELS)
    if foreign or len(known) < len(keys):
        raise LoraFileError(_refusal([key for key in keys if key not in known] or keys))
    if any(name.startswith("lora_te2_") for name, _ in known.values()):
        # of two text encoders the first is called te1
        return {key: (_te1(name), role) for key, (name, role) in known.items()}
    return known


def _te1(name: str) -> str:
    return re.sub("^lora_te_", "lora_te1_", name)


def _split(key: str) -> tuple[str, str] | None:
    for suffix, role in ROLES.items():
        if key.endswith(suffix) and (name := _name(key.removesuffix(suffix))):
            return name, role
    return None


def _name(stem: str) -> str:
    """The canonical name of a key without its role; empty when it is none of ours."""
    if stem.startswith("lora_unet_"):
        return f"lora_unet_{from_stability(stem.removeprefix('lora_unet_'))}"
    if stem.startswith(_TEXT):
        return stem
    for prefix, ours in PREFIXES.items():
        if stem.startswith(prefix):
            rest = stem.removeprefix(prefix).replace(".processor.", ".").replace(".", "_")
            return text_name(ours, rest) if ours in _TEXT else ours + _TO_OUT.sub("to_out_0", rest)
    return ""


def text_name(prefix: str, path: str) -> str:
    """Canonical name of a text encoder's layer: kohya writes `text_model`, which new ones lack."""
    has_it = path.startswith(("text_model_", "text_projection"))
    return prefix + ("" if has_it else "text_model_") + path


def from_stability(name: str) -> str:
    """A layer of the UNet, underscores for dots, from Stability's block names to diffusers'.

    With two layers per block, as in SD 1 and XL, input block 1 + 3b + j is layer j of down block b
    and output block 3b + j is layer j of up block b; the third of a block changes the resolution.
    """
    match = _BLOCK.fullmatch(name)
    if name in _OUTER or not match:
        return _OUTER.get(name, name)
    side, number, layer, rest = match.groups()
    if side == "middle":
        return f"mid_block_{_MIDDLE.get(number, number)}_{_INNER.get(rest, rest)}"
    block, index = divmod(int(number) - (side == "input"), 3)
    ours = "down" if side == "input" else "up"
    if rest in ("op", "conv"):
        return f"{ours}_blocks_{block}_{ours}samplers_0_conv"
    kind = "resnets" if layer == "0" else "attentions"
    return f"{ours}_blocks_{block}_{kind}_{index}_{_INNER.get(rest, rest)}"


def _refusal(keys: list[str]) -> str:
    example = f"(it has {keys[0][:80]!r})"
    for start, model in OTHER_MODELS.items():
        if any(key.startswith(start) for key in keys):
            return f"this LoRA is for {model}; Stable Diffusion 1, 2 and XL are known {example}"
    for part, kind in OTHER_KINDS.items():
        if any(part in f"{key}." for key in keys):
            return f"this is a {kind} file; only LoRA and LoCon can be used {example}"
    return f"this is not a LoRA for Stable Diffusion: {len(keys)} keys are unknown {example}"
