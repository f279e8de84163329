"""Weights of a .ckpt or .pt file, a pickle: read with torch's reader of weights alone.

That reader builds tensors and plain containers and refuses everything else, so that nothing in the
file is run. No other module may call it (`danger_problems` in tests/shape.py).
"""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from sdlora.errors import ModelError
from sdlora.models.checkpoint_header import is_pickle, other_kind


def read_pickled_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name, in their own number formats, mapped from the file
    where its form allows it. ModelError: it holds something other than weights, or is damaged."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
        if not is_pickle(start):
            raise other_kind(path, start)
        content = _load(path)
    except UnpicklingError:
        raise ModelError(
            "{file} holds more than weights, or is damaged: opening it could run code, and it is "
            "not opened. Look for a .safetensors file of the same model",
            file=path,
        ) from None
    except (OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise ModelError(
            "{file} cannot be read: {why}", file=path, why=str(error).split("\n")[0][:200]
        ) from None
    table = content.get("state_dict", content) if isinstance(content, dict) else {}
    tensors = {
        name: value for name, value in (table.items() if isinstance(table, dict) else ())
        if isinstance(name, str) and isinstance(value, Tensor) and value.is_floating_point()
    }  # fmt: skip
    if not tensors:
        raise ModelError("{file} holds no weights of a model", file=path)
    return tensors


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        # the form of torch before 1.6 is one stream, which cannot be mapped
        return torch.load(path, map_location="cpu", weights_only=True)
