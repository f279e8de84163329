"""Settings as kohya's sd-scripts write them, in TOML: read, with what is not known named; written.

Names and meanings after kohya-ss/sd-scripts, `train_network.py --help` and docs/train_network.md.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdlora.errors import SettingsError
from sdlora.settings import TrainSettings


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Row:
    """One of kohya's keys, and ours: how a value is read and written."""

    ours: str
    read: Callable[[Any], Any] = _same
    write: Callable[[Any], Any] = _same


def _named(table: Mapping[str, str]) -> dict[str, Callable[[Any], Any]]:
    """Reading and writing of a name that both call differently; others stay as they are."""
    back = {ours: theirs for theirs, ours in table.items()}
    read = {theirs.lower(): ours for theirs, ours in table.items()}
    return {
        "read": lambda value: read.get(str(value).lower(), str(value).lower()),
        "write": lambda value: back.get(value, value),
    }


def _side(value: Any) -> int:
    """'512,512' or 512."""
    return int(str(value).split(",")[0].strip("() "))


OPTIMIZERS = {
    "adamw": "adamw", "adamw8bit": "adamw8bit", "adafactor": "adafactor", "prodigy": "prodigy",
    "lion": "lion", "adamwschedulefree": "schedule_free",
    "radamschedulefree": "schedule_free_radam",
    "pytorch_optimizer.CAME": "came", "pytorch_optimizer.AdEMAMix": "ademamix",
}  # fmt: skip
SCHEDULES = {"cosine_with_restarts": "cosine_restarts", "constant_with_warmup": "constant"}
PRECISIONS = {"no": "fp32"}

ROWS: dict[str, Row] = {
    "pretrained_model_name_or_path": Row("model"),
    "train_data_dir": Row("data"),
    "output_name": Row("name"),
    "max_train_steps": Row("steps"),
    "train_batch_size": Row("batch_size"),
    "gradient_accumulation_steps": Row("gradient_accumulation"),
    "unet_lr": Row("learning_rate"),
    "text_encoder_lr": Row("text_encoder_learning_rate"),
    "network_dim": Row("rank"),
    "network_alpha": Row("alpha"),
    "network_dropout": Row("dropout"),
    "resolution": Row("resolution", _side),
    "caption_dropout_rate": Row("caption_dropout"),
    "shuffle_caption": Row("shuffle_tags"),
    "keep_tokens": Row("keep_tags"),
    "caption_tag_dropout_rate": Row("tag_dropout"),
    "flip_aug": Row("flip"),
    "optimizer_type": Row("optimizer", **_named(OPTIMIZERS)),
    "lr_scheduler": Row("schedule", **_named(SCHEDULES)),
    "lr_scheduler_num_cycles": Row("schedule_cycles"),
    "lr_scheduler_power": Row("schedule_power"),
    "lr_warmup_steps": Row("warmup_steps"),
    "max_grad_norm": Row("max_grad_norm"),
    "scale_weight_norms": Row("max_norm"),
    "min_snr_gamma": Row("min_snr_gamma"),
    "debiased_estimation_loss": Row(
        "loss_weighting",
        lambda value: "debiased" if value else "min_snr",
        lambda value: value == "debiased",
    ),
    "zero_terminal_snr": Row("zero_terminal_snr"),
    "noise_offset": Row("noise_offset"),
    "multires_noise_iterations": Row("multires_noise"),
    "multires_noise_discount": Row("multires_discount"),
    "ip_noise_gamma": Row("input_perturbation"),
    "min_timestep": Row("min_timestep"),
    "max_timestep": Row("max_timestep"),
    "loss_type": Row("loss"),
    "huber_c": Row("huber_threshold"),
    "huber_schedule": Row("huber_schedule"),
    "seed": Row("seed"),
    "sample_every_n_steps": Row("sample_every"),
    "save_every_n_steps": Row("save_every"),
    "validation_split": Row("validation_share"),
    "validate_every_n_steps": Row("validate_every"),
    "mixed_precision": Row("precision", **_named(PRECISIONS)),
    "gradient_checkpointing": Row("gradient_checkpointing"),
}
# What they mean here needs more than one value, or is always so
_TAKEN = {"learning_rate", "network_train_unet_only", "network_args", "network_module"}
ALWAYS = {
    "cache_latents": "pictures are always encoded once",
    "cache_text_encoder_outputs": "captions are always encoded once",
    "enable_bucket": "pictures are always sorted by their shape",
    "bucket_no_upscale": "pictures are not scaled up unless asked for",
    "sdpa": "attention is always the fastest that torch has",
    "xformers": "attention is always the fastest that torch has",
    "save_model_as": "files are always safetensors",
    "output_dir": "LoRAs are kept in the workspace",
    "logging_dir": "runs are kept in the workspace",
    "persistent_data_loader_workers": "pictures are in memory",
    "max_data_loader_n_workers": "pictures are in memory",
}


def read(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Our settings in a TOML file of kohya's, and what in it is not used. SettingsError: it cannot
    be read."""
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read as TOML: {error}") from None
    flat = {k: v for table in said.values() if isinstance(table, dict) for k, v in table.items()}
    flat |= {key: value for key, value in said.items() if not isinstance(value, dict)}
    values: dict[str, Any] = {}
    problems = []
    if "learning_rate" in flat:
        values["learning_rate"] = flat["learning_rate"]
    for key, value in flat.items():
        try:
            if row := ROWS.get(key):
                values[row.ours] = row.read(value)
            elif key not in _TAKEN and key not in ALWAYS:
                problems.append(f"{path.name}: {key} = {value!r} is not known here and not used")
        except ValueError:
            problems.append(f"{path.name}: {key} = {value!r} cannot be read and is not used")
    values["train_text_encoder"] = not flat.get("network_train_unet_only", False)
    problems += _read_network(flat, values, path.name)
    return values, problems


def _read_network(flat: Mapping[str, Any], values: dict[str, Any], file: str) -> list[str]:
    """What network_module and network_args say of the adapter."""
    problems = []
    module = flat.get("network_module", "networks.lora")
    if module != "networks.lora":
        problems.append(f"{file}: network_module = {module!r} is not known here; it is a LoRA")
    for argument in flat.get("network_args") or ():
        key, _, value = str(argument).partition("=")
        if key.strip() == "conv_dim" and value.strip().isdigit():
            values["conv_rank"] = int(value)
            values["targets"] = ["attention", "feed_forward", "conv"]
        elif key.strip() != "conv_alpha":
            problems.append(f"{file}: network_args {argument!r} is not known here and not used")
    # kohya's LoRA stands on attention and feed-forward layers alike
    values.setdefault("targets", ["attention", "feed_forward"])
    return problems


def write(settings: TrainSettings) -> str:
    """All that kohya's file can say of these settings, as TOML."""
    values = settings.model_dump(mode="json")
    rows = {key: row.write(values[row.ours]) for key, row in ROWS.items()}
    rows["network_module"] = "networks.lora"
    rows["network_train_unet_only"] = not settings.train_text_encoder
    if "conv" in settings.targets:
        alpha = settings.alpha * settings.conv_rank / settings.rank
        rows["network_args"] = [f"conv_dim={settings.conv_rank}", f"conv_alpha={alpha:g}"]
    # of what both know, JSON's text is TOML's
    lines = (f"{k} = {json.dumps(v, ensure_ascii=False)}" for k, v in rows.items() if v is not None)
    return "\n".join(lines) + "\n"
