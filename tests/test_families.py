"""One contract for every family, and what recognising and opening a model must refuse."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError
from torch import Tensor
from torch.nn.functional import mse_loss

from launch import ROOT
from sdlora.adapters import attach, detach, extract_lora
from sdlora.errors import ModelError
from sdlora.lora.format.file import read_lora, write_lora
from sdlora.models import hub, registry
from sdlora.models.base import Family
from sdlora.models.registry import FAMILIES, detect_family, open_family
from sdlora.settings.train import TrainSettings
from sdlora.workspace import STARTER_MODEL, Workspace
from tiny import CPU, KINDS, PIXELS, open_tiny, tiny, weights_hash

SETTINGS = TrainSettings(
    data="x", name="x", rank=4, alpha=4, conv_rank=2, train_text_encoder=True,
    targets=("attention", "feed_forward", "conv"),
)  # fmt: skip


@dataclass
class Some:
    """A batch of two."""

    cond: dict[str, Tensor]
    sizes: Tensor


@pytest.fixture(params=list(FAMILIES), scope="module")
def family(request: pytest.FixtureRequest) -> Family:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "STARTER_MODEL", tiny("starter"))
        return open_tiny(request.param)


def test_table_and_tiny_models_agree() -> None:
    assert set(FAMILIES) == set(KINDS)


def test_family_is_recognised(family: Family, request: pytest.FixtureRequest) -> None:
    assert family.name == request.node.callspec.params["family"]
    assert family.resolution == PIXELS
    assert not any(p.requires_grad for part in family.parts.values() for p in part.parameters())


def test_encode_then_predict(family: Family, tmp_path: Path) -> None:
    """Shapes agree, the loss falls, what is learnt survives the disk, the base is untouched."""
    before = weights_hash(family)
    rng = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, 3, PIXELS, PIXELS, generator=rng) * 2 - 1
    latents = family.encode_images(pixels)
    channels = family.denoiser.config.in_channels
    assert latents.shape == (2, channels, PIXELS // 8, PIXELS // 8)
    assert torch.equal(latents, family.encode_images(pixels))

    learning = attach(family, SETTINGS)
    optimizer = torch.optim.AdamW([p for its in learning for p in its.parameters], 5e-3)
    eps, t = torch.randn(latents.shape, generator=rng), torch.tensor([100, 700])
    sizes = torch.tensor([[64, 64, 0, 0, 64, 64]] * 2)
    losses = []
    for _ in range(6):
        cond = family.encode_prompts(["a cat", ""])
        assert all(len(value) == 2 for value in cond.values())
        predicted = family.predict(family.noise.add_noise(latents, eps, t), t, Some(cond, sizes))
        assert predicted.shape == latents.shape
        loss = mse_loss(predicted.float(), family.noise.target(latents, eps, t))
        optimizer.zero_grad()
        loss.backward()
        # of SDXL's first text encoder the last layer is not read
        for its in learning:
            seen = [p.grad is not None for p in its.parameters]
            assert all(seen) if its.part == "denoiser" else any(seen)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.98 * losses[0]

    learnt = extract_lora(family)
    detach(family)
    assert weights_hash(family) == before
    again = read_lora(write_lora(learnt, tmp_path / "a.safetensors", torch.float32))
    assert set(again.layers) == set(learnt.layers) <= set(family.module_names())
    for name, adapter in learnt.layers.items():
        weight = torch.empty(adapter.shape)
        torch.testing.assert_close(again.layers[name].delta(weight), adapter.delta(weight))


def test_rows_of_a_batch_do_not_touch(family: Family) -> None:
    """What training caches per caption is what a batch gives."""
    together = family.encode_prompts(["a cat", "two dogs"])
    alone = family.encode_prompts(["two dogs"])
    for name, value in together.items():
        torch.testing.assert_close(value[1:], alone[name])


def test_every_group_has_layers_and_no_layer_two(family: Family) -> None:
    groups = family.lora_targets(("attention", "feed_forward", "conv"), text_encoder=True)
    assert set(groups) == set(family.parts)
    paths = [(part, path) for part, its in groups.items() for some in its.values() for path in some]
    assert len(paths) == len(set(paths)) and set(paths) <= set(family.module_names().values())
    assert all(some for its in groups.values() for some in its.values())


def test_prompts_beyond_the_limit(family: Family) -> None:
    assert family.cut_text("x" * 75) == ""
    assert family.cut_text("x" * 75 + " a cat") == "a cat"


def test_half_precision_learns_in_float32() -> None:
    family = open_tiny("sd1", torch.bfloat16)
    parameters = [p for its in attach(family, SETTINGS) for p in its.parameters]
    assert {p.dtype for p in parameters} == {torch.float32}
    cond = family.encode_prompts(["a cat"])
    noisy, t = torch.randn(1, 4, 8, 8), torch.tensor([5])
    family.predict(noisy, t, Some(cond, torch.zeros(1, 6))).float().mean().backward()
    assert {p.grad.dtype for p in parameters if p.grad is not None} == {torch.float32}


def copy(kind: str, folder: Path) -> Path:
    return Path(shutil.copytree(tiny(kind), folder / "model"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")


@pytest.mark.parametrize(
    ("width", "prediction", "name"),
    [
        (768, "epsilon", "sd1"),
        (768, "v_prediction", "sd1"),
        (1024, "epsilon", "sd2"),
        (1024, "v_prediction", "sd2"),
        (16, "epsilon", "sd1"),
        (16, "v_prediction", "sd2"),
    ],
)
def test_detect_by_config(width: int, prediction: str, name: str, tmp_path: Path) -> None:
    folder = copy("sd1", tmp_path)
    edit(folder / "unet" / "config.json", cross_attention_dim=width)
    edit(folder / "scheduler" / "scheduler_config.json", prediction_type=prediction)
    assert detect_family(folder) == name


def test_a_model_made_from_the_starter_is_one(tmp_path: Path) -> None:
    """Its weights are others and it lies elsewhere; a LoRA of the starter model fits it."""
    family = open_family(str(STARTER_MODEL), torch.float32, CPU)
    shutil.copytree(STARTER_MODEL, tmp_path / "fused")
    config = tmp_path / "fused" / "unet" / "config.json"
    edit(config, _name_or_path="elsewhere", _diffusers_version="1.0", new_in_that_version=1)
    assert detect_family(tmp_path / "fused") == family.name == "starter"
    workspace = Workspace.open(tmp_path)
    (tmp_path / "fused").rename(tmp_path / "models" / "mine")
    assert workspace.preset_family("mine") == "starter"
    edit(tmp_path / "models" / "mine" / "unet" / "config.json", block_out_channels=[64, 96, 320])
    assert detect_family(tmp_path / "models" / "mine") == "sd1"
    assert workspace.preset_family("mine") == "sd1"


def test_a_model_with_its_guidance_distilled_is_refused(tmp_path: Path) -> None:
    folder = copy("sd1", tmp_path)
    edit(folder / "unet" / "config.json", time_cond_proj_dim=8)
    with pytest.raises(ModelError, match="guidance distilled"):
        detect_family(folder)


HOSTILE: dict[str, dict[str, Any]] = {
    "unknown pipeline": {"_class_name": "FluxPipeline"},
    "list of classes": {"_class_name": ["pipeline", "Evil"]},
    "own unet": {"unet": ["evil_module", "UNet2DConditionModel"]},
    "other unet": {"unet": ["diffusers", "DiffusionPipeline"]},
    "own text encoder": {"text_encoder": ["os", "system"]},
    "new part": {"extra": ["evil_module", "Evil"]},
    "scheduler elsewhere": {"scheduler": ["evil", "DDIMScheduler"]},
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_index_is_refused_unloaded(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy("sd1", tmp_path)
    (folder / "evil_module.py").write_text("raise SystemExit('ran')")
    edit(folder / "model_index.json", **HOSTILE[what])
    monkeypatch.syspath_prepend(folder)
    with pytest.raises(ModelError, match="are known|is not loaded"):
        open_family(str(folder), torch.float32, CPU)
    assert "evil_module" not in sys.modules


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_missing_part_is_named(part: str, tmp_path: Path) -> None:
    folder = copy("sd1", tmp_path)
    shutil.rmtree(folder / part)
    with pytest.raises(ModelError, match="model"):
        open_family(str(folder), torch.float32, CPU)


def test_pickled_weights_are_not_loaded(tmp_path: Path) -> None:
    folder = copy("sd1", tmp_path)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ModelError, match="cannot be opened"):
        open_family(str(folder), torch.float32, CPU)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    folder = copy("sd1", tmp_path)
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot be opened"):
        open_family(str(folder), torch.float32, CPU)


def test_hub_id_is_opened_at_the_commit_that_was_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def download(repository: str, **options: Any) -> str:
        asked.update(options, repository=repository)
        return str(tiny("sdxl"))

    index = tiny("sdxl") / "model_index.json"
    monkeypatch.setattr(hub, "hf_hub_download", lambda repository, file: str(index))
    monkeypatch.setattr("diffusers.StableDiffusionXLPipeline.download", download)
    assert open_family("someone/model", torch.float32, CPU).name == "sdxl"
    assert asked["repository"] == "someone/model" and asked["use_safetensors"]
    assert asked["revision"] == index.parent.name


@pytest.mark.parametrize(
    ("source", "error", "sentence"),
    [
        ("someone/model", None, "not on this computer"),  # the tests run with the hub off
        ("not an id", None, "is neither in models/"),
        ("a/b/c", None, "is neither in models/"),
        ("someone/model", RepositoryNotFoundError, "there is no model someone/model"),
        ("someone/model", GatedRepoError, "agree to its terms"),
        ("someone/model", EntryNotFoundError, "not a diffusers model"),
        ("someone/model", ConnectionResetError, "cannot be downloaded"),
    ],
)
def test_hub_errors_are_sentences(
    source: str, error: type[Exception] | None, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        assert error
        raise error.__new__(error, "told by the hub")

    if error:
        monkeypatch.setattr(hub, "hf_hub_download", fail)
    with pytest.raises(ModelError, match=sentence):
        open_family(source, torch.float32, CPU)


def test_not_models(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"x")
    for source, sentence in ((tmp_path, "not a diffusers model"), (file, "single file")):
        with pytest.raises(ModelError, match=sentence):
            open_family(str(source), torch.float32, CPU)
    (tmp_path / "model_index.json").write_text("{", "utf-8")
    with pytest.raises(ModelError, match="damaged"):
        detect_family(tmp_path)


def test_detecting_needs_no_torch() -> None:
    code = (
        "import sys; from sdlora.models.registry import detect_family\n"
        f"assert detect_family({str(tiny('sdxl'))!r}) == 'sdxl'\n"
        "sys.exit('torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
