"""Files of upscalers beside a model; no torch."""

from __future__ import annotations

from pathlib import Path

FOLDER = "upscaler"  # of a model; diffusers does not look into it


def default_upscaler(model: Path) -> Path | None:
    """Return the upscaler that a model brings with it: the first .safetensors in the folder
    `upscaler` of its own folder; None where there is none."""
    return next(iter(sorted((model / FOLDER).glob("*.safetensors"))), None)
