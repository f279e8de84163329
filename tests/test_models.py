"""One contract for every family, and what recognising and opening a model must refuse."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError
from torch import Tensor
from torch.nn.functional import mse_loss

from launch import ROOT
from sdlora.adapters import attach, detach, extract_lora, match_layers
from sdlora.architectures import FAMILIES
from sdlora.errors import ModelError, SettingsError
from sdlora.inference.engine import render
from sdlora.inference.samplers import SAMPLERS
from sdlora.lora.format.file import read_lora, write_lora
from sdlora.lora.library.library import Library
from sdlora.models import hub, registry
from sdlora.models.base import ModelFamily, NetworkInputs
from sdlora.models.clip_family import ClipFamily
from sdlora.models.registry import detect_family, open_family, preset_family
from sdlora.settings.image_request import ImageRequest
from sdlora.settings.train import TrainSettings
from sdlora.training.latent_dataset import LatentBatch
from sdlora.training.loss import DiffusionLoss, loss_of
from sdlora.workspace import STARTER_MODEL, Workspace
from tiny import CPU, KINDS, PIXELS, TRANSFORMERS, open_tiny, tiny, tiny_lora, weights_hash

SETTINGS = TrainSettings(
    data="x", name="x", rank=4, alpha=4, conv_rank=2, train_text_encoder=True,
    targets=("attention", "feed_forward", "conv"),
)  # fmt: skip


@pytest.fixture(params=list(FAMILIES), scope="module")
def family(request: pytest.FixtureRequest) -> ModelFamily:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "STARTER_MODEL", tiny("starter"))
        return open_tiny(request.param)


def test_table_and_tiny_models_agree() -> None:
    assert set(FAMILIES) == {*KINDS, *TRANSFORMERS}


def test_family_is_recognised(family: ModelFamily, request: pytest.FixtureRequest) -> None:
    assert family.name == request.node.callspec.params["family"]
    assert family.resolution in (PIXELS, 1024)
    assert not any(
        p.requires_grad for part in family.components.values() for p in part.parameters()
    )


def test_encode_then_predict(family: ModelFamily, tmp_path: Path) -> None:
    """Shapes agree, the loss falls, what is learnt survives the disk, the base is untouched."""
    before = weights_hash(family)
    rng = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, 3, PIXELS, PIXELS, generator=rng) * 2 - 1
    latents = family.encode_images(pixels)
    assert latents.shape == (2, family.latent_channels, PIXELS // 8, PIXELS // 8)
    assert torch.equal(latents, family.encode_images(pixels))

    learning = attach(family, SETTINGS)
    optimizer = torch.optim.AdamW([p for its in learning for p in its.parameters], 5e-3)
    eps, t = torch.randn(latents.shape, generator=rng), torch.tensor([100, 700])
    sizes = torch.tensor([[64, 64, 0, 0, 64, 64]] * 2)
    losses = []
    for _ in range(6):
        texts = family.condition_on_size(family.encode_captions(["a cat", ""]), sizes)
        assert all(len(value) == 2 for value in texts.tensors.values())
        predicted = family.predict(family.noise.add_noise(latents, eps, t), t, texts)
        assert predicted.shape == latents.shape
        loss = mse_loss(predicted.float(), family.noise.target(latents, eps, t))
        optimizer.zero_grad()
        loss.backward()
        # of some text encoders the last layer, or all but the summary, is not read
        for its in learning:
            seen = [p.grad is not None for p in its.parameters]
            assert all(seen) if its.part == "denoiser" else any(seen)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.99 * losses[0]

    learnt = extract_lora(family)
    detach(family)
    assert weights_hash(family) == before
    again = read_lora(write_lora(learnt, tmp_path / "a.safetensors", torch.float32))
    assert set(again.layers) == set(learnt.layers)
    assert match_layers(again, family).unmatched == ()
    for name, adapter in learnt.layers.items():
        weight = torch.empty(adapter.shape)
        torch.testing.assert_close(again.layers[name].delta(weight), adapter.delta(weight))


def test_trained_lora_blends_into_images_and_goes_again(
    family: ModelFamily, tmp_path: Path
) -> None:
    """A LoRA of a training step, saved, changes an image by its tag; without it the bits of the
    base are back."""
    write_lora(tiny_lora(family, scale=0.3), tmp_path / "oil.safetensors", torch.float32)
    library, before = Library([tmp_path]), weights_hash(family)

    def image(prompt: str) -> np.ndarray:
        request = ImageRequest.from_values({
            "prompt": prompt, "seed": 3, "steps": 3, "width": PIXELS, "height": PIXELS,
        })  # fmt: skip
        images, report = render(family, request, library)
        assert not report["problems"]
        return np.asarray(images[0]).astype(int)

    plain, oil = image("a cat"), image("a cat <lora:oil:1>")
    assert plain.shape == (PIXELS, PIXELS, 3)
    assert np.abs(oil - plain).max() > 2
    moving = image("a cat <lora:oil:te=0:unet=0@0,1@1>")
    assert np.abs(moving - oil).max() > 0 and np.abs(moving - plain).max() > 0
    assert (image("a cat") == plain).all()
    assert weights_hash(family) == before


def test_training_and_loss_of_a_family(family: ModelFamily) -> None:
    """The step that `train` takes, by the family's own preset of noise."""
    flow = family.noise.prediction == "flow"
    settings = TrainSettings(
        data="x", name="x", rank=2, loss_weighting="flat" if flow else "min_snr",
        timestep_density="logit_normal" if flow else "uniform",
    )  # fmt: skip
    attach(family, settings)
    objective = DiffusionLoss.from_settings(settings, family.noise)
    latents = torch.randn(2, family.latent_channels, 8, 8)
    draw = objective.sample(latents.shape, torch.Generator().manual_seed(0))
    texts = family.encode_captions(["a cat", "two dogs"])
    batch = LatentBatch(latents, texts, torch.tensor([[64, 64, 0, 0, 64, 64]] * 2))
    losses = loss_of(family, batch, draw, objective)
    assert losses.shape == (2,) and losses.isfinite().all()
    # each row counts by itself
    torch.testing.assert_close(loss_of(family, batch[1:], draw[slice(1, 2)], objective), losses[1:])
    detach(family)


