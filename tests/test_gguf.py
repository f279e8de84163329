"""Base models in GGUF files: opened as their safetensors files are, or refused in words."""

import socket
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor

import tiny_gguf
from sdlora.assets.checkpoints import CheckpointLibrary
from sdlora.assets.convert import converted
from sdlora.errors import ModelError
from sdlora.events import SampleReady, Started, Step
from sdlora.inference.engine import Engine
from sdlora.messages import COMMAND
from sdlora.models import gguf_tensors
from sdlora.models.base import ModelFamily
from sdlora.models.check import check_model
from sdlora.models.checkpoint_facts import checkpoint_facts
from sdlora.models.checkpoint_header import read_checkpoint_header
from sdlora.models.frozen_weights import FrozenLinear, quantize
from sdlora.models.gguf_header import BY_NAME
from sdlora.models.options import DEFAULT_OPTIONS, ModelOptions
from sdlora.models.registry import detect_family, open_family, tensor_shapes
from sdlora.models.single_file import single_file
from sdlora.models.tensor_source import open_tensors
from sdlora.settings.image_request import ImageRequest
from sdlora.settings.train import TrainSettings
from sdlora.training.memory_prediction import predict_memory
from sdlora.training.startable import check_startable
from sdlora.workspace import STARTER_MODEL, Workspace
from tiny import CPU
from tiny_checkpoints import KINDS, checkpoint, tensors, write
from training_runs import Run
from webui.model_cards import model_advice

