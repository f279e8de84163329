"""The weights under a blend come back bit for bit, wherever they were kept."""

import dataclasses
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mixed_loras import mixed_loras
from sdlora.adapters import Blend, merged_weights
from sdlora.adapters.merged_weights import WEIGHT_STORES, weight_store_for
from sdlora.models.registry import open_family
from tiny import CPU, make, open_tiny, weights_hash

CUDA = torch.device("cuda")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize(
    ("device", "free", "room"),
    [
        (CUDA, {"cuda": 4.0, "cpu": 4.0}, "device"),
        (CUDA, {"cuda": 2.5, "cpu": 4.0}, "memory"),
        (CUDA, {"cuda": 2.5, "cpu": 2.5}, "file"),
        (CPU, {"cpu": 4.0}, "device"),
        (CPU, {"cpu": 2.5}, "file"),  # its memory is the device's
    ],
)
def test_the_first_room_with_space_is_taken(
    device: torch.device, free: dict[str, float], room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merged_weights, "free_memory_gib", lambda device: free[device.type])
    assert weight_store_for(device, 2 * 2**30).name == room


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("room", WEIGHT_STORES, ids=lambda room: room.name)
def test_every_room_gives_the_same_bits_back(
    room: merged_weights.WeightStore, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    only = dataclasses.replace(room, has_space=lambda _device, _gib: True)
    monkeypatch.setattr(merged_weights, "WEIGHT_STORES", (only,))
    family = open_tiny("sd1", dtype)
    files, blend, was = mixed_loras(family), Blend(family), weights_hash(family)
    for strength in (0.5, 0.8):  # the second is computed from what was kept
        blend.apply([(file, strength, strength) for file in files])
    blended = weights_hash(family)
    blend.clear()
    assert weights_hash(family) == was
    blend.apply([(file, 0.8, 0.8) for file in files])
    assert weights_hash(family) == blended != was
    blend.clear()


def test_what_is_read_again_is_not_kept() -> None:
    """One row holds a file's name; the bits are those of the file, cast as the model was."""
    family = open_tiny("sd1", torch.bfloat16)
    model, key = family.text_encoders["te"], "encoder.layers.0.mlp.fc1.weight"
    parameter = model.get_parameter(key)
    again = WEIGHT_STORES[-1].keep(model, key, parameter)
    was = parameter.detach().clone()
    parameter.data.zero_()
    assert torch.equal(again(), was) and again() is not again()


@pytest.mark.parametrize("shard_size", ["1GB", "200KB"])
def test_sharded_and_renamed_files_are_read(shard_size: str, tmp_path: Path) -> None:
    """In shards, and with `text_model.` before its names, as the text encoders of the hub are."""
    pipeline = make("sd1")
    pipeline.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) == 1 or shard_size == "200KB"
    encoder = tmp_path / "text_encoder" / "model.safetensors"
    if encoder.exists():
        tensors = load_file(encoder)
        save_file({f"text_model.{k}": v for k, v in tensors.items()}, encoder, {"format": "pt"})
    family = open_family(str(tmp_path), torch.float16, CPU)
    for model in family.components.values():
        for key, parameter in model.named_parameters():
            again = WEIGHT_STORES[-1].keep(model, key, parameter)
            assert isinstance(again, partial), key  # it is in a file
            assert torch.equal(again(), parameter)


def test_weights_that_no_file_has_are_kept_in_memory() -> None:
    family = open_tiny("sd1")
    parameter = family.denoiser.conv_in.weight
    parameter.data[0] += 1
    again = WEIGHT_STORES[-1].keep(family.denoiser, "conv_in.weight", parameter)
    was = parameter.detach().clone()
    parameter.data.zero_()
    assert torch.equal(again(), was)