def test_first_latents_come_from_each_rows_generator(family: ModelFamily) -> None:
    def noise(*seeds: int) -> Tensor:
        dice = [torch.Generator().manual_seed(seed) for seed in seeds]
        return family.initial_latents((PIXELS, PIXELS), dice)

    both = noise(1, 2)
    assert both.shape == (2, family.latent_channels, PIXELS // 8, PIXELS // 8)
    assert torch.equal(both[1:], noise(2)) and both.std() == pytest.approx(1, abs=0.1)


def test_rows_of_a_batch_do_not_touch(family: ModelFamily) -> None:
    """What training caches per caption is what a batch gives."""
    together = family.encode_captions(["a cat", "two dogs"])
    alone = family.encode_captions(["two dogs"])
    for name, value in together.tensors.items():
        torch.testing.assert_close(value[1:], alone.tensors[name])
    joined = family.collate([family.encode_captions([text]) for text in ("a cat", "two dogs")])
    for name, value in together.tensors.items():
        torch.testing.assert_close(joined.tensors[name], value)


def test_every_group_has_layers_and_no_layer_two(family: ModelFamily) -> None:
    asked = tuple(family.spec.target_groups)
    groups = family.lora_targets(asked, text_encoder=True)
    assert set(groups) == set(family.components)
    paths = [(part, path) for part, its in groups.items() for some in its.values() for path in some]
    assert len(paths) == len(set(paths)) and set(paths) <= set(family.module_names().values())
    assert all(groups["denoiser"][group] for group in asked)
    assert all(groups[part]["text_encoder"] for part in family.components if part in ("te", "te1"))


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_beyond_the_limit(kind: str) -> None:
    family = open_tiny(kind)
    assert isinstance(family, ClipFamily)
    assert family.beyond_chunk("x" * 75) == ""
    assert family.beyond_chunk("x" * 75 + " a cat") == "a cat"


def test_what_a_flow_model_does_not_use_is_told() -> None:
    """Emphasis, a text beyond the encoder's end, a sampler of other noise, sizes between cells."""
    family = open_tiny("flux")
    asked = {
        "prompt": "a (cat:1.5) " + "x" * 600, "negative_prompt": "dull", "sampler": "euler_a",
        "width": 72, "height": 64, "clip_skip": 2, "zero_terminal_snr": True, "steps": 1,
    }  # fmt: skip
    images, report = render(family, ImageRequest.from_values(asked))
    assert images[0].size == (64, 64)
    told = " ".join(report["problems"])
    for words in (
        "emphasis such as", "does not read the end of the prompt", "sampler = euler_a",
        "72 x 64 pixels", "clip_skip = 2", "zero_terminal_snr", "negative prompt is not used",
    ):  # fmt: skip
        assert words in told, words
    both = {"prompt": "a cat AND fog", "negative_prompt": "dull", "steps": 1}
    small = {"width": PIXELS, "height": PIXELS, "sampler": "euler"}
    _, report = render(family, ImageRequest.from_values({**both, **small}))
    assert not report["problems"], "AND weighs its texts against the negative one"
    with pytest.raises(SettingsError, match="has no meaning for this model's noise"):
        DiffusionLoss.from_settings(TrainSettings(data="x", name="x"), family.noise)
    with pytest.raises(ModelError, match="takes no inputs beside its text"):
        latents = torch.zeros(1, family.latent_channels, 8, 8)
        text = family.encode_prompt("a")
        family.predict(latents, torch.tensor(1.0), text, None, NetworkInputs())


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_residuals_and_channels_reach_the_unet(kind: str) -> None:
    family = open_tiny(kind)
    sizes = torch.tensor([[64, 64, 0, 0, 64, 64]])
    text = family.condition_on_size(family.encode_prompt("a cat"), sizes)
    x, t = torch.randn(1, 4, 8, 8), torch.tensor(500)
    down: list[Tensor] = []
    unet = family.denoiser
    hooks = [unet.conv_in.register_forward_hook(lambda m, i, o: down.append(o))]
    hooks += [
        block.register_forward_hook(lambda m, i, o: down.extend(o[1])) for block in unet.down_blocks
    ]
    plain = family.predict(x, t, text)
    for hook in hooks:
        hook.remove()

    def with_residuals(value: float) -> Tensor:
        residuals = tuple(torch.full_like(state, value) for state in down)
        extras = NetworkInputs(None, residuals, torch.full_like(down[-1], value))
        return family.predict(x, t, text, None, extras)

    zero, one = with_residuals(0.0), with_residuals(1.0)
    torch.testing.assert_close(zero, plain)
    assert (one - plain).abs().max() > 1e-3
    with pytest.raises(RuntimeError, match="channels"):
        family.predict(x, t, text, None, NetworkInputs(extra_channels=torch.zeros(1, 5, 8, 8)))


@pytest.mark.parametrize("sampler", ["euler", "dpm++_2m", "unipc"])
@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_a_flow_models_plain_prompt_is_the_stock_picture(kind: str, sampler: str) -> None:
    """Euler to the bit; the solvers by the schedulers that diffusers has for flows."""
    family = open_tiny(kind)
    asked = {"prompt": "a cat", "sampler": sampler, "steps": 3, "seed": 7, "guidance": 3.5}
    [image], report = render(
        family, ImageRequest.from_values({**asked, "width": PIXELS, "height": PIXELS})
    )
    assert not report["problems"]
    pipeline = family.pipeline
    if sampler != "euler":
        scheduler, options = SAMPLERS[sampler].flow or (None, {})
        shift = {"flow_shift": 3.0} if kind == "sd3" else {"use_dynamic_shifting": True}
        pipeline.scheduler = scheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", **shift, **options
        )
    dice = torch.Generator().manual_seed(7)
    expected = pipeline(
        "a cat", generator=dice, num_inference_steps=3, guidance_scale=3.5, width=PIXELS,
        height=PIXELS,
    ).images[0]  # fmt: skip
    far = np.abs(np.asarray(image).astype(int) - np.asarray(expected).astype(int)).max()
    assert far == 0 if sampler == "euler" else far <= 1


