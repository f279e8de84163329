"""GGUF files as ComfyUI-GGUF's and stable-diffusion.cpp's converters write them; needs `gguf`."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

gguf: Any = pytest.importorskip("gguf")

Format = Any  # of gguf.GGMLQuantizationType
F32, F16, Q8_0, Q4_0 = (
    getattr(gguf.GGMLQuantizationType, n) for n in ("F32", "F16", "Q8_0", "Q4_0")
)


def write_for_comfyui(
    path: Path, found: Mapping[str, Tensor], kind: Format = Q8_0, arch: str = "sd1"
) -> dict[str, Tensor]:
    """Write a file as ComfyUI-GGUF's convert.py and llama-quantize do, which reshape tensors to
    rows of 256 and note their shapes. Return the tensors as they are read, in float16."""
    writer = gguf.GGUFWriter(None, arch)
    read = {}
    for name, tensor in found.items():
        values, width = tensor.float(), tensor.shape[-1]
        count = values.numel()
        if values.dim() > 1 and count >= 512 and count % 256 == 0 and width % 256:
            writer.add_array(f"comfy.gguf.orig_shape.{name}", tuple(values.shape))
            values = values.reshape(-1, 256)
        is_small = tensor.dim() == 1 or values.shape[-1] % _values(kind)
        read[name] = _add(writer, name, values, F32 if is_small else kind).reshape(tensor.shape)
    _write(writer, path)
    return read


def write_by_stable_diffusion_cpp(
    path: Path, found: Mapping[str, Tensor], kind: Format = Q8_0
) -> dict[str, Tensor]:
    """Write a file as stable-diffusion.cpp does: no metadata, quantised matrices, convolutions in
    float16, and the projections of Stable Diffusion XL as convolutions of 1 x 1."""
    writer = gguf.GGUFWriter(None, "")
    writer.kv_data[0].clear()
    read = {}
    for name, tensor in found.items():
        values = tensor.float()
        if name.endswith((".proj_in.weight", ".proj_out.weight")) and values.dim() == 2:
            values = values[:, :, None, None]
        fits = values.dim() == 2 and values.shape[-1] % _values(kind) == 0
        chosen = kind if fits else F16 if values.dim() > 1 else F32
        read[name] = _add(writer, name, values, chosen).reshape(tensor.shape)
    _write(writer, path)
    return read


def write_bytes(path: Path, name: str, blocks: Any, kind: Format) -> None:
    """Write a file of one tensor, from blocks as they are stored."""
    writer = gguf.GGUFWriter(None, "sd1")
    writer.add_tensor(name, blocks, raw_dtype=kind)
    _write(writer, path)


def _values(kind: Format) -> int:
    return int(gguf.GGML_QUANT_SIZES[kind][0])


def _add(writer: Any, name: str, values: Tensor, kind: Format) -> Tensor:
    held = gguf.quants.quantize(values.numpy(), kind)
    writer.add_tensor(name, held, raw_dtype=kind)
    if not math.prod(values.shape):
        return values.half()
    return torch.from_numpy(gguf.quants.dequantize(held, kind)).half()


def _write(writer: Any, path: Path) -> None:
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
