"""Memory predicted from headers, against what opened models, adapters and full sizes have."""

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_checkpoints
from benchmarks.open_checkpoint import write_sparse
from sdlora.adapters import attach
from sdlora.events import Warned
from sdlora.models.frozen_weights import held_weights
from sdlora.models.options import ModelOptions
from sdlora.models.registry import open_family
from sdlora.models.weight_formats import FORMATS
from sdlora.settings.model import BasePrecision
from sdlora.settings.train import TrainSettings
from sdlora.training import train as train_page
from sdlora.training.memory_prediction import CONTEXT_BYTES, MemoryPrediction, predict_memory
from sdlora.workspace import Workspace
from tiny import CPU, tiny
from training_runs import result_of

GIB = 2**30


def settings(**values: Any) -> TrainSettings:
    return TrainSettings(data="x", name="x", **values)


def predicted(source: str, itemsize: int = 2, **values: Any) -> MemoryPrediction:
    found = predict_memory(settings(**values), source, itemsize, on_gpu=False)
    assert found is not None
    return found


_FILES = [(kind, True) for kind in tiny_checkpoints.KINDS]
_FOLDERS = [(kind, False) for kind in ("sd1", "sdxl", "sd3", "flux")]
SOURCES = [
    pytest.param(kind, is_file, precision, id=f"{kind}, {is_file=}, {precision}")
    for (kind, is_file), precision in zip([*_FILES, *_FOLDERS], cycle(FORMATS), strict=False)
]


@pytest.mark.parametrize(("kind", "is_file", "precision"), SOURCES)
def test_weights_and_adapter_are_those_of_the_open_model(
    kind: str, is_file: bool, precision: BasePrecision
) -> None:
    source = str(tiny_checkpoints.checkpoint(kind) if is_file else tiny(kind))
    family = open_family(source, torch.bfloat16, CPU, ModelOptions(base_precision=precision))
    held = held_weights(family.denoiser)
    assert held is not None
    asked = {"rank": 4, "targets": ("attention", "feed_forward")}
    small, full = predicted(source, base_precision=precision, **asked), predicted(source, **asked)
    assert (small.weights, full.weights) == (held.bytes, held.full_bytes)
    groups = attach(family, settings(**asked))
    learnt = sum(p.numel() for group in groups for p in group.parameters)
    assert small.adapter == full.adapter == 16 * learnt  # weight, gradient, AdamW's two
    assert predicted(source, optimizer="adamw8bit", **asked).adapter == 10 * learnt
    assert full.activations is None and "activations not counted" in str(full)


@pytest.mark.parametrize("precision", ["full", "int8", "nf4"])
@pytest.mark.parametrize(("kind", "is_file"), [*_FILES, *_FOLDERS])
def test_streamed_weights_are_those_that_stay_and_the_buffers(
    kind: str, is_file: bool, precision: Any
) -> None:
    source = str(tiny_checkpoints.checkpoint(kind) if is_file else tiny(kind))
    options = ModelOptions(base_precision=precision, stream_blocks=1.0)
    family = open_family(source, torch.bfloat16, CPU, options)
    streaming = family.streaming
    assert streaming is not None
    buffers = {buffer.memory.untyped_storage().data_ptr() for buffer in streaming._buffers}
    masters = {block.master.untyped_storage().data_ptr() for block in streaming._blocks}
    tensors = (*family.denoiser.parameters(), *family.denoiser.buffers())
    staying = [t for t in tensors if t.untyped_storage().data_ptr() not in buffers | masters]
    found = sum(t.nbytes for t in staying) + sum(b.memory.nbytes for b in streaming._buffers)
    expected = predicted(source, base_precision=precision, stream_blocks=1.0).weights
    aligned = 2 * 256 * max(len(block.places) for block in streaming._blocks)
    assert expected <= found <= expected + aligned
    every = predicted(source, base_precision=precision).weights
    half = predicted(source, base_precision=precision, stream_blocks=0.5).weights
    assert expected < half
    assert expected < every or len(streaming._blocks) <= 3  # tiny ones have few


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Full-size checkpoints of zeros that take no room."""
    folder, found = tmp_path_factory.mktemp("sparse"), {}
    for kind in ("sd1", "sdxl"):
        write_sparse(kind, folder / f"{kind}.safetensors")
        found[kind] = str(folder / f"{kind}.safetensors")
    yield found
    for path in folder.iterdir():
        path.unlink()


def test_full_sizes_are_those_that_were_measured(sparse: dict[str, str]) -> None:
    """GiB of the denoiser as usual and in int8, by diffusers' own modules: 1.6 and 1.35; 4.8, 2.7
    with the linear layers alone. nf4 has 4.5 bits where int8 has 8."""
    for kind, full, small in (("sd1", 1.6, 1.35), ("sdxl", 4.8, 2.7)):
        whole = predicted(sparse[kind]).weights
        held = predicted(sparse[kind], base_precision="int8").weights
        least = predicted(sparse[kind], base_precision="nf4").weights
        assert whole / GIB == pytest.approx(full, abs=0.06)
        assert held / GIB == pytest.approx(small, abs=0.06)
        assert (whole - least) / (whole - held) == pytest.approx(11.5 / 8, rel=0.01)


def test_activations_scale_with_pixels_pictures_and_bits(sparse: dict[str, str]) -> None:
    plain = predicted(sparse["sdxl"], batch_size=1)
    assert plain.activations == round(6.2 * GIB)  # its own resolution
    more = predicted(sparse["sdxl"], itemsize=4, batch_size=3, resolution=512)
    assert more.activations == round(6.2 * GIB * 3 / 4 * 2)
    checked = predicted(sparse["sdxl"], batch_size=1, gradient_checkpointing=True)
    assert checked.activations == pytest.approx((0.22 + 2 * 6.2 / 70) * GIB, abs=1)
    assert predicted(sparse["sdxl"], offload=True).activations == 0
    assert plain.total == plain.weights + plain.adapter + plain.activations
    on_gpu = predict_memory(settings(batch_size=1), sparse["sdxl"], 2, on_gpu=True)
    assert on_gpu is not None and on_gpu.total == plain.total + CONTEXT_BYTES


def test_a_model_that_is_not_here_is_not_predicted() -> None:
    assert predict_memory(settings(), "someone/model", 2, on_gpu=True) is None


def test_what_cannot_fit_is_told_before_it_is_loaded(
    sparse: dict[str, str], workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = Workspace.open(workspace)
    for free, warns in ((8.0, True), (80.0, False)):
        monkeypatch.setattr(train_page, "free_memory_gib", lambda _, free=free: free)
        asked = settings(model=sparse["sdxl"], memory="high")
        events = list(train_page.plan_training(asked, space, torch.bfloat16, CPU))
        assert bool(events) == warns
        for event in events:
            assert isinstance(event, Warned) and "8.0 GiB are free" in event.message
        plan = result_of(train_page.plan_training(asked, space, torch.bfloat16, CPU))
        assert " GiB or more: weights 4.8 GiB" in plan.details["predicted memory"]
