"""Conversion of kohya_ss' own JSON, presets and saved configurations, to sd-scripts' keys.

After `train_model` in kohya_gui/lora_gui.py, which leaves out empty values, False and zeros, so
that sd-scripts' defaults count for them.
"""

from __future__ import annotations

from typing import Any

from sdlora.kohya.values import number, word_list

RENAMED = {
    "max_resolution": "resolution",
    "optimizer": "optimizer_type",
    "lora_network_weights": "network_weights",
    "additional_parameters": "additional_parameters",
}
# The tab's network types: sd-scripts' module, and LyCORIS' algorithm
TYPES: dict[str, tuple[str, str]] = {
    "Standard": ("networks.lora", ""),
    "Kohya LoCon": ("networks.lora", ""),
    "LoRA-FA": ("networks.lora_fa", ""),
    "Kohya DyLoRA": ("networks.dylora", ""),
    "Kohya LoHa": ("networks.loha", ""),
    "Kohya LoKr": ("networks.lokr", ""),
    "LoCon": ("lycoris.kohya", "locon"),
    "LyCORIS/LoCon": ("lycoris.kohya", "locon"),
    "LyCORIS/LoHa": ("lycoris.kohya", "loha"),
    "LyCORIS/LoKr": ("lycoris.kohya", "lokr"),
    "LyCORIS/Diag-OFT": ("lycoris.kohya", "diag-oft"),
    "LyCORIS/BOFT": ("lycoris.kohya", "boft"),
    "LyCORIS/DyLoRA": ("lycoris.kohya", "dylora"),
    "LyCORIS/GLoRA": ("lycoris.kohya", "glora"),
    "LyCORIS/iA3": ("lycoris.kohya", "ia3"),
    "LyCORIS/Native Fine-Tuning": ("lycoris.kohya", "full"),
}
# Fields of the tab that become network arguments under the same name
_ARGUMENTS = (
    *("conv_dim", "conv_alpha", "factor", "rank_dropout", "module_dropout", "dora_wd"),
    *("decompose_both", "use_tucker", "use_scalar", "rank_dropout_scale", "constrain"),
    *("train_norm", "train_on_input", "bypass_mode", "down_lr_weight", "mid_lr_weight"),
    *("up_lr_weight", "block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas"),
    *("block_lr_zero_threshold", "loraplus_lr_ratio", "loraplus_unet_lr_ratio"),
    *("loraplus_text_encoder_lr_ratio", "rescaled", "unit", "use_cp"),
)
# Fields that are about the tab itself, or about how it starts a process
IGNORED = frozenset(
    (
        *("LoRA_type", "LyCORIS_preset", "lr_warmup", "epoch", "num_cpu_threads_per_process"),
        *("no_token_padding", "sdxl", "sdxl_cache_text_encoder_outputs", "sdxl_no_half_vae"),
        *("noise_offset_type", "stop_text_encoder_training_pct", "stop_text_encoder_training"),
        *("model_list", "folder_tab", "conv_dims", "conv_alphas", "gpu_ids", "multi_gpu"),
        *("num_machines", "num_processes", "main_process_port", "extra_accelerate_launch_args"),
        *("use_wandb", "gradient_checkpointing_tab", *_ARGUMENTS),
    )
)
_EMPTY = ("", False, None, 0, "0")


def is_preset(tables: dict[str, Any]) -> bool:
    """True for the GUI's own JSON: its names, which sd-scripts does not have."""
    return bool({"LoRA_type", "max_resolution", "lr_warmup", "optimizer"} & tables.keys())


def to_sd_scripts(preset: dict[str, Any]) -> dict[str, Any]:
    """Return the keys for sd-scripts that the GUI makes of its fields."""
    flat = {
        RENAMED.get(key, key): value
        for key, value in preset.items()
        if key not in IGNORED and not _is_empty(value)
    }
    flat |= _length(preset) | _network(preset) | _warmup(preset)
    multires = preset.get("noise_offset_type") == "Multires"
    for key in ("multires_noise_iterations", "noise_offset"):
        if multires == (key == "noise_offset"):
            flat.pop(key, None)
    flat |= _trained_parts(preset)
    return flat


def _is_empty(value: Any) -> bool:
    return isinstance(value, (str, bool, int, float)) and value in _EMPTY or value is None


def _amount(preset: dict[str, Any], key: str) -> float:
    try:
        return number(preset.get(key) or 0)
    except (ValueError, TypeError):
        return 0.0


def _length(preset: dict[str, Any]) -> dict[str, Any]:
    """Return the number of steps if given, else the epochs of either field."""
    if _amount(preset, "max_train_steps") or _amount(preset, "max_train_epochs"):
        return {}
    epochs = int(_amount(preset, "epoch"))
    return {"max_train_epochs": epochs} if epochs else {}


def _warmup(preset: dict[str, Any]) -> dict[str, Any]:
    """Return the number of steps if given, else a percentage of all."""
    if _amount(preset, "lr_warmup_steps"):
        return {}
    share = _amount(preset, "lr_warmup") / 100
    return {"lr_warmup_steps": share} if share else {}


def _trained_parts(preset: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of trained parts: one with learning rate 0 is not trained, unless both are
    0; then both use the common rate."""
    unet, text = _amount(preset, "unet_lr"), _amount(preset, "text_encoder_lr")
    return {
        "network_train_unet_only": text == 0 and unet != 0,
        "network_train_text_encoder_only": text != 0 and unet == 0,
    }


def _network(preset: dict[str, Any]) -> dict[str, Any]:
    kind = str(preset.get("LoRA_type") or "Standard")
    module, algorithm = TYPES.get(kind, (kind, ""))
    given = {name: preset.get(name) for name in _ARGUMENTS}
    if kind in ("Standard", "LoRA-FA"):
        given |= {"conv_dim": None, "conv_alpha": None}
    arguments = [f"{name}={value}" for name, value in given.items() if not _is_empty(value)]
    if algorithm:
        arguments += [f"algo={algorithm}", f"preset={preset.get('LyCORIS_preset') or 'full'}"]
    own = preset.get("network_args") or []
    try:
        return {"network_module": module, "network_args": [*arguments, *word_list(own)]}
    except (ValueError, TypeError):
        return {"network_module": module, "network_args": arguments, "network_args of its own": own}
