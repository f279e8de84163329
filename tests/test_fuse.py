"""LoRAs put into a model for good, and taken out of one again."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from sdlora.adapters import Blend
from sdlora.adapters.extract import extract_from_models
from sdlora.adapters.fuse import fuse, pristine_weights, save_model
from sdlora.errors import LoraFileError, ModelError, SettingsError
from sdlora.lora.format.file import LoraFile
from sdlora.lora.format.layer import Adapter
from sdlora.lora.tools.merge import MergeMethod, resize
from sdlora.models.base import ModelFamily
from tiny import open_tiny, tiny, tiny_lora, weights_hash

FP32 = torch.float32


def weights(family: ModelFamily) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": tensor.clone()
        for part, model in family.components.items()
        for name, tensor in model.state_dict().items()
    }


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_fused_weights_are_those_of_a_blend(kind: str) -> None:
    blended, fused = open_tiny(kind), open_tiny(kind)
    files = [tiny_lora(blended, seed=1), tiny_lora(blended, seed=2)]
    Blend(blended).apply([(files[0], 0.8, 0.8), (files[1], -0.5, -0.5)])
    losses, unmatched = fuse(fused, [(files[0], 0.8), (files[1], -0.5)], FP32)
    ours, theirs = weights(fused), weights(blended)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in ours)
    assert not unmatched
    assert set(losses.by_group()) == {
        "attention", "feed_forward", "conv", "text_encoder", "all"
    }  # fmt: skip
    assert losses.by_group()["all"] < 1e-5


@pytest.mark.parametrize("name", ["model", "model.safetensors"])
def test_a_fused_model_opens_in_stock_loaders(name: str, tmp_path: Path) -> None:
    family = open_tiny("sd1")
    losses, _ = fuse(family, [(tiny_lora(family, seed=3), 0.7)], torch.float16)
    assert 1e-5 < losses.by_group()["all"] < 0.05  # what half numbers cost
    path = save_model(family, tmp_path / name, False, {"modelspec.title": "mine"})
    if path.is_dir():
        pipeline = StableDiffusionPipeline.from_pretrained(
            path, dtype=torch.float16, safety_checker=None, requires_safety_checker=False
        )
    else:
        pipeline = StableDiffusionPipeline.from_single_file(
            str(path), config=str(tiny("sd1")), torch_dtype=torch.float16, safety_checker=None
        )
    for part in ("unet", "vae", "text_encoder"):
        ours, theirs = (getattr(its, part).state_dict() for its in (family.pipeline, pipeline))
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_nothing_is_replaced_without_being_told(tmp_path: Path) -> None:
    family = open_tiny("sd1")
    folder = save_model(family, tmp_path / "model", False, {})
    with pytest.raises(SettingsError, match="--overwrite"):
        save_model(family, folder, False, {})
    before = (folder / "unet" / "config.json").stat().st_ino
    save_model(family, folder, True, {})
    assert (folder / "unet" / "config.json").stat().st_ino != before
    (tmp_path / "letters").mkdir()
    with pytest.raises(SettingsError, match="not a model's folder"):
        save_model(family, tmp_path / "letters", True, {})


def test_too_much_is_refused() -> None:
    family = open_tiny("sd1")
    with pytest.raises(LoraFileError, match="overflows"):
        fuse(family, [(tiny_lora(family), 1e6)], torch.float16)


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_what_was_fused_is_extracted_again(kind: str) -> None:
    base, tuned = open_tiny(kind), open_tiny(kind)
    file = tiny_lora(base, seed=4)
    fuse(tuned, [(file, 1.0)], FP32)
    before = weights_hash(base)
    found, losses, others = extract_from_models(base, tuned, MergeMethod(rank=4, dtype=FP32))
    assert weights_hash(base) == before
    assert set(found.layers) == set(file.layers)
    assert not others
    for name, adapter in file.layers.items():
        part, path = base.module_names()[name]
        weight = base.components[part].get_submodule(path).weight
        wanted, its = adapter.delta(weight), found.layers[name].delta(weight)
        assert float((its - wanted).norm() / wanted.norm()) < 1e-4, name
    assert losses.by_group()["all"] < 1e-4


def test_extract_says_what_it_leaves_out() -> None:
    base, tuned = open_tiny("sd1"), open_tiny("sd1")
    with pytest.raises(LoraFileError, match="nothing to extract"):
        extract_from_models(base, tuned, MergeMethod(rank=4))
    tuned.denoiser.conv_in.weight.data += 0.1
    tuned.denoiser.conv_in.bias.data += 0.1
    found, _, others = extract_from_models(base, tuned, MergeMethod(rank=4, dtype=FP32))
    assert list(found.layers) == ["lora_unet_conv_in"]
    assert found.layers["lora_unet_conv_in"].rank == 4
    assert others == ["denoiser.conv_in.bias"]
    with pytest.raises(ModelError, match="not of one architecture"):
        extract_from_models(base, open_tiny("sd2"), MergeMethod(rank=4))


def test_the_models_weights_make_a_dora_plain() -> None:
    family = open_tiny("sd1")
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    pristine = pristine_weights(family)
    weight = pristine(name)
    rng = torch.Generator().manual_seed(0)
    tensors = {
        "down": torch.randn(2, weight.shape[1], generator=rng),
        "up": torch.randn(weight.shape[0], 2, generator=rng),
        "dora_scale": torch.rand(weight.shape[0], 1, generator=rng),
    }
    dora = Adapter("DoRA", tensors)
    plain, losses = resize(LoraFile({name: dora}), MergeMethod(keep=1.0, dtype=FP32), pristine)
    wanted = dora.delta(weight)
    its = plain.layers[name].delta(weight)
    assert float((its - wanted).norm() / wanted.norm()) < 1e-4
    assert losses.by_group()["attention"] < 1e-4
    with pytest.raises(LoraFileError, match="has no layer 'lora_unet_nothing'"):
        pristine("lora_unet_nothing")
