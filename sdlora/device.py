"""Device and number format to use, with the reason; free memory; seeded random generators."""

from __future__ import annotations

import hashlib
import json

import psutil
import torch

from sdlora.errors import DeviceError
from sdlora.messages import Setting
from sdlora.settings.train import Precision

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device() -> tuple[torch.device, str]:
    """Return the fastest device, and the reason to show."""
    if torch.cuda.is_available():
        return torch.device("cuda"), f"{torch.cuda.get_device_name()} found"
    if torch.backends.mps.is_available():
        return torch.device("mps"), "an Apple GPU was found"
    return torch.device("cpu"), "no GPU was found"


def pick_dtype(device: torch.device, precision: Precision = "auto") -> tuple[torch.dtype, str]:
    """Return the number format to hold the base model in, and the reason to show.

    DeviceError: this device cannot compute in the format that was asked for.
    """
    if precision == "auto":
        return _fitting_dtype(device)
    if precision == "fp16" and device.type == "cpu":
        raise DeviceError(
            "{setting} = fp16 needs a GPU; this computer's processor takes fp32, bf16 or auto",
            setting=Setting("precision"),
        )
    return DTYPES[precision], f"precision = {precision} was set"


def _fitting_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16, "the GPU computes in bf16"
    if device.type == "cuda":
        return torch.float16, "the GPU is too old for bf16"
    if device.type == "mps":
        return torch.float32, "fp16 overflows in Stable Diffusion on Apple GPUs"
    return torch.float32, "a processor is fastest and exact in fp32"


def free_memory_gib(device: torch.device) -> float:
    """Return the memory that can still be allocated, GiB: the GPU's, or the computer's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 2**30
    return float(psutil.virtual_memory().available / 2**30)


def generator_for(seed: int, *stream: int | str) -> torch.Generator:
    """Return the generator of one random stream, such as (seed, step, "noise"): a pure function of
    the arguments.

    Always on the CPU, so that a seed means the same on every device.
    """
    digest = hashlib.sha256(json.dumps([seed, *stream]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
