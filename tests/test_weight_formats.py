"""Formats of few bits: what comes back of a weight, and that nf4 is the one of bitsandbytes."""

import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from sdlora.models import weight_formats
from sdlora.models.frozen_weights import freeze_linears
from sdlora.models.weight_formats import (
    FORMATS,
    NF4_LEVELS,
    HeldFormat,
    Shape,
    dequantize,
    load_kernels,
    quantize,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Whole blocks of 64; rows that end within a block; an odd number of values; several shares
SHAPES = ((16, 64), (16, 24), (7, 9), (1, 1), (140, 1000))


@pytest.fixture(autouse=True)
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start each test from our own code alone, whatever is installed."""
    monkeypatch.setattr(weight_formats, "_KERNELS", {})
    yield


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_int8_is_at_most_half_a_step_off_and_keeps_the_largest() -> None:
    weight = random(16, 24) * torch.logspace(-6, 2, 16)[:, None]
    weight[3] = 0
    held, scale = quantize(weight, "int8")
    step = weight.abs().amax(1, keepdim=True) / 127
    assert held.dtype == torch.int8 and scale.shape == (16, 1)
    error = (dequantize(held, scale, "int8", (16, 24), torch.float32) - weight).abs()
    assert (error <= step / 2 * (1 + 1e-5)).all()
    assert (held.abs().amax(1)[weight.abs().amax(1) > 0] == 127).all()


def test_fp8_has_the_values_of_four_bits_exponent_and_three_of_fraction() -> None:
    """Every one of the 253 finite values comes back as itself; others as their nearest."""
    bits = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    exact = bits[bits.isfinite()][None]
    held, scale = quantize(exact, "fp8")
    assert (
        torch.equal(dequantize(held, scale, "fp8", (1, 254), torch.float32), exact)
        and scale.item() == 1
    )
    weight = random(16, 24)
    held, scale = quantize(weight, "fp8")
    apart = ((weight / scale)[..., None] - exact[0]).abs().min(-1).values
    found = (dequantize(held, scale, "fp8", (16, 24), torch.float32) / scale - weight / scale).abs()
    torch.testing.assert_close(found, apart, atol=1e-4, rtol=0)


def nearest(values: Tensor, levels: Tensor) -> Tensor:
    """The distance of each value to the nearest level."""
    return (values[..., None] - levels).abs().min(-1).values


def test_nf4_has_the_nearest_of_sixteen_levels_times_the_largest_of_64() -> None:
    weight = random(16, 24) * torch.logspace(-6, 2, 16)[:, None]
    weight[6:12] = 0
    held, scale = quantize(weight, "nf4")
    assert held.shape == (16 * 24 // 2,) and scale.shape == (6, 1)
    found = dequantize(held, scale, "nf4", (16, 24), torch.float32)
    blocks, found = weight.view(6, 64), found.view(6, 64)
    largest = blocks.abs().amax(1, keepdim=True)
    expected = nearest(blocks / largest.clamp(min=1e-30), NF4_LEVELS) * largest
    torch.testing.assert_close((found - blocks).abs(), expected, rtol=1e-4, atol=1e-12)
    assert (found[blocks.abs() == largest] == blocks[blocks.abs() == largest]).all()
    assert (found[blocks == 0] == 0).all()


def test_nf4_levels_come_back_as_themselves_and_middles_as_the_lower() -> None:
    """And the next number above a middle as the upper, on either side of zero."""
    middles = (NF4_LEVELS[1:] + NF4_LEVELS[:-1]) / 2
    above = torch.nextafter(middles, torch.tensor(2.0))
    weight = torch.cat([NF4_LEVELS, middles, above, torch.ones(18)])[None]
    held, scale = quantize(weight, "nf4")
    found = dequantize(held, scale, "nf4", (1, 64), torch.float32)[0]
    assert torch.equal(found[:16], NF4_LEVELS) and scale.item() == 1
    assert torch.equal(found[16:31], NF4_LEVELS[:-1])
    assert torch.equal(found[31:46], NF4_LEVELS[1:])


@pytest.mark.parametrize("held_format", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_weight_in_any_format_is_rounded_once(
    held_format: HeldFormat, shape: tuple[int, int]
) -> None:
    """The weight in 16 bits is that in float32, cast; bytes are those that are announced; the last
    values, of a block that is not whole, are as near as all others."""
    weight = random(*shape)
    held, scale = quantize(weight, held_format)
    whole = dequantize(held, scale, held_format, shape, torch.float32)
    assert whole.shape == shape and (whole - weight).abs().max() < 0.2 * weight.abs().max()
    assert held.dtype == torch.int8 and scale.dtype == torch.float32
    row = FORMATS[held_format]
    assert held.nbytes + scale.nbytes == row.held_bytes(shape)
    assert (held.shape, scale.shape) == (row.held_shape(shape), row.scale_shape(shape))
    for dtype in DTYPES:
        assert torch.equal(dequantize(held, scale, held_format, shape, dtype), whole.to(dtype))


@pytest.mark.parametrize("shape", SHAPES)
def test_nf4_is_that_of_bitsandbytes_in_every_bit(shape: tuple[int, int]) -> None:
    """Codes, scales and weights; its operator computes them in our stead on a processor."""
    functional = pytest.importorskip(
        "bitsandbytes.functional", reason="43 MB that only speed needs"
    )
    weight = random(*shape)
    held, scale = quantize(weight, "nf4")
    codes, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    assert torch.equal(held.view(torch.uint8), codes.view(-1))
    assert torch.equal(scale.view(-1), state.absmax)
    ours = [dequantize(held, scale, "nf4", shape, dtype) for dtype in DTYPES]
    load_kernels("nf4")
    assert ("nf4", "cpu") in weight_formats._KERNELS
    for dtype, mine in zip(DTYPES, ours, strict=True):
        assert torch.equal(dequantize(held, scale, "nf4", shape, dtype), mine)


def test_a_librarys_kernel_is_used_on_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for rows of an odd width, which bitsandbytes computes in a slow form of its own."""
    asked = []

    def kernel(held: Tensor, scale: Tensor, shape: Shape, dtype: torch.dtype) -> Tensor:
        asked.append(shape)
        return torch.full(shape, 2.0, dtype=dtype)

    row = replace(FORMATS["nf4"], kernels=lambda: {"cpu": kernel})
    monkeypatch.setitem(FORMATS, "nf4", row)
    layers = nn.ModuleDict({"even": nn.Linear(4, 3), "odd": nn.Linear(5, 3)})
    freeze_linears(nn.ModuleDict({"blocks": nn.ModuleList([layers])}), "nf4")
    assert layers["even"].weight.unique().tolist() == [2]
    assert layers["odd"].weight.abs().max() < 1
    assert asked == [(3, 4)]


def test_without_bitsandbytes_nothing_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    load_kernels("nf4")
    assert not weight_formats._KERNELS
