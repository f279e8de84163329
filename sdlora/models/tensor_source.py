"""Tensors of a file by name, read one at a time, whatever their number format.

fp8 files come raw, or scaled: `X.weight` in float8 beside `X.scale_weight` or `X.weight_scale`, a
number for the tensor or one for each row, by which it is multiplied (ComfyUI's "scaled fp8").
GGUF files come in blocks of few bits (gguf_tensors.py).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sdlora.errors import ModelError
from sdlora.models.checkpoint_header import CheckpointHeader, read_checkpoint_header
from sdlora.models.gguf_tensors import read_gguf_tensor

_SCALES = (".scale_weight", ".weight_scale")
_READABLE = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}


class TensorSource:
    """An open safetensors or GGUF file."""

    def __init__(self, header: CheckpointHeader, file: Any) -> None:
        self.header = header
        self._file = file

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """Return a tensor in `dtype`. ModelError: its number format cannot be read."""
        if self.header.is_gguf:
            return read_gguf_tensor(self._file, self.header, name, dtype)
        if self.header.dtypes[name] not in _READABLE:
            raise ModelError(
                "{file} holds {key!r} as {dtype}, a quantised format that cannot be read; take a "
                "file of the same model in fp16, bf16 or fp8",
                file=self.header.file, key=name[:80], dtype=self.header.dtypes[name],
            )  # fmt: skip
        tensor: Tensor = self._file.get_tensor(name)
        scale = self._scale(name)
        if scale is None:
            return tensor.to(dtype)
        scale = scale.float()
        rows = scale.reshape(-1, *[1] * (tensor.dim() - 1)) if scale.numel() > 1 else scale
        return (tensor.float() * rows).to(dtype)

    def _scale(self, name: str) -> Tensor | None:
        stem = name.removesuffix(".weight")
        if stem == name:
            return None
        self._check_quantisation(stem)
        for ending in _SCALES:
            if stem + ending in self.header:
                scale: Tensor = self._file.get_tensor(stem + ending)
                return scale
        return None

    def _check_quantisation(self, stem: str) -> None:
        """Refuse the formats of ComfyUI's newer files other than scaled fp8, each by its name."""
        if f"{stem}.comfy_quant" not in self.header:
            return
        text = bytes(self._file.get_tensor(f"{stem}.comfy_quant").tolist())
        try:
            kind = str(json.loads(text)["format"])
        except (ValueError, KeyError, TypeError):
            kind = "unknown"
        if not kind.startswith("float8"):
            raise ModelError(
                "{file} is quantised as {kind}, which cannot be read; take a file of the same "
                "model in fp16, bf16 or fp8",
                file=self.header.file, kind=kind[:40],
            )  # fmt: skip


@contextlib.contextmanager
def open_tensors(path: Path) -> Iterator[TensorSource]:
    """Open a file for reading tensors. ModelError: it is not one, or damaged."""
    header = read_checkpoint_header(path)
    try:
        with path.open("rb") if header.is_gguf else safe_open(path, framework="pt") as file:
            yield TensorSource(header, file)
    except (OSError, SafetensorError) as error:
        raise ModelError("{file} cannot be opened: {why}", file=path, why=error) from None
