"""Where the weights under a blend are kept until the blend goes.

Beside the model while its device has room; else in the computer's memory, pinned where there is a
GPU that can fetch it from there; else nowhere: they are read again from the file that the model was
opened from. All three give the same bits back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from sdlora.device import free_memory_gib

SPARE_GIB = 1.0  # left free wherever weights are put aside
# what stands before a parameter's name in some files: transformers 5 has dropped it from models
_BEFORE = ("", "text_model.")

Pristine = Callable[[], Tensor]  # gives a parameter as it was, bit for bit, on some device


@dataclass(frozen=True)
class Room:
    """One place to keep weights: whether it takes so many GiB more, and how they are kept.

    `keep(model, key, parameter)`: `key` is the parameter's name in `model`, a part of a family.
    """

    name: str
    has_space: Callable[[torch.device, float], bool]
    keep: Callable[[Any, str, Tensor], Pristine]


def _beside(_model: Any, _key: str, parameter: Tensor) -> Pristine:
    copy = parameter.detach().clone()
    return lambda: copy


def _in_memory(_model: Any, _key: str, parameter: Tensor) -> Pristine:
    copy = parameter.detach().to("cpu", copy=True)
    copy = copy.pin_memory() if parameter.is_cuda else copy
    return lambda: copy


def _in_file(model: Any, key: str, parameter: Tensor) -> Pristine:
    """Read again when asked for; kept in memory after all when no file holds just these bits."""
    for spelling in (before + key for before in _BEFORE):
        for path in _holders(Path(model.config._name_or_path)).get(spelling, ()):
            if _same_bits(_read(path, spelling, parameter.dtype), parameter):
                return partial(_read, path, spelling, parameter.dtype)
    return _in_memory(model, key, parameter)


ROOMS = (
    Room("device", lambda device, gib: _is_free(device, gib), _beside),
    Room(
        "memory",
        lambda device, gib: device.type != "cpu" and _is_free(torch.device("cpu"), gib),
        _in_memory,
    ),
    Room("file", lambda _device, _gib: True, _in_file),
)


def room_for(device: torch.device, needed_bytes: int) -> Room:
    """The first room with space for so much, of a model on `device`."""
    return next(room for room in ROOMS if room.has_space(device, needed_bytes / 2**30))


def _is_free(device: torch.device, gib: float) -> bool:
    return free_memory_gib(device) > gib + SPARE_GIB


@lru_cache(maxsize=4)  # the parts of a family
def _holders(folder: Path) -> dict[str, list[Path]]:
    """Tensor -> the files of a model's folder that hold it; a folder may hold two precisions."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  it is no dict
                found.setdefault(key, []).append(path)
    return found


def _read(path: Path, key: str, dtype: torch.dtype) -> Tensor:
    with safe_open(path, framework="pt") as file:
        tensor: Tensor = file.get_tensor(key)
    return tensor.to(dtype)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(*(t.detach().cpu().contiguous().view(torch.uint8) for t in (one, other)))
