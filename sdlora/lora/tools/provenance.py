"""What a file made from other files says of itself: its sources, its words, its picture; no torch.

What no longer holds is dropped, what holds is kept, and what is private goes on request. The keys
are those of `metadata`: kohya's `ss_*` and Stability's `modelspec.*` 1.0.1.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdlora import __version__
from sdlora.architectures import BASES
from sdlora.data.image_files import BROKEN
from sdlora.data.images import load_rgb
from sdlora.errors import DataError
from sdlora.lora.library.file_info import trigger_words
from sdlora.text_files import json_value

Metadata = Mapping[str, str]
THUMBNAIL = 256  # pixels of the longer side

# True of one set of tensors only: the writer hashes anew, and alphas stand beside their layers
STALE = (
    *("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256"),
    *("lora_adapter_metadata", "lora_meta"),
)
# True of what is made from several files, where all of them say so
_OF_THE_BASE = (
    *("ss_base_model_version", "ss_v2", "ss_sd_model_hash", "ss_clip_skip"),
    *("modelspec.sai_model_spec", "modelspec.architecture", "modelspec.implementation"),
    *("modelspec.resolution", "modelspec.prediction_type", "modelspec.encoder_layer"),
)
# All that stays when private data goes: what the LoRA is and how it is used, and plain numbers of
# its training. What is not here can hold a path, a caption or a name.
STAYS = frozenset(
    (
        *_OF_THE_BASE,
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
class Source:
    """A file that another is made from."""

    name: str
    weight: float
    metadata: Metadata


def without_private(metadata: Metadata) -> dict[str, str]:
    """Only what STAYS; of the network's arguments only those that are numbers."""
    kept = {key: value for key, value in metadata.items() if key in STAYS}
    if "ss_network_args" in kept:
        kept["ss_network_args"] = json.dumps(_numbers(kept["ss_network_args"]))
    return kept


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


def named(metadata: Metadata, name: str) -> dict[str, str]:
    """The metadata of a file called `name`, which is its title and the alias it is found by."""
    return {**metadata, "modelspec.title": name, "ss_output_name": name}


def with_trigger_words(metadata: Metadata, words: Iterable[str]) -> dict[str, str]:
    """The words that call it, in place of all that were said before."""
    others = {key: value for key, value in metadata.items() if key != "trained_words"}
    return {**others, "modelspec.trigger_phrase": ", ".join(words)}


def with_thumbnail(metadata: Metadata, picture: Path) -> dict[str, str]:
    """A picture as `modelspec.thumbnail`: a JPEG of at most 256 pixels a side as a data URL.

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


def rewritten(metadata: Metadata, what: str) -> dict[str, str]:
    """Of the same LoRA with other tensors: what holds of it, and what was done to it."""
    kept = {key: value for key, value in metadata.items() if key not in STALE}
    before = kept.get("ss_training_comment", "")
    done = f"{what} with sdlora {__version__}"
    return {**kept, "ss_training_comment": f"{before}; {done}" if before else done}


def merged(sources: Sequence[Source], base: str, how: str) -> dict[str, str]:
    """Of a file made from several for one base: what all say of it, their words, their weights."""
    first, *rest = (source.metadata for source in sources)
    alike = {
        key: first[key]
        for key in _OF_THE_BASE
        if key in first and all(its.get(key) == first[key] for its in rest)
    }
    sum_ = " + ".join(f"{source.weight:g} × {source.name}" for source in sources)
    words = dict.fromkeys(word for source in sources for word in trigger_words(source.metadata))
    said = {
        **of_base(base),
        **alike,
        "modelspec.merged_from": ", ".join(source.name for source in sources),
        "modelspec.description": f"{sum_} ({how})",
    }
    called = with_trigger_words(said, words) if words else said
    return rewritten(called, f"merged from {sum_} ({how})")


def of_base(base: str) -> dict[str, str]:
    """What a LoRA for `base` says of it; nothing when the base is not known."""
    if base not in BASES:
        return {}
    row = BASES[base]
    return {
        "ss_base_model_version": row.version,
        "ss_v2": str(base == "sd2"),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{row.architecture}/lora",
        "modelspec.implementation": row.implementation,
    }


def of_ranks(ranks: Iterable[int]) -> dict[str, str]:
    """Of a plain LoRA whose layers have these ranks, and alphas alike; kohya calls several
    "Dynamic"."""
    found = sorted(set(ranks))
    rank = str(found[0]) if len(found) == 1 else "Dynamic"
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
        "ss_network_args": "{}",
    }
