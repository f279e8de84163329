"""Writer of our settings as a TOML file for kohya's sd-scripts, where it has keys for them."""

from __future__ import annotations

import json
from typing import Any

from sdlora.kohya.keys import KEYS
from sdlora.settings.train import TrainSettings


def write(settings: TrainSettings) -> str:
    """Return these settings as TOML, as far as sd-scripts has keys for them."""
    values = settings.model_dump(mode="json")
    rows = {key: _toml_value(row.names, values[row.ours]) for key, row in KEYS.items()}
    rows |= _combined_keys(settings)
    if settings.epochs:
        del rows["max_train_steps"]
    if settings.loss_weighting != "min_snr":
        rows["min_snr_gamma"] = None
    # of what both know, JSON's text is TOML's
    lines = (f"{k} = {json.dumps(v, ensure_ascii=False)}" for k, v in rows.items() if v is not None)
    return "\n".join(lines) + "\n"


def _toml_value(names: dict[str, str] | None, value: Any) -> Any:
    if names is None:
        return value
    return next((theirs for theirs, ours in names.items() if ours == value), None)


def _combined_keys(settings: TrainSettings) -> dict[str, Any]:
    """Return the keys that combine several settings, or hold a part of one."""
    rows: dict[str, Any] = {
        "learning_rate": settings.learning_rate,
        "unet_lr": settings.learning_rate,
        "text_encoder_lr": settings.text_encoder_learning_rate,
        "network_train_unet_only": not settings.train_text_encoder,
        "network_train_text_encoder_only": not settings.train_unet,
        "network_module": settings.adapter_choice.kohya_module,
        "min_snr_gamma": settings.min_snr_gamma or None,
        "debiased_estimation_loss": settings.loss_weighting == "debiased",
        "bucket_no_upscale": not settings.upscale,
        "enable_bucket": True,
        "optimizer_args": [f"weight_decay={settings.weight_decay:g}"],
        "reg_data_dir": next(iter(settings.regularisation), None),
    }
    if settings.warmup_steps and settings.schedule == "constant":
        rows["lr_scheduler"] = "constant_with_warmup"
    if "conv" in settings.targets:
        rank = settings.of_group("rank", "conv")
        alpha = settings.scale("conv") * rank
        rows["network_args"] = [f"conv_dim={rank}", f"conv_alpha={alpha:g}"]
    return rows
