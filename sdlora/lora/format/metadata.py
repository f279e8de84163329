"""Training metadata of a LoRA file: kohya's `ss_*`, Stability's `modelspec.*` 1.0.1; no torch.

Other programs read the base model, the trigger word and the tags from it
(kohya-ss/sd-scripts docs; https://github.com/Stability-AI/ModelSpec). All values are text. No value
holds a path or a user's name.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from sdlora import __version__
from sdlora.architectures import FAMILIES
from sdlora.settings.train import TrainSettings


@dataclass(frozen=True)
class TrainingFacts:
    """Facts of a finished training besides its settings."""

    base: str  # a name in FAMILIES
    prediction: str  # epsilon or v_prediction
    resolution: int  # pixels a side
    images: int
    steps: int  # taken, which may be fewer than asked for
    trigger_word: str = ""
    tag_frequency: Mapping[str, int] = field(default_factory=dict)
    started_at: float = 0.0  # seconds since the epoch
    finished_at: float = 0.0


def count_tags(captions: Iterable[str]) -> dict[str, int]:
    """Return tag -> number of captions with it, the most frequent first; commas separate tags."""
    counts = Counter(
        tag for caption in captions for tag in {part.strip() for part in caption.split(",")} if tag
    )
    return dict(sorted(counts.items(), key=lambda row: (-row[1], row[0])))


def training_metadata(settings: TrainSettings, facts: TrainingFacts) -> dict[str, str]:
    """Return all metadata of a finished training; the same arguments give the same text."""
    return {**_kohya_entries(settings, facts), **_modelspec_entries(settings, facts)}


def _kohya_entries(settings: TrainSettings, facts: TrainingFacts) -> dict[str, str]:
    entries = {
        **_network_entries(settings),
        "ss_base_model_version": FAMILIES[facts.base].version,
        "ss_v2": facts.base == "sd2",
        "ss_output_name": settings.name,
        "ss_sd_model_name": settings.model.replace("\\", "/").rpartition("/")[2],
        "ss_resolution": f"({facts.resolution}, {facts.resolution})",
        "ss_num_train_images": facts.images,
        "ss_tag_frequency": {settings.name: dict(facts.tag_frequency)},
        "ss_steps": facts.steps,
        "ss_max_train_steps": settings.steps,
        "ss_batch_size_per_device": settings.batch_size,
        "ss_gradient_accumulation_steps": settings.gradient_accumulation,
        "ss_gradient_checkpointing": settings.gradient_checkpointing,
        "ss_learning_rate": settings.learning_rate,
        "ss_unet_lr": settings.learning_rate * settings.train_unet,
        "ss_text_encoder_lr": settings.text_encoder_learning_rate * settings.train_text_encoder,
        "ss_lr_scheduler": settings.schedule,
        "ss_lr_warmup_steps": settings.warmup_steps,
        "ss_optimizer": settings.optimizer,
        "ss_max_grad_norm": settings.max_grad_norm,
        **_loss_entries(settings),
        "ss_clip_skip": settings.clip_skip if settings.clip_skip > 1 else None,
        "ss_caption_dropout_rate": settings.caption_dropout,
        "ss_cache_latents": True,
        "ss_mixed_precision": settings.precision,
        "ss_seed": settings.seed,
        "ss_training_started_at": facts.started_at,
        "ss_training_finished_at": facts.finished_at,
        "ss_training_comment": f"trained with sdlora {__version__}",
    }
    return {key: _value_text(value) for key, value in entries.items()}


def _network_entries(settings: TrainSettings) -> dict[str, object]:
    """Entries of the adapter, with the names of sd-scripts and LyCORIS."""
    arguments: dict[str, object] = {}
    choice = settings.adapter_choice
    if choice.lycoris_algorithm:
        arguments |= {"algo": choice.lycoris_algorithm, "dora_wd": choice.has_dora_axis}
    if choice.has_dora_axis:
        arguments |= {"wd_on_output": settings.dora_axis == "output"}
    if "conv" in settings.targets:
        rank = settings.of_group("rank", "conv")
        arguments |= {"conv_dim": rank, "conv_alpha": settings.scale("conv") * rank}
    return {
        "ss_network_module": "lycoris.kohya" if choice.lycoris_algorithm else "networks.lora",
        "ss_network_dim": choice.rank_factor * settings.rank,
        "ss_network_alpha": choice.rank_factor * settings.alpha,
        "ss_network_args": {
            name: str(value) for name, value in {**arguments, "dropout": settings.dropout}.items()
        },
        "ss_scale_weight_norms": settings.max_norm or None,
    }


def _loss_entries(settings: TrainSettings) -> dict[str, object]:
    is_min_snr = settings.loss_weighting == "min_snr"
    return {
        "ss_min_snr_gamma": settings.min_snr_gamma if is_min_snr else None,
        "ss_debiased_estimation": settings.loss_weighting == "debiased",
        "ss_zero_terminal_snr": settings.zero_terminal_snr,
        "ss_noise_offset": settings.noise_offset or None,
        "ss_multires_noise_iterations": settings.multires_noise or None,
        "ss_multires_noise_discount": settings.multires_discount,
        "ss_ip_noise_gamma": settings.input_perturbation or None,
        "ss_loss_type": settings.loss,
        "ss_huber_schedule": settings.huber_schedule,
        "ss_huber_c": settings.huber_threshold,
    }


def _value_text(value: object) -> str:
    # Tables are JSON; scalars are written as Python's str(), as kohya does: "True", "16"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)


def _modelspec_entries(settings: TrainSettings, facts: TrainingFacts) -> dict[str, str]:
    base = FAMILIES[facts.base]
    entries = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{base.architecture}/lora",
        "implementation": base.implementation,
        "title": settings.name,
        "resolution": f"{facts.resolution}x{facts.resolution}",
        "date": datetime.fromtimestamp(facts.finished_at, UTC).strftime("%Y-%m-%dT%H:%M:%S"),
        "prediction_type": facts.prediction.removesuffix("_prediction"),
        "trigger_phrase": facts.trigger_word,
    }
    return {f"modelspec.{key}": value for key, value in entries.items() if value}
