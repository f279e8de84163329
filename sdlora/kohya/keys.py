"""sd-scripts' keys as a table: our setting, how a value is read, and what leaving it out means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sdlora.kohya.values import flag, name_reader, number, side, steps_or_share, text, whole

OURS = object()  # a key that is left out leaves our own default: it does not change the LoRA

OPTIMIZERS = {
    "AdamW": "adamw", "AdamW8bit": "adamw8bit", "PagedAdamW8bit": "adamw8bit",
    "AdaFactor": "adafactor", "Prodigy": "prodigy", "Lion": "lion", "NAdam": "nadamw",
    "AdamWScheduleFree": "schedule_free", "RAdamScheduleFree": "schedule_free_radam",
    "pytorch_optimizer.CAME": "came", "pytorch_optimizer.AdEMAMix": "ademamix",
}  # fmt: skip
SCHEDULES = {
    "constant": "constant", "constant_with_warmup": "constant", "linear": "linear",
    "cosine": "cosine", "cosine_with_restarts": "cosine_restarts", "polynomial": "polynomial",
    "rex": "rex",
}  # fmt: skip
PRECISIONS = {"no": "fp32", "fp16": "fp16", "bf16": "bf16"}
LOSSES = {name: name for name in ("l1", "l2", "huber", "smooth_l1")}
HUBER_SCHEDULES = {name: name for name in ("constant", "exponential", "snr")}


@dataclass(frozen=True)
class Key:
    """A key of sd-scripts: our setting, the reader of its value, and our value for a file without
    it. `names`: theirs -> ours, where values are names."""

    ours: str
    read: Callable[[Any], Any] = number
    missing: Any = OURS
    names: dict[str, str] | None = None


def named(ours: str, names: dict[str, str], missing: Any = OURS) -> Key:
    """A key whose values are names."""
    return Key(ours, name_reader(names), missing, names)


KEYS: dict[str, Key] = {
    "pretrained_model_name_or_path": Key("model", text),
    "vae": Key("vae", text, ""),
    "train_data_dir": Key("data", text),
    "output_name": Key("name", text),
    "max_train_steps": Key("steps", whole, 1600),
    "max_train_epochs": Key("epochs", whole),
    "train_batch_size": Key("batch_size", whole, 1),
    "gradient_accumulation_steps": Key("gradient_accumulation", whole, 1),
    "network_dim": Key("rank", whole, 4),
    "network_alpha": Key("alpha", number, 1.0),
    "network_dropout": Key("dropout", number, 0.0),
    "resolution": Key("resolution", side),
    "caption_prefix": Key("caption_prefix", text),
    "caption_suffix": Key("caption_suffix", text),
    "caption_dropout_rate": Key("caption_dropout", number, 0.0),
    "shuffle_caption": Key("shuffle_tags", flag, False),
    "keep_tokens": Key("keep_tags", whole, 0),
    "caption_tag_dropout_rate": Key("tag_dropout", number, 0.0),
    "enable_wildcard": Key("caption_wildcards", flag, False),
    "flip_aug": Key("flip", flag, False),
    "prior_loss_weight": Key("regularisation_weight", number, 1.0),
    "clip_skip": Key("clip_skip", whole, 1),
    "optimizer_type": named("optimizer", OPTIMIZERS, "adamw"),
    "lr_scheduler": named("schedule", SCHEDULES, "constant"),
    "lr_scheduler_num_cycles": Key("schedule_cycles", whole, 1),
    "lr_scheduler_power": Key("schedule_power", number, 1.0),
    "lr_warmup_steps": Key("warmup_steps", steps_or_share, 0.0),
    "max_grad_norm": Key("max_grad_norm", number, 1.0),
    "scale_weight_norms": Key("max_norm", number, 0.0),
    "zero_terminal_snr": Key("zero_terminal_snr", flag, False),
    "noise_offset": Key("noise_offset", number, 0.0),
    "multires_noise_iterations": Key("multires_noise", whole, 0),
    "multires_noise_discount": Key("multires_discount", number, 0.3),
    "ip_noise_gamma": Key("input_perturbation", number, 0.0),
    "min_timestep": Key("min_timestep", whole, 0),
    "max_timestep": Key("max_timestep", whole, 1000),
    "loss_type": named("loss", LOSSES, "l2"),
    "huber_c": Key("huber_threshold", number, 0.1),
    "huber_schedule": named("huber_schedule", HUBER_SCHEDULES, "snr"),
    "seed": Key("seed", whole),
    "sample_every_n_steps": Key("sample_every", whole),
    "sample_every_n_epochs": Key("sample_every_epochs", whole),
    "save_every_n_steps": Key("save_every", whole),
    "save_every_n_epochs": Key("save_every_epochs", whole),
    "save_last_n_epochs": Key("keep_checkpoints", whole),
    "validation_split": Key("validation_share", number, 0.0),
    "validate_every_n_steps": Key("validate_every", whole),
    "validate_every_n_epochs": Key("validate_every_epochs", whole),
    "mixed_precision": named("precision", PRECISIONS),
    "gradient_checkpointing": Key("gradient_checkpointing", flag),
}
# Keys that `reader` and its neighbours read together with others
READ_TOGETHER = frozenset(
    (
        *("learning_rate", "unet_lr", "text_encoder_lr", "network_train_unet_only"),
        *("network_train_text_encoder_only", "network_module", "network_args", "min_snr_gamma"),
        *("debiased_estimation_loss", "bucket_no_upscale", "enable_bucket", "optimizer_args"),
        *("use_8bit_adam", "use_lion_optimizer", "reg_data_dir", "dataset_config"),
        *("sample_prompts", "color_aug", "random_crop", "alpha_mask", "masked_loss"),
        "conditioning_data_dir",
    )
)
# Keys that ask for what is always so, or for nothing here, by what there is instead
ALWAYS: dict[str, tuple[str, ...]] = {
    "pictures and captions are always encoded once": (
        *("cache_latents", "cache_latents_to_disk", "cache_text_encoder_outputs"),
        *("cache_text_encoder_outputs_to_disk", "cache_info", "vae_batch_size"),
        *("text_encoder_batch_size", "skip_cache_check"),
    ),
    "attention is always the fastest that torch has": (*("sdpa", "xformers", "mem_eff_attn"),),
    "pictures are in memory, without worker processes": (
        *("max_data_loader_n_workers", "persistent_data_loader_workers", "lowram", "highvram"),
    ),
    "captions of any length are read, in chunks of 75 tokens": ("max_token_length",),
    "what the base model predicts is read from the model": ("v2", "v_parameterization"),
    "VAEs that overflow run in float32": ("no_half_vae",),
    "files are safetensors with all metadata, kept in the workspace": (
        *("save_model_as", "save_precision", "output_dir", "logging_dir", "no_metadata"),
        *("use_safetensors", "output_config", "config_file", "tokenizer_cache_dir"),
    ),
    "every run can be resumed from its checkpoints": (
        *("save_state", "save_state_on_train_end", "save_last_n_epochs_state"),
        *("save_last_n_steps_state", "resume", "initial_epoch", "initial_step"),
        "skip_until_initial_step",
    ),
    "captions are read from .txt and .caption files and from tables alike": (
        *("caption_extension", "caption_extention"),
    ),
    "metrics are shown by the program itself, and nothing is uploaded": (
        *("log_with", "log_prefix", "log_tracker_name", "log_tracker_config", "log_config"),
        *("wandb_run_name", "wandb_api_key", "huggingface_repo_id", "huggingface_repo_type"),
        *("huggingface_path_in_repo", "huggingface_token", "huggingface_repo_visibility"),
        *("save_state_to_huggingface", "resume_from_huggingface", "async_upload"),
        *("training_comment", "metadata_author", "metadata_description", "metadata_license"),
        *("metadata_tags", "metadata_title"),
    ),
    "one process trains on one device": (
        *("ddp_timeout", "ddp_gradient_as_bucket_view", "ddp_static_graph", "dynamo_backend"),
        *("dynamo_mode", "dynamo_use_fullgraph", "dynamo_use_dynamic", "torch_compile"),
    ),
    "sd-scripts does not read it": ("epoch", "noise_offset_type", "stop_text_encoder_training"),
}
_FP8 = (
    "the base model is kept in mixed_precision; base_precision = fp8 holds its large layers in 8 "
    "bits"
)
# Keys whose effect is not here, and what is done instead
INSTEAD: dict[str, str] = {
    "network_weights": "the LoRA begins from nothing",
    "dim_from_weights": "the rank is network_dim's",
    "base_weights": "the base model is used as it is",
    "base_weights_multiplier": "the base model is used as it is",
    "min_bucket_reso": "pictures have sides of at least half the resolution",
    "max_bucket_reso": "pictures have sides of at most twice the resolution",
    "bucket_reso_steps": "sides are multiples of 64, below 512 of 8",
    "resize_interpolation": "pictures are scaled with Lanczos",
    "caption_separator": "commas separate tags",
    "keep_tokens_separator": "keep_tokens counts the tags that stay",
    "secondary_separator": "every comma separates tags",
    "caption_dropout_every_n_epochs": "captions are left out by caption_dropout_rate alone",
    "token_warmup_min": "all tags are read from the first step",
    "token_warmup_step": "all tags are read from the first step",
    "face_crop_aug_range": "faces are not looked for",
    "weighted_captions": "captions are learnt as they stand",
    "lr_scheduler_type": "lr_scheduler is used",
    "lr_scheduler_args": "the scheduler runs without further arguments",
    "lr_scheduler_timescale": "the scheduler runs without it",
    "lr_scheduler_min_lr_ratio": "the rate falls to 0",
    "lr_decay_steps": "the rate falls over all steps after the warm-up",
    "fused_backward_pass": "the optimizer steps after the whole backward pass",
    "noise_offset_random_strength": "the offset's strength is the same in every step",
    "ip_noise_gamma_random_strength": "its strength is the same in every step",
    "adaptive_noise_scale": "the noise offset does not depend on the picture",
    "scale_v_pred_loss_like_noise_pred": "min_snr_gamma weighs the loss",
    "v_pred_like_loss": "it is not added",
    "huber_scale": "it is 1",
    "full_fp16": "weights that learn are float32, beside a base in mixed_precision",
    "full_bf16": "weights that learn are float32, beside a base in mixed_precision",
    "fp8_base": _FP8,
    "fp8_base_unet": _FP8,
    "cpu_offload_checkpointing": "offload keeps activations in main memory",
    "save_last_n_steps": "keep_checkpoints says how many are kept",
    "save_n_epoch_ratio": "checkpoints are kept as save_every says",
    "sample_at_first": "samples begin with the first that is due",
    "sample_sampler": "samples use the program's own sampler",
    "validation_seed": "the validation split follows from the pictures' content",
    "max_validation_steps": "all validation pictures are measured",
    "in_json": "captions are read from files beside the pictures, and from tables in their folder",
    "dataset_repeats": "folders named 10_NAME and 3*FOLDER repeat pictures",
    "debug_dataset": "the command `dataset check` shows all that is learnt",
    "disable_mmap_load_safetensors": "files are mapped into memory",
    "train_inpainting": "pictures are learnt whole",
    "weighting_scheme": "it is for other models than those of sd-scripts' train_network.py",
}
