"""Formats of few bits for weights that do not change: int8, fp8 (e4m3) and nf4, a row each.

The values of a weight are taken in blocks: a row of the weight, or 64 values one after the other in
nf4. A block's largest value is the largest of the format, so a value is a float32 scale per block
times what its code stands for: an integer, a number of e4m3 (arXiv:2209.05433), or one of 16 levels
that a normal distribution fills evenly (arXiv:2305.14314). Products with the scale are computed in
float32 and rounded once, so that the same bits give the same weight on every device.

nf4 is laid out as in bitsandbytes, whose operator computes the same where it is installed, on
devices that it has one for. It is never needed: what is written here is the format.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

HeldFormat = Literal["int8", "fp8", "nf4"]
Shape = tuple[int, ...]
Kernel = Callable[[Tensor, Tensor, Shape, torch.dtype], Tensor]  # as `dequantize`, of one format

# Values in work at a time: they stay in a processor's cache; elsewhere a launch costs more
_VALUES_AT_ONCE, _VALUES_AT_ONCE_ON_A_GPU = 2**17, 2**24


@dataclass(frozen=True)
class WeightFormat:
    """A format. `encode`: (blocks,n) float32, which it may write into, and scales (blocks,1) ->
    codes as int8, `values_per_byte` in each; `decode`: int8 (n,) -> values, exact in any type that
    a product with float32 computes in float32.

    Codes are int8 in every format, which no cast of a model changes. `kernels`: device type ->
    a quicker `dequantize`, for those where a library has one.
    """

    largest: float
    encode: Callable[[Tensor, Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    block: int = 0  # values of a scale; 0: of a row
    values_per_byte: int = 1
    absent_on: tuple[str, ...] = ()  # device types
    kernels: Callable[[], dict[str, Kernel]] = dict

    def held_shape(self, shape: Shape) -> Shape:
        """Return the shape of the codes of a weight (out,in)."""
        numel = shape[0] * shape[1]
        return (-(-numel // self.values_per_byte),) if self.block else shape

    def scale_shape(self, shape: Shape) -> Shape:
        """Return the shape of the scales of a weight (out,in)."""
        return (-(-shape[0] * shape[1] // (self.block or shape[1])), 1)

    def held_bytes(self, shape: Shape) -> int:
        """Return the bytes of codes and scales of a weight (out,in)."""
        codes = self.held_shape(shape)
        return codes[0] * (1 if self.block else codes[1]) + 4 * self.scale_shape(shape)[0]


def quantize(weight: Tensor, held_format: HeldFormat) -> tuple[Tensor, Tensor]:
    """Return a weight (out,in) as int8 codes and float32 scales (blocks,1)."""
    row, shape = FORMATS[held_format], tuple(weight.shape)
    held = torch.empty(row.held_shape(shape), dtype=torch.int8, device=weight.device)
    scale = torch.empty(row.scale_shape(shape), device=weight.device)
    if weight.is_meta:
        return held, scale
    flat, codes = weight.detach().reshape(-1), held.view(-1)
    for values_at, codes_at, blocks_at in _shares(row, shape, weight.device):
        values = _in_blocks(flat[values_at].to(torch.float32, copy=True), row.block or shape[1])
        largest = torch.maximum(values.amax(1, keepdim=True), -values.amin(1, keepdim=True))
        part = torch.where(largest > 0, largest / row.largest, 1.0)
        scale[blocks_at] = part
        room = codes[codes_at]
        room.copy_(row.encode(values, part).view(-1)[: len(room)])
    return held, scale


def dequantize(
    held: Tensor, scale: Tensor, held_format: HeldFormat, shape: Shape, dtype: torch.dtype
) -> Tensor:
    """Return the weight (out,in) of `quantize`."""
    kernel = _KERNELS.get((held_format, held.device.type))
    if kernel is not None and shape[1] % 2 == 0 and dtype.itemsize <= 4:
        return kernel(held, scale, shape, dtype)
    row = FORMATS[held_format]
    weight = torch.empty(shape, dtype=dtype, device=held.device)
    if weight.is_meta:
        return weight
    flat, codes = weight.view(-1), held.view(-1)
    for values_at, codes_at, blocks_at in _shares(row, shape, held.device):
        room = flat[values_at]
        values = _in_blocks(row.decode(codes[codes_at]), row.block or shape[1])
        if len(room) == values.numel():  # without a float32 copy, on a GPU in one pass
            torch.mul(values, scale[blocks_at], out=room.view(values.shape))
        else:
            room.copy_((values * scale[blocks_at]).view(-1)[: len(room)])
    return weight


def _shares(
    row: WeightFormat, shape: Shape, device: torch.device
) -> Iterator[tuple[slice, slice, slice]]:
    """Yield the places of some values, of their codes and of their blocks' scales, until all were
    there; of all at once where a compiler makes one loop of it."""
    numel, block = shape[0] * shape[1], row.block or shape[1]
    at_once = _VALUES_AT_ONCE if device.type == "cpu" else _VALUES_AT_ONCE_ON_A_GPU
    blocks = max(1, at_once // block)
    if torch.compiler.is_compiling():
        blocks = -(-numel // block)
    bytes_each = row.values_per_byte
    for first in range(0, numel, blocks * block):
        last = min(first + blocks * block, numel)
        codes = slice(first // bytes_each, -(-last // bytes_each))
        yield slice(first, last), codes, slice(first // block, -(-last // block))


def _in_blocks(values: Tensor, block: int) -> Tensor:
    """(blocks,block), the last one filled up with zeros."""
    missing = -len(values) % block
    return (pad(values, (0, missing)) if missing else values).view(-1, block)


def _encode_int8(values: Tensor, scale: Tensor) -> Tensor:
    return values.div_(scale).round_().to(torch.int8)


def _decode_int8(held: Tensor) -> Tensor:
    return held.to(torch.float32) if held.device.type == "cpu" else held


def _encode_fp8(values: Tensor, scale: Tensor) -> Tensor:
    return values.div_(scale).to(torch.float8_e4m3fn).view(torch.int8)


def _decode_fp8(held: Tensor) -> Tensor:
    if held.device.type == "cpu":  # looked up in a sixth of the time of torch's cast
        return _look_up("fp8", held)
    return held.view(torch.float8_e4m3fn).to(torch.float16)


# Table 4 of the paper's appendix E, to the digits that bitsandbytes has
NF4_LEVELS = torch.tensor([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
])  # fmt: skip
_MIDDLES = (NF4_LEVELS[1:] + NF4_LEVELS[:-1]) / 2


def _cell(values: Tensor) -> Tensor:
    """Return the number, 0 to 32, of the sixteenth of -1 to 1 that each value lies in."""
    return values.add(1).mul_(16).to(torch.int32)


# Of each cell: how many middles lie in cells below, and the middle in it, of which there is at most
# one; `_cell` never falls as values rise, so that a comparison with that one gives the level
_MIDDLES_BELOW = torch.searchsorted(_cell(_MIDDLES), torch.arange(33)).to(torch.uint8)
_MIDDLE_IN_CELL = torch.full((33,), torch.inf).index_copy_(0, _cell(_MIDDLES).long(), _MIDDLES)


def _encode_nf4(values: Tensor, scale: Tensor) -> Tensor:
    """The nearest level of each value, the lower of two; the first of a byte in its upper half."""
    flat = values.mul_(1 / scale).clamp_(-1, 1).view(-1)
    cells = _cell(flat)
    above = flat > _on("middle in cell", flat.device).index_select(0, cells)
    levels = _on("middles below", flat.device).index_select(0, cells).add_(above)
    return (levels[::2] << 4 | levels[1::2]).view(torch.int8)


def _decode_nf4(held: Tensor) -> Tensor:
    return _look_up("nf4", held)


def _look_up(table: str, held: Tensor) -> Tensor:
    """Return what each byte stands for; two float32 lie in an int64, which is a third of the time
    of rows of two."""
    values = _on(table, held.device).index_select(0, held.view(torch.uint8).to(torch.int32))
    return values.view(torch.float32)


_BYTES = torch.arange(256)
_TABLES = {
    ("middle in cell", "cpu"): _MIDDLE_IN_CELL,
    ("middles below", "cpu"): _MIDDLES_BELOW,
    ("fp8", "cpu"): _BYTES.to(torch.uint8).view(torch.float8_e4m3fn).to(torch.float32),
    ("nf4", "cpu"): NF4_LEVELS[torch.stack([_BYTES >> 4, _BYTES & 15], 1)].view(torch.int64)[:, 0],
}


def _on(table: str, device: torch.device) -> Tensor:
    key = (table, str(device))
    if key not in _TABLES:
        _TABLES[key] = _TABLES[table, "cpu"].to(device)
    return _TABLES[key]


def _bitsandbytes_kernels() -> dict[str, Kernel]:
    """Return its operator for the device types that it has compiled code for; of others it has a
    slower form than ours."""
    try:
        importlib.import_module("bitsandbytes")
    except (ImportError, OSError, RuntimeError):  # not there, or not for this machine
        return {}
    registered = torch._C._dispatch_has_kernel_for_dispatch_key
    return {
        device: _dequantize_by_bitsandbytes
        for device, key in (("cpu", "CPU"), ("cuda", "CUDA"))
        if registered("bitsandbytes::dequantize_4bit", key)
    }


def _dequantize_by_bitsandbytes(
    held: Tensor, scale: Tensor, shape: Shape, dtype: torch.dtype
) -> Tensor:
    operator: Any = torch.ops.bitsandbytes.dequantize_4bit.default
    codes = held.view(torch.uint8).view(-1, 1)
    weight: Tensor = operator(codes, scale.view(-1), FORMATS["nf4"].block, "nf4", shape, dtype)
    return weight


FORMATS: dict[HeldFormat, WeightFormat] = {
    "int8": WeightFormat(127.0, _encode_int8, _decode_int8),
    "fp8": WeightFormat(448.0, _encode_fp8, _decode_fp8, absent_on=("mps",)),
    "nf4": WeightFormat(
        1.0, _encode_nf4, _decode_nf4, block=64, values_per_byte=2, kernels=_bitsandbytes_kernels
    ),
}
_KERNELS: dict[tuple[HeldFormat, str], Kernel] = {}


def load_kernels(held_format: HeldFormat) -> None:
    """Use a library's kernels for a format from now on, where there are any."""
    for device, kernel in FORMATS[held_format].kernels().items():
        _KERNELS[held_format, device] = kernel
