"""Tensor names in LoRA files: formats of kohya, diffusers, PEFT and ComfyUI; no torch.

Every key becomes (layer name, role). A layer name is `lora_unet_` (UNet or transformer), or
`lora_te_`, `lora_te1_`, `lora_te2_` or `lora_te3_`, and the layer's path with `_` for `.`. The path
stays as in the file; `name_map` finds the module of the model that it stands for.

Sources: kohya-ss/sd-scripts, networks/lora.py; diffusers, loaders/lora_conversion_utils.py; peft,
utils/save_and_load.py; ComfyUI, comfy/lora.py; LyCORIS, lycoris/wrapper.py.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from sdlora.lora.format.adapter_types import ADAPTER_TYPES
from sdlora.lora.format.errors import refusal

# how a key ends -> role of its tensor in the layer; of several endings of a role kohya writes the
# first
ROLES: dict[str, str] = {
    suffix: role for row in ADAPTER_TYPES.values() for suffix, role in row.key_suffixes.items()
}
# part of a key -> the adapter type that has it and is not supported
_UNSUPPORTED = {
    "lora_embedding_": "a LoRA of an embedding table",
    "lora_B.bias": "a LoRA with biases of its own",
    "oft_R": "PEFT's OFT, which does not say how to turn its numbers into a rotation,",
    "oft_diag": "OFT of LyCORIS before 2.0",
    "boft_R": "PEFT's BOFT",
    "boft_s": "PEFT's BOFT",
    "ia3_l": "PEFT's IA3",
    "vera_lambda": "VeRA",
    "set_weight": "weights that replace a model's",
    "lora_controlnet": "a Control-LoRA",
    "qkv_lora": "a LoRA in XLabs' form",
}
_ONLY_TEXT = re.compile("^lora_te_")
_EMBEDDING = re.compile(r"bundle_emb\.(.+)\.(string_to_param\.\*|clip_l|clip_g)", re.DOTALL)
_EMBEDDING_PARTS = {"string_to_param.*": "", "clip_l": "clip_l", "clip_g": "clip_g"}


@dataclass(frozen=True)
class Grammar:
    """Naming of layers in a file format: a prefix and the path of the module, dotted or flat.

    `prefixes`: prefix in the file -> prefix of the canonical name.
    """

    name: str
    dotted: bool
    prefixes: Mapping[str, str]

    @cached_property
    def _start(self) -> re.Pattern[str]:
        longest_first = sorted(self.prefixes, key=len, reverse=True)
        return re.compile(rf"({'|'.join(map(re.escape, longest_first))})(?=.)")

    def read(self, stem: str) -> str:
        """Return the layer's name for a key without its end; empty for a key of another format."""
        match = self._start.match(stem)
        if match is None or (not self.dotted and "." in stem):
            return ""
        prefix, path = self.prefixes[match[1]], stem[match.end() :]
        return _flat_name(prefix, path) if self.dotted else prefix + path


GRAMMARS = (
    Grammar(
        "kohya",
        dotted=False,
        prefixes={
            "lora_unet_": "lora_unet_",
            "lora_te_": "lora_te_",
            "lora_te1_": "lora_te1_",
            "lora_te2_": "lora_te2_",
            "lora_te3_": "lora_te3_",
            "lora_transformer_": "lora_unet_",  # OneTrainer
            "oft_unet_": "lora_unet_",  # sd-scripts' OFT
            "lycoris_text_model_": "lora_te_text_model_",  # LyCORIS' wrapper of any module
            "lycoris_": "lora_unet_",
        },
    ),
    Grammar(
        "diffusers",
        dotted=True,
        prefixes={
            f"{wrapped}{part}": name
            for part, name in (
                ("unet.", "lora_unet_"),
                ("transformer.", "lora_unet_"),
                ("text_encoder.", "lora_te_"),
                ("text_encoder_2.", "lora_te2_"),
                ("text_encoder_3.", "lora_te3_"),
            )
            for wrapped in ("", "base_model.model.")
        },
    ),
    Grammar(
        "ComfyUI",
        dotted=True,
        prefixes={
            "diffusion_model.": "lora_unet_",
            "base_model.model.diffusion_model.": "lora_unet_",
            "text_encoders.clip_l.transformer.": "lora_te1_",
            "text_encoders.clip_g.transformer.": "lora_te2_",
            "text_encoders.t5xxl.transformer.": "lora_te3_",
        },
    ),
    Grammar(
        "PEFT",  # of one model alone, which the keys do not name
        dotted=True,
        prefixes={
            "base_model.model.text_model.": "lora_te_text_model_",
            "base_model.model.": "lora_unet_",
        },
    ),
)


