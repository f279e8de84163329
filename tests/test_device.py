"""Devices, number formats, and random streams that depend on their arguments only."""

import subprocess
import sys

import pytest
import torch

from launch import ROOT
from sdlora.device import free_memory_gib, generator_for, pick_device, pick_dtype
from sdlora.errors import DeviceError

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_streams_are_apart_and_repeat() -> None:
    streams = [(0, 1), (0, 2), (1, 1), (0, 1, "noise"), (0, 1, "t"), (0, "1")]
    draws = [torch.randn(4, generator=generator_for(*stream)).tolist() for stream in streams]
    assert len({tuple(draw) for draw in draws}) == len(streams)
    torch.manual_seed(7)  # the global state has no say
    assert draws[0] == torch.randn(4, generator=generator_for(0, 1)).tolist()


def test_streams_are_the_same_in_another_process() -> None:
    code = "from sdlora.device import generator_for; print(generator_for(3, 'a').initial_seed())"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert int(ran.stdout) == generator_for(3, "a").initial_seed(), ran.stderr


@pytest.mark.parametrize(
    ("cuda", "bf16", "expected"),
    [
        (True, True, ("cuda", torch.bfloat16)),
        (True, False, ("cuda", torch.float16)),
        (False, False, ("cpu", torch.float32)),
    ],
)
def test_pick(
    cuda: bool, bf16: bool, expected: tuple[str, torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    device, reason = pick_device()
    dtype, why = pick_dtype(device)
    assert (device.type, dtype) == expected
    assert reason and why


def test_precision_that_was_set() -> None:
    assert pick_dtype(GPU, "fp16")[0] == torch.float16
    with pytest.raises(DeviceError, match="fp16 needs a GPU"):
        pick_dtype(CPU, "fp16")


def test_free_memory_is_a_plausible_number() -> None:
    assert 0 < free_memory_gib(CPU) < 100_000
