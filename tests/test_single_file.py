"""Whole models in one file: stock loaders find every tensor in its place."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders import single_file_utils as stock
from safetensors.torch import load_file, save_file

import architectures
from sdlora.errors import ModelError
from sdlora.models.single_file import open_single_file, single_file
from tiny import KINDS, open_tiny, tiny


@pytest.mark.parametrize("kind", KINDS)
def test_stock_loader_opens_the_file(kind: str, tmp_path: Path) -> None:
    family = open_tiny(kind)
    save_file(single_file(family), tmp_path / "whole.safetensors")
    pipeline = type(family.pipeline).from_single_file(
        str(tmp_path / "whole.safetensors"), config=str(tiny(kind)), **family.skip_components
    )
    for part in ("unet", "vae", *family.text_encoder_names.values()):
        ours, theirs = (getattr(its, part).state_dict() for its in (family.pipeline, pipeline))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), part


class Meta:
    """A family of a real model's size, without its numbers."""

    def __init__(self, name: str) -> None:
        parts = dict(architectures.build(name))
        self.name, self.title, self.denoiser = name, name, parts.pop("denoiser")
        self.text_encoders = parts
        self.pipeline = open_tiny("sd1").pipeline


@pytest.mark.parametrize(("kind", "telling"), [("sd1", "v1"), ("sd2", "v2"), ("sdxl", "xl_base")])
def test_real_models_have_the_names_that_tell_them_apart(
    kind: str, telling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    family: Any = Meta(kind)
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: tensor)  # there is nothing to copy
    tensors = single_file(family)
    assert stock.CHECKPOINT_KEY_NAMES[telling] in tensors
    config = {**family.denoiser.config}
    found = stock.convert_ldm_unet_checkpoint(dict(tensors), config)
    shapes = {name: tensor.shape for name, tensor in family.denoiser.state_dict().items()}
    assert {name: tensor.shape for name, tensor in found.items()} == shapes


def test_a_file_opens_like_the_family_it_is_of(tmp_path: Path) -> None:
    family = open_tiny("sdxl")
    path = tmp_path / "whole.safetensors"
    save_file(single_file(family), path)
    again = open_single_file(path, family)
    ours, theirs = (its.denoiser.state_dict() for its in (family, again))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (again.name, again.dtype) == ("sdxl", family.dtype)


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    family, path = open_tiny("sdxl"), tmp_path / "whole.safetensors"
    save_file(single_file(open_tiny("sd1")), path)
    with pytest.raises(ModelError, match="not a single file of .*XL.* tensors are not in it"):
        open_single_file(path, family)
    (tmp_path / "odd.safetensors").write_bytes(b"no model")
    with pytest.raises(ModelError, match="odd.safetensors cannot be opened"):
        open_single_file(tmp_path / "odd.safetensors", family)
    tensors = load_file(path)
    del tensors["first_stage_model.quant_conv.weight"]
    save_file(tensors, path)
    with pytest.raises(ModelError, match="1 tensors .* 'first_stage_model.quant_conv.weight'"):
        open_single_file(path, open_tiny("sd1"))


def test_an_unknown_family_is_written_as_a_folder_only() -> None:
    family = open_tiny("sd1")
    family.name = "other"
    with pytest.raises(ModelError, match="diffusers folder only"):
        single_file(family)