gguf: Any = tiny_gguf.gguf  # without the package, that module is skipped and this one with it
UNET, VAE = "model.diffusion_model.", "first_stage_model."
ALL_FORMATS = [kind.name for kind in gguf.quants._type_traits]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here may ask for anything."""

    def refuse(*_: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)


def opened(path: Path, options: ModelOptions = DEFAULT_OPTIONS) -> ModelFamily:
    return open_family(str(path), torch.float16, CPU, options)


def assert_holds(family: ModelFamily, expected: dict[str, Tensor]) -> None:
    held = single_file(family)
    assert held
    for name, tensor in held.items():
        assert torch.equal(tensor, expected[name]), name
    for part in (family.denoiser, family.pipeline.vae, *family.text_encoders.values()):
        assert not any(t.is_meta for t in (*part.parameters(), *part.buffers()))


def denoiser_alone(kind: str) -> dict[str, Tensor]:
    found = tensors(kind).items()
    return {n.removeprefix(UNET): t for n, t in found if n.startswith(UNET)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_denoiser_for_comfyui_opens_with_the_parts_of_another_file(
    kind: str, tmp_path: Path
) -> None:
    path, whole = tmp_path / "unet-Q8_0.gguf", str(checkpoint(kind))
    read = tiny_gguf.write_for_comfyui(path, denoiser_alone(kind), arch=kind)
    assert any(not torch.equal(read[n], t) for n, t in denoiser_alone(kind).items())
    assert detect_family(path) == kind
    with pytest.raises(ModelError, match="holds no text encoder.* and no VAE.*text_encoder"):
        opened(path)
    family = opened(path, ModelOptions(vae=whole, text_encoder=whole))
    assert_holds(family, {**tensors(kind), **{UNET + n: t for n, t in read.items()}})
    assert family.details["weights"] == "Q8_0, dequantised to float16"


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_file_of_stable_diffusion_cpp_opens(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "whole.gguf"
    read = tiny_gguf.write_by_stable_diffusion_cpp(path, tensors(kind), tiny_gguf.Q4_0)
    assert_holds(opened(path), read)
    assert check_model(path)[1] == check_model(checkpoint(kind))[1]
    assert tensor_shapes(path) == tensor_shapes(checkpoint(kind))


def test_int8_holds_the_dequantised_weights(tmp_path: Path) -> None:
    path = tmp_path / "whole.gguf"
    read = tiny_gguf.write_by_stable_diffusion_cpp(path, tensors("sd1"))
    family = opened(path, ModelOptions(base_precision="int8"))
    layer = family.denoiser.mid_block.attentions[0].transformer_blocks[0].attn2.to_q
    name = UNET + "middle_block.1.transformer_blocks.0.attn2.to_q.weight"
    assert isinstance(layer, FrozenLinear)
    assert torch.equal(layer.held, quantize(read[name], "int8")[0])
    assert "int8" in family.details["frozen weights"]


@pytest.mark.parametrize("values_at_once", [2**18, 512])
@pytest.mark.parametrize("name", ["F32", "F16", *ALL_FORMATS])
def test_every_format_is_read_as_the_package_reads_it(
    name: str, values_at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = gguf.GGMLQuantizationType[name]
    values, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = torch.randint(0, 256, (7, 256 * 3 // values * size), dtype=torch.uint8).numpy()
    if values == 1:
        blocks = blocks.view({"F32": "float32", "F16": "float16"}.get(name, "uint8"))
    tiny_gguf.write_bytes(tmp_path / "one.gguf", "x", blocks, kind)
    monkeypatch.setattr(gguf_tensors, "VALUES_AT_ONCE", values_at_once)
    with open_tensors(tmp_path / "one.gguf") as source:
        tensor = source.read("x", torch.float32)
    with numpy.errstate(all="ignore"):  # infinite scales, and those that are no number
        expected = torch.from_numpy(gguf.quants.dequantize(blocks, kind).copy())
    assert tensor.shape == (7, 768)
    torch.testing.assert_close(tensor, expected, rtol=0, atol=0, equal_nan=True)


def test_sizes_of_blocks_are_the_packages() -> None:
    sizes = {kind.name: size for kind, size in gguf.GGML_QUANT_SIZES.items()}
    assert {name: (row.values, row.bytes) for name, row in BY_NAME.items()}.items() <= sizes.items()
    assert BY_NAME.keys() >= set(ALL_FORMATS)


def test_without_the_package_it_is_asked_for_and_plain_files_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_gguf.write_by_stable_diffusion_cpp(tmp_path / "q.gguf", tensors("sd1"))
    plain = tiny_gguf.write_by_stable_diffusion_cpp(
        tmp_path / "f16.gguf", tensors("sd1"), tiny_gguf.F16
    )
    monkeypatch.setitem(sys.modules, "gguf.quants", None)
    sentence = "as Q8_0, .* needs gguf: run `pip install gguf`"
    with pytest.raises(ModelError, match=sentence):
        opened(tmp_path / "q.gguf")
    family = opened(tmp_path / "f16.gguf")
    assert_holds(family, plain)
    assert "weights" not in family.details
    monkeypatch.setitem(sys.modules, "gguf", None)
    asked = {"prompt": "a cat", "model": str(tmp_path / "q.gguf")}
    with pytest.raises(ModelError, match=sentence):
        check_startable(ImageRequest.from_values(asked), Workspace(tmp_path))
    asked["model"] = str(tmp_path / "f16.gguf")
    check_startable(ImageRequest.from_values(asked), Workspace(tmp_path))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({UNET + "out.0.weight": None}, "1 tensors of its denoiser are missing"),
        ({UNET + "out.0.weight": torch.ones(31)}, "of its denoiser have another shape"),
        ({UNET + "odd.weight": torch.ones(31)}, "1 tensors of its denoiser are unknown"),
    ],
)
def test_a_file_that_is_not_complete_is_refused_by_name(
    change: dict[str, Tensor | None], sentence: str, tmp_path: Path
) -> None:
    found = {n: t for n, t in {**tensors("sd1"), **change}.items() if t is not None}
    tiny_gguf.write_by_stable_diffusion_cpp(tmp_path / "model.gguf", found)
    for use in (opened, check_model):
        with pytest.raises(ModelError, match=sentence):
            use(tmp_path / "model.gguf")


def test_a_model_of_another_architecture_is_named(tmp_path: Path) -> None:
    found = {"double_blocks.0.img_attn.proj.weight": torch.ones(64, 64)}
    tiny_gguf.write_for_comfyui(tmp_path / "model.gguf", found, arch="flux")
    with pytest.raises(ModelError, match="is a model of the architecture 'flux'; GGUF files of"):
        opened(tmp_path / "model.gguf")


def test_a_vae_and_a_text_encoder_are_taken_from_gguf_files_too(tmp_path: Path) -> None:
    vae = {n.removeprefix(VAE): t for n, t in tensors("sd1").items() if n.startswith(VAE)}
    read = tiny_gguf.write_by_stable_diffusion_cpp(tmp_path / "vae.gguf", vae)
    other = tiny_gguf.write_by_stable_diffusion_cpp(tmp_path / "whole.gguf", tensors("sd1"))
    options = ModelOptions(
        vae=str(tmp_path / "vae.gguf"), text_encoder=str(tmp_path / "whole.gguf")
    )
    texts = {n: t for n, t in other.items() if n.startswith("cond_stage_model.")}
    expected = {**tensors("sd1"), **texts, **{VAE + n: t for n, t in read.items()}}
    assert_holds(opened(checkpoint("sd1"), options), expected)


def test_the_library_lists_and_finds_them(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.models.mkdir(parents=True)
    tiny_gguf.write_for_comfyui(workspace.models / "ink-Q8_0.gguf", denoiser_alone("sd1"))
    write(workspace.models / "ink.safetensors", tensors("sd1"))
    tiny_gguf.write_by_stable_diffusion_cpp(workspace.models / "ink.gguf", tensors("sd1"))
    (workspace.models / "broken.gguf").write_bytes(b"GGUF" + b"\3" * 99)
    library = CheckpointLibrary(workspace)
    entries = {entry.path.name: entry for entry in library.list()}
    alone, whole = entries["ink-Q8_0.gguf"], entries["ink.gguf"]
    assert alone.info.dtype == whole.info.dtype == "Q8_0"
    assert alone.missing_parts() == ["VAE", "text encoder"] and not whole.missing_parts()
    assert "--base-precision = int8" in alone.info.notes[0].on(COMMAND)
    assert any("Base model precision = int8" in line for line in model_advice(alone))
    assert entries["ink.safetensors"].name == "ink" and not entries["ink.safetensors"].info.notes
    assert whole.name == "models/ink"
    assert "version 50529027" in str(entries["broken.gguf"].problem)
    assert {"ink", "models/ink", "ink-Q8_0"} <= {*workspace.model_names()}
    assert workspace.model_source("ink-Q8_0") == workspace.model_source("ink-Q8_0.gguf")
    assert workspace.model_source("ink.gguf") == str(whole.path)
    known = library.hashed(alone)
    assert library.find_by_hash(known.autov2) == (known, False)


def test_memory_is_predicted_as_for_the_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    tiny_gguf.write_for_comfyui(path, denoiser_alone("sdxl"), arch="sdxl")
    for precision in ("full", "int8"):
        settings = TrainSettings(data="x", name="x", base_precision=precision)
        predicted = [predict_memory(settings, str(p), 2, True) for p in (path, checkpoint("sdxl"))]
        assert predicted[0] == predicted[1] is not None


def test_it_is_converted_to_a_safetensors_file(tmp_path: Path) -> None:
    read = tiny_gguf.write_by_stable_diffusion_cpp(tmp_path / "xl.gguf", tensors("sdxl"))
    output = tmp_path / "xl.safetensors"
    assert converted(tmp_path / "xl.gguf", output, None) is torch.float16
    header = read_checkpoint_header(output)
    assert checkpoint_facts(header).dtype == "F16"
    assert header.shapes == {name: tuple(tensor.shape) for name, tensor in read.items()}
    assert_holds(opened(output), read)


def test_it_is_trained_on_and_makes_the_pictures_of_its_dequantised_weights(
    run: Run, engine: Engine, space: Workspace
) -> None:
    path = space.models / "drawn.gguf"
    starter = open_family(str(STARTER_MODEL), torch.float32, CPU)
    tiny_gguf.write_by_stable_diffusion_cpp(path, single_file(starter))
    dequantized = single_file(open_family(str(path), torch.float32, CPU))
    write(space.models / "same.safetensors", dequantized)
    events = run(model="drawn", steps=1, warmup_steps=0, resolution=64)
    (started,) = (event for event in events if isinstance(event, Started))
    assert started.details["weights"] == "Q8_0, dequantised to float32"
    assert [step.loss is not None for step in events if isinstance(step, Step)] == [True]
    pictures = []
    for model in ("same", "drawn"):
        asked = {"prompt": "a red ball <lora:zibo:1>", "steps": 2, "seed": 7, "model": model}
        done = [*engine.generate(ImageRequest.from_values(asked))]
        (file,) = (event.path for event in done if isinstance(event, SampleReady))
        with Image.open(file) as image:
            pictures.append(numpy.asarray(image, dtype=float))
    assert (pictures[0] == pictures[1]).all()
