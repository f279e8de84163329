"""Upscalers of the Compact kind: files by their true names, tiles, the last step of a request."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from sdlora.errors import ModelError
from sdlora.image_metadata.a1111 import ImageMetadata
from sdlora.image_metadata.reader import parse_infotext
from sdlora.image_metadata.to_request import request_of
from sdlora.inference.engine import render
from sdlora.inference.image_pipeline import ImageDone, ImagePipeline
from sdlora.inference.image_writer import parameters
from sdlora.lora.library.library import Library
from sdlora.models.registry import model_facts, open_family
from sdlora.settings.image_request import ImageRequest
from sdlora.upscalers.compact import CompactLayout, CompactUpscaler, read_compact, write_compact
from sdlora.upscalers.files import default_upscaler
from sdlora.upscalers.upscale import Upscaler
from sdlora.workspace import STARTER_MODEL, Workspace
from tiny import tiny

CPU = torch.device("cpu")
# of realesr-general-x4v3, realesr-animevideov3 and the starter's own
PUBLIC = {"general": (64, 32, 4), "anime": (64, 16, 4), "starter": (32, 8, 2)}


def public_file(features: int, convolutions: int, scale: int, seed: int = 0) -> dict[str, Tensor]:
    """Tensors under the names of the public files: body.0 ... body.{2n+2}, PReLU at odd numbers."""
    rng, last = torch.Generator().manual_seed(seed), 2 * convolutions + 2
    tensors: dict[str, Tensor] = {}
    for place in range(last + 1):
        if place % 2:
            tensors[f"body.{place}.weight"] = torch.rand(features, generator=rng) / 2
            continue
        outputs = 3 * scale**2 if place == last else features
        inputs = 3 if place == 0 else features
        weight = torch.randn(outputs, inputs, 3, 3, generator=rng) * (2 / inputs / 9) ** 0.5
        tensors[f"body.{place}.weight"] = weight
        tensors[f"body.{place}.bias"] = torch.randn(outputs, generator=rng) * 0.02
    return tensors


def by_formula(tensors: dict[str, Tensor], pixels: Tensor, scale: int) -> Tensor:
    """The picture that a file makes, layer by layer as Real-ESRGAN describes it."""
    layers = sorted({int(name.split(".")[1]) for name in tensors})
    x = pixels
    for place in layers:
        weight = tensors[f"body.{place}.weight"].double()
        if place % 2:
            x = torch.where(x > 0, x, x * weight[:, None, None])
        else:
            x = functional.conv2d(x, weight, tensors[f"body.{place}.bias"].double(), padding=1)
    batch, _, height, width = x.shape
    x = x.reshape(batch, 3, scale, scale, height, width).permute(0, 1, 4, 2, 5, 3)
    x = x.reshape(batch, 3, height * scale, width * scale)
    return x + pixels.repeat_interleave(scale, 2).repeat_interleave(scale, 3)


def noisy_picture(width: int, height: int) -> Image.Image:
    levels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels)


@pytest.mark.parametrize("prefix", ["", "params.", "params_ema."])
@pytest.mark.parametrize("name", PUBLIC)
def test_public_files_are_read_by_their_shapes(tmp_path: Path, name: str, prefix: str) -> None:
    features, convolutions, scale = PUBLIC[name]
    tensors = public_file(features, convolutions, scale)
    path = tmp_path / f"{name}.safetensors"
    save_file({prefix + key: value.half() for key, value in tensors.items()}, path)
    network = read_compact(path)
    assert network.layout == CompactLayout(features, convolutions, scale)
    pixels = torch.rand(1, 3, 9, 7, generator=torch.Generator().manual_seed(1))
    half = {key: value.half() for key, value in tensors.items()}
    torch.testing.assert_close(
        network(pixels).double(), by_formula(half, pixels.double(), scale), rtol=1e-3, atol=1e-3
    )


def test_averaged_weights_win_over_the_others(tmp_path: Path) -> None:
    one, other = (public_file(4, 1, 2, seed) for seed in (0, 1))
    both = {f"params.{k}": v for k, v in one.items()} | {
        f"params_ema.{k}": v for k, v in other.items()
    }
    save_file(both, tmp_path / "both.safetensors")
    read = read_compact(tmp_path / "both.safetensors").state_dict()
    assert all(torch.equal(read[key], value) for key, value in other.items())


def test_a_written_file_is_flat_and_the_same_again(tmp_path: Path) -> None:
    network, path = CompactUpscaler(CompactLayout(8, 2, 2)), tmp_path / "new" / "2x.safetensors"
    write_compact(network, path, torch.float32)
    assert set(load_file(path)) == set(public_file(8, 2, 2))
    again = read_compact(path).state_dict()
    assert all(torch.equal(again[key], value) for key, value in network.state_dict().items())


def damaged(**changes: Tensor | None) -> dict[str, Tensor]:
    tensors = {**public_file(8, 2, 2), **{k.replace("_", "."): v for k, v in changes.items()}}
    return {key: value for key, value in tensors.items() if value is not None}


@pytest.mark.parametrize(
    "tensors",
    [
        {"model.0.weight": torch.ones(64, 3, 3, 3)},  # ESRGAN
        {},
        damaged(body_1_weight=None),
        damaged(body_4_weight=torch.ones(8, 8, 5, 5)),
        damaged(body_6_weight=torch.ones(7, 8, 3, 3), body_6_bias=torch.ones(7)),
        damaged(body_0_weight=torch.ones(8, 1, 3, 3)),
        damaged(body_0_weight=torch.tensor(1.0)),
        damaged(body_9_weight=torch.ones(8)),
    ],
)
def test_what_is_not_compact_is_refused(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    with pytest.raises(ModelError, match=r"x.safetensors is not an upscaler of the Compact kind"):
        read_compact(path)


def test_files_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    pickle = tmp_path / "realesr-general-x4v3.pth"
    pickle.write_bytes(b"\x80\x02")
    with pytest.raises(ModelError, match="only .safetensors files are"):
        read_compact(pickle)
    with pytest.raises(ModelError, match="cannot be read"):
        read_compact(tmp_path / "gone.safetensors")
    (tmp_path / "short.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0{}")
    with pytest.raises(ModelError, match="is damaged"):
        read_compact(tmp_path / "short.safetensors")


@pytest.mark.parametrize(("width", "height", "tile"), [(50, 37, 16), (33, 64, 20), (16, 16, 16)])
def test_tiles_make_the_whole_picture(width: int, height: int, tile: int) -> None:
    network = CompactUpscaler(CompactLayout(8, 3, 2)).eval()
    network.load_state_dict(public_file(8, 3, 2))
    upscaler, image = Upscaler("x", network, CPU), noisy_picture(width, height)
    whole, tiled = (np.asarray(upscaler.enlarge(image, size), int) for size in (1000, tile))
    assert whole.shape == (height * 2, width * 2, 3)
    assert np.abs(whole - tiled).max() <= 1
    levels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].double() / 255
    exact = by_formula(public_file(8, 3, 2), levels, 2)[0].permute(1, 2, 0).numpy()
    assert np.abs(whole - (exact * 255).round().clip(0, 255)).max() <= 1


@pytest.fixture
def upscaled(tmp_path: Path) -> Path:
    """A tiny model with an upscaler beside it."""
    folder = tmp_path / "tiny"
    shutil.copytree(tiny("sd1"), folder)
    (folder / "upscaler").mkdir()
    save_file(public_file(4, 1, 2), folder / "upscaler" / "2x_tiny.safetensors")
    return folder


def asked(**values: Any) -> ImageRequest:
    request = {"prompt": "a cat", "seed": 7, "steps": 2, "width": 64, "height": 72}
    return ImageRequest.from_values({**request, **values})


def test_a_model_with_an_upscaler_uses_it_last(upscaled: Path) -> None:
    family = open_family(str(upscaled), torch.float32, CPU)
    pipeline = ImagePipeline(family, Library(()))
    [native] = render(family, asked(upscaler="none"))[0]
    plan = pipeline.plan(asked())
    [done] = [event for event in pipeline.generate(plan) if isinstance(event, ImageDone)]
    assert native.size == (64, 72) and done.image.size == (128, 144)
    upscaler = Upscaler.from_file(upscaled / "upscaler" / "2x_tiny.safetensors", CPU)
    assert done.image.tobytes() == upscaler.enlarge(native).tobytes()
    assert [pipeline.plan(asked(upscaler="none")).upscaler, plan.problems] == [None, []]


def test_hires_fix_comes_before_the_upscaler(upscaled: Path) -> None:
    family = open_family(str(upscaled), torch.float32, CPU)
    twice = asked(width=None, height=64, hires_scale=1.5, hires_steps=1)
    plan = ImagePipeline(family, Library(())).plan(twice)
    [image] = render(family, twice)[0]
    first = family.resolution
    assert image.size == (round(first * 1.5) * 2, 192)
    fields = parse_infotext(parameters(plan, 0, image.size)).fields
    expected = {"Size": f"{first}x64", "Hires upscale": "1.5", "Postprocess upscale by": "2"}
    assert expected | {"Postprocess upscaler": "2x_tiny"} | fields == fields


def test_a_model_without_an_upscaler_keeps_its_size() -> None:
    family = open_family(str(tiny("sd1")), torch.float32, CPU)
    plan = ImagePipeline(family, Library(())).plan(asked())
    assert plan.upscaler is None and not plan.problems
    assert "Postprocess" not in parameters(plan, 0, (64, 72))
    assert model_facts(tiny("sd1")).upscaler == ""


def test_a_damaged_upscaler_is_told_and_the_image_is_made(upscaled: Path) -> None:
    save_file({"x": torch.ones(1)}, upscaled / "upscaler" / "2x_tiny.safetensors")
    family = open_family(str(upscaled), torch.float32, CPU)
    [image], report = render(family, asked())
    assert image.size == (64, 72)
    assert "2x_tiny.safetensors is not an upscaler" in report["problems"][0]


def test_a_saved_model_keeps_its_upscaler(upscaled: Path, tmp_path: Path) -> None:
    family = open_family(str(upscaled), torch.float32, CPU)
    family.save(tmp_path / "copy")
    copied = default_upscaler(tmp_path / "copy")
    assert copied and copied.read_bytes() == (upscaled / "upscaler" / copied.name).read_bytes()
    assert model_facts(tmp_path / "copy").upscaler == "2x_tiny"


@pytest.mark.parametrize(
    ("text", "expected", "problem"),
    [
        ("Postprocess upscale by: 2, Postprocess upscaler: 2x_tiny", "auto", ""),
        ("Postprocess upscale by: 4, Postprocess upscaler: R-ESRGAN 4x+", "none", "R-ESRGAN 4x+"),
        ("Version: sdlora 0.3.0", "none", ""),
        ("Version: v1.10.1", None, ""),
    ],
)
def test_the_upscaler_of_a_picture_is_restored(
    upscaled: Path, tmp_path: Path, text: str, expected: str | None, problem: str
) -> None:
    space = Workspace.open(tmp_path / "space")
    (space.models / "tiny").symlink_to(upscaled)
    recalled = parse_infotext(f"a cat\nSteps: 2, Seed: 7, Size: 64x64, Model: tiny, {text}")
    values, problems = request_of(recalled, Library(()), space)
    assert values.get("upscaler") == expected and values["width"] == 64
    assert [problem in message for message in problems] == [True] * bool(problem)


def test_a_picture_of_before_upscalers_is_made_again_without(tmp_path: Path) -> None:
    space = Workspace.open(tmp_path)
    record = {"prompt_rules": 2, "request": {"prompt": "a cat"}, "image": {"seed": 1}}
    values, _ = request_of(ImageMetadata(details=record), Library(()), space)
    assert values["upscaler"] == "none"


def test_the_starter_brings_one_of_twice_its_size() -> None:
    path = default_upscaler(STARTER_MODEL)
    assert path and path.stat().st_size < 400_000
    assert read_compact(path).layout == CompactLayout(*PUBLIC["starter"])
    assert model_facts(STARTER_MODEL).upscaler == path.stem
