"""Facts of a diffusers folder, read from its configurations and one header; no torch."""

from __future__ import annotations

import contextlib
from pathlib import Path

from sdlora.architectures import FAMILIES
from sdlora.errors import ModelError
from sdlora.models.checkpoint_facts import CheckpointFacts, number_format
from sdlora.models.checkpoint_header import read_checkpoint_header
from sdlora.models.registry import detect_family
from sdlora.text_files import json_value


def folder_facts(folder: Path) -> CheckpointFacts:
    """Recognise a diffusers folder. ModelError: it is none, or not complete."""
    family = detect_family(folder)
    spec = FAMILIES[family]
    scheduler = _config(folder / "scheduler" / "scheduler_config.json")
    denoiser = _config(folder / spec.denoiser / "config.json")
    parts = (spec.denoiser, "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
    is_v = scheduler.get("prediction_type") == "v_prediction"
    channels = denoiser.get("in_channels")
    return CheckpointFacts(
        family, "v_prediction" if is_v else "epsilon", "file",
        zero_terminal_snr=scheduler.get("rescale_betas_zero_snr") is True,
        in_channels=channels if isinstance(channels, int) else 4,
        components=frozenset(part for part in parts if (folder / part).is_dir()),
        dtype=_number_format(folder / spec.denoiser),
    )  # fmt: skip


def _config(path: Path) -> dict[str, object]:
    with contextlib.suppress(OSError, ValueError):
        value = json_value(path.read_text(encoding="utf-8"))
        return value if isinstance(value, dict) else {}
    return {}


def _number_format(folder: Path) -> str:
    """Return safetensors' word for the numbers of the weights in a folder; '' if unknown."""
    for file in sorted(folder.glob("*.safetensors")):
        with contextlib.suppress(ModelError):
            return number_format(read_checkpoint_header(file))
    return ""
