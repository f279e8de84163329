"""Metadata of LoRA files made from others: sources, trigger words, thumbnail; no torch.

Entries that no longer hold are dropped, the others kept, and private ones removed on request. The
keys are those of `format/metadata.py`: kohya's `ss_*` and Stability's `modelspec.*` 1.0.1.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdlora import __version__
from sdlora.architectures import FAMILIES
from sdlora.data.image_files import BROKEN
from sdlora.data.images import load_rgb
from sdlora.errors import DataError
from sdlora.lora.library.file_info import trigger_words
from sdlora.text_files import json_value

Metadata = Mapping[str, str]
THUMBNAIL = 256  # pixels of the longer side

# Valid for one set of tensors only: the writer hashes anew, and stores alphas with their layers
STALE_KEYS = (
    *("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256"),
    *("lora_adapter_metadata", "lora_meta"),
)
# Kept in a merge when all of its files have the same value
_BASE_KEYS = (
    *("ss_base_model_version", "ss_v2", "ss_sd_model_hash", "ss_clip_skip"),
    *("modelspec.sai_model_spec", "modelspec.architecture", "modelspec.implementation"),
    *("modelspec.resolution", "modelspec.prediction_type", "modelspec.encoder_layer"),
)
# Kept when private data is removed: the LoRA's type and use, and plain numbers of its training.
# Any other key can hold a path, a caption or a name.
PUBLIC_KEYS = frozenset(
    (
        *_BASE_KEYS,
        *("modelspec.title", "modelspec.trigger_phrase", "modelspec.usage_hint"),
        *("modelspec.thumbnail", "modelspec.timestep_range", "modelspec.license"),
        *("trained_words", "format", "lora_adapter_metadata"),
        *("sshs_model_hash", "sshs_legacy_hash"),
        *("ss_output_name", "ss_network_module", "ss_network_dim", "ss_network_alpha"),
        *("ss_network_args", "ss_network_dropout", "ss_steps", "ss_max_train_steps", "ss_epoch"),
        *("ss_num_epochs", "ss_num_train_images", "ss_num_reg_images", "ss_num_batches_per_epoch"),
        *("ss_batch_size_per_device", "ss_total_batch_size", "ss_gradient_accumulation_steps"),
        *("ss_gradient_checkpointing", "ss_learning_rate", "ss_unet_lr", "ss_text_encoder_lr"),
        *("ss_lr_scheduler", "ss_lr_warmup_steps", "ss_optimizer", "ss_max_grad_norm"),
        *("ss_min_snr_gamma", "ss_noise_offset", "ss_multires_noise_discount", "ss_ip_noise_gamma"),
        *("ss_caption_dropout_rate", "ss_keep_tokens", "ss_shuffle_caption", "ss_flip_aug"),
        *("ss_resolution", "ss_enable_bucket", "ss_min_bucket_reso", "ss_max_bucket_reso"),
        *("ss_cache_latents", "ss_mixed_precision", "ss_full_fp16", "ss_lowram", "ss_seed"),
        *("ss_prior_loss_weight", "ss_max_token_length", "ss_zero_terminal_snr"),
    )
)


@dataclass(frozen=True)
class MergeSource:
    """One LoRA file of a merge, with its weight in the sum."""

    name: str
    weight: float
    metadata: Metadata


def without_private(metadata: Metadata) -> dict[str, str]:
    """Return the entries in PUBLIC_KEYS; of `ss_network_args` only the numbers and booleans."""
    public = {key: value for key, value in metadata.items() if key in PUBLIC_KEYS}
    if "ss_network_args" in public:
        public["ss_network_args"] = json.dumps(_numbers(public["ss_network_args"]))
    return public


def _numbers(text: str) -> dict[str, str]:
    try:
        table = json_value(text)
    except ValueError:
        return {}
    plain = str.maketrans("", "", ".-+eE")
    pairs = table.items() if isinstance(table, dict) else ()
    return {
        key: str(value)
        for key, value in pairs
        if str(value).translate(plain).isdigit() or str(value) in ("True", "False")
    }


def with_title(metadata: Metadata, name: str) -> dict[str, str]:
    """Return `metadata` with `name` as the title and as the alias that prompts can use."""
    return {**metadata, "modelspec.title": name, "ss_output_name": name}


def with_trigger_words(metadata: Metadata, phrases: Iterable[str]) -> dict[str, str]:
    """Return `metadata` with these trigger words in place of all present ones."""
    others = {key: value for key, value in metadata.items() if key != "trained_words"}
    return {**others, "modelspec.trigger_phrase": ", ".join(phrases)}


def with_thumbnail(metadata: Metadata, picture: Path) -> dict[str, str]:
    """Return `metadata` with `modelspec.thumbnail`: a JPEG, at most 256 pixels a side, as data URL.

    DataError when `picture` cannot be read.
    """
    try:
        small = load_rgb(picture)
    except BROKEN as error:
        raise DataError(
            "the picture {file} cannot be read: {why}", file=picture, why=error
        ) from None
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    data = io.BytesIO()
    small.save(data, "JPEG", quality=85, optimize=True)
    url = "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")
    return {**metadata, "modelspec.thumbnail": url}


def rewritten_metadata(metadata: Metadata, operation: str) -> dict[str, str]:
    """Return the metadata of a LoRA rewritten by `operation`: still valid entries and a comment."""
    valid = {key: value for key, value in metadata.items() if key not in STALE_KEYS}
    before = valid.get("ss_training_comment", "")
    done = f"{operation} with sdlora {__version__}"
    return {**valid, "ss_training_comment": f"{before}; {done}" if before else done}


def merged_metadata(sources: Sequence[MergeSource], base: str, how: str) -> dict[str, str]:
    """Return the metadata of a merge: entries all sources share, trigger words, weights."""
    first, *rest = (source.metadata for source in sources)
    alike = {
        key: first[key]
        for key in _BASE_KEYS
        if key in first and all(metadata.get(key) == first[key] for metadata in rest)
    }
    sum_ = " + ".join(f"{source.weight:g} × {source.name}" for source in sources)
    all_trigger_words = dict.fromkeys(
        word for source in sources for word in trigger_words(source.metadata)
    )
    shared = {
        **base_metadata(base),
        **alike,
        "modelspec.merged_from": ", ".join(source.name for source in sources),
        "modelspec.description": f"{sum_} ({how})",
    }
    called = with_trigger_words(shared, all_trigger_words) if all_trigger_words else shared
    return rewritten_metadata(called, f"merged from {sum_} ({how})")


def base_metadata(base: str) -> dict[str, str]:
    """Return the entries that name the base model; empty when `base` is not in FAMILIES."""
    if base not in FAMILIES:
        return {}
    row = FAMILIES[base]
    return {
        "ss_base_model_version": row.version,
        "ss_v2": str(base == "sd2"),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{row.architecture}/lora",
        "modelspec.implementation": row.implementation,
    }


def rank_metadata(ranks: Iterable[int]) -> dict[str, str]:
    """Return the network's entries of a plain LoRA whose layers have these ranks and equal alphas;
    for several ranks kohya writes "Dynamic"."""
    distinct = sorted(set(ranks))
    rank = str(distinct[0]) if len(distinct) == 1 else "Dynamic"
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
        "ss_network_args": "{}",
    }