def test_half_precision_learns_in_float32() -> None:
    family = open_tiny("sd1", torch.bfloat16)
    parameters = [p for its in attach(family, SETTINGS) for p in its.parameters]
    assert {p.dtype for p in parameters} == {torch.float32}
    text = family.encode_prompts(["a cat"])
    noisy, t = torch.randn(1, 4, 8, 8), torch.tensor([5])
    with family.autocast():
        family.predict(noisy, t, text).float().mean().backward()
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
    assert preset_family(workspace.model_source("mine")) == "starter"
    edit(tmp_path / "models" / "mine" / "unet" / "config.json", block_out_channels=[64, 96, 320])
    assert detect_family(tmp_path / "models" / "mine") == "sd1"
    assert preset_family(workspace.model_source("mine")) == "sd1"


def test_a_model_with_its_guidance_distilled_is_refused(tmp_path: Path) -> None:
    folder = copy("sd1", tmp_path)
    edit(folder / "unet" / "config.json", time_cond_proj_dim=8)
    with pytest.raises(ModelError, match="guidance distilled"):
        detect_family(folder)


HOSTILE: dict[str, dict[str, Any]] = {
    "unknown pipeline": {"_class_name": "FluxControlPipeline"},
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
    for source, sentence in (
        (tmp_path, "not a diffusers model"),
        (file, "not a safetensors or GGUF file"),
    ):
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