def canonical(keys: Collection[str]) -> dict[str, tuple[str, str]]:
    """Return key -> (layer name, role) of the known keys.

    LoraFileError when more than half are unknown; it names the adapter type if recognised.
    """
    cut = {key: _split_role(key) for key in keys}
    names = {
        stem: next((name for grammar in GRAMMARS if (name := grammar.read(stem))), "")
        for stem in dict.fromkeys(stem for stem, _ in cut.values())
    }
    if any(name.startswith(("lora_te2_", "lora_te3_")) for name in names.values()):
        # of several text encoders the first is called te1
        names = {stem: _ONLY_TEXT.sub("lora_te1_", name) for stem, name in names.items()}
    if unknown := [key for key, (stem, role) in cut.items() if not role or not names[stem]]:
        if 2 * len(unknown) > len(cut):
            raise _unknown_keys_error(unknown, len(cut))
        unread = set(unknown)
        cut = {key: row for key, row in cut.items() if key not in unread}
    return {key: (names[stem], role) for key, (stem, role) in cut.items()}


def is_known(key: str) -> bool:
    """True if a key is that of a layer's tensor."""
    stem, role = _split_role(key)
    return bool(role) and any(grammar.read(stem) for grammar in GRAMMARS)


def _split_role(key: str) -> tuple[str, str]:
    """Return (key without its end, role); an empty role when no end in ROLES matches."""
    flat, _, end = key.partition(".")
    if role := ROLES.get(f".{end}"):
        return flat, role
    plain = key.replace("_lora.", ".lora.")  # diffusers before 0.22: attn1.processor.to_q_lora
    last = plain.rfind(".")
    second = plain.rfind(".", 0, last)
    third = plain.rfind(".", 0, second)
    for at in (third, second, last):  # the longest end counts
        role = ROLES.get(plain[at:], "weight")
        if role != "weight":  # which every dotted key of a checkpoint ends with
            return plain[:at], role
    return plain, ""


def _unknown_keys_error(keys: list[str], of: int) -> Exception:
    for part, kind in _UNSUPPORTED.items():
        if key := next((key for key in keys if part in key), None):
            return refusal("unknown_kind", kind=kind, key=key)
    return refusal("unknown_keys", count=len(keys), of=of, key=keys[0])


def embeddings_of(keys: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return key -> (name, encoder) of the textual inversions bundled with a LoRA.

    The encoder is "clip_l" or "clip_g", or empty where a model has only one.
    """
    bundled = ((key, _EMBEDDING.fullmatch(key)) for key in keys if key.startswith("bundle_emb."))
    return {key: (m[1], _EMBEDDING_PARTS[m[2]]) for key, m in bundled if m}


def embedding_key(name: str, encoder: str) -> str:
    """Return the key that `embeddings_of` reads as (name, encoder)."""
    return f"bundle_emb.{name}.{encoder or 'string_to_param.*'}"


# kohya writes text_model, which newer encoders do not have; T5's blocks never had it
_WITHOUT_TEXT_MODEL = (
    "text_model_",
    "text_projection",
    "encoder_block_",
    "encoder_final",
    "shared",
)
_OLD_ATTENTION = re.compile("self_attn_to_(q|k|v|out)$")
_OLD_OUT = re.compile("to_out$")


def text_name(prefix: str, path: str) -> str:
    """Return the canonical name of a text encoder's layer, from its path with `_` for `.`."""
    return prefix + ("" if path.startswith(_WITHOUT_TEXT_MODEL) else "text_model_") + path


def _flat_name(prefix: str, path: str) -> str:
    flat = path.replace(".processor.", ".").replace(".", "_")
    if prefix.startswith("lora_te"):
        path = _OLD_ATTENTION.sub(r"self_attn_\1_proj", flat)
        return prefix + path if prefix.endswith("_text_model_") else text_name(prefix, path)
    return prefix + _OLD_OUT.sub("to_out_0", flat)


# The names of modules that have an underscore of their own
_MODULE_NAMES = (
    "conv_in conv_out conv_norm_out conv_shortcut down_blocks mid_block up_blocks "
    "time_embedding add_embedding class_embedding linear_1 linear_2 time_emb_proj group_norm "
    "transformer_blocks single_transformer_blocks proj_in proj_out proj_mlp "
    "to_q to_k to_v to_out to_add_out add_q_proj add_k_proj add_v_proj "
    "norm_q norm_k norm_added_q norm_added_k norm_out norm1_context norm2_context ff_context "
    "pos_embed x_embedder context_embedder time_text_embed "
    "timestep_embedder text_embedder guidance_embedder "
    "text_model text_projection token_embedding position_embedding self_attn "
    "q_proj k_proj v_proj out_proj layer_norm1 layer_norm2 final_layer_norm "
    "layer_norm wi_0 wi_1 embed_tokens relative_attention_bias"
)
_LONGEST_FIRST = "|".join(sorted(_MODULE_NAMES.split(), key=len, reverse=True))
_MODULE_NAME = re.compile(rf"(?:{_LONGEST_FIRST})(?=_|$)|[^_]+")


def dotted(flat: str) -> str:
    """Return the dotted path of a diffusers or transformers module, given with `_` for `.`."""
    return ".".join(_MODULE_NAME.findall(flat))
