"""Our files in stock diffusers pipelines do what our arithmetic says, and theirs read by us."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from peft import get_peft_model_state_dict
from torch import Tensor, nn

import tiny_transformers
from sdlora.errors import LoraFileError
from sdlora.lora.format.file import LoraFile, read_lora, write_lora
from sdlora.lora.format.layer import Adapter
from sdlora.lora.tools.convert import with_key_style
from tiny import LATENT, tiny
from tiny_transformers import flux_answer, sd3_answer

TARGETS = re.compile("attn|_ff_|ff_context|conv1|proj_mlp|proj_out|_mlp_")
RANKS, ALPHAS = (2, 3), (1.0, 2.0, 3.0)
Names = Any  # "kohya" or "peft"


def unet_answer(model: Any, rng: torch.Generator) -> Tensor:
    channels, width = model.config.in_channels, model.config.cross_attention_dim
    text = torch.randn(1, 5, width, generator=rng)
    sizes = {"text_embeds": torch.randn(1, 24, generator=rng), "time_ids": torch.ones(1, 6)}
    latents = torch.randn(1, channels, LATENT, LATENT, generator=rng)
    return model(latents, 500, text, added_cond_kwargs=sizes).sample


def text_answer(model: Any, rng: torch.Generator) -> Tensor:
    return model(torch.randint(0, 512, (1, 9), generator=rng)).last_hidden_state


def stable_diffusion(base: str) -> tuple[Callable[[], Any], dict[str, str], Callable[..., Tensor]]:
    parts = {"denoiser": "unet", "te": "text_encoder"}
    return (lambda: StableDiffusionPipeline.from_pretrained(tiny(base)), parts, unet_answer)


# base -> (a fresh pipeline, its parts by our names, what to ask its denoiser)
STOCK: dict[str, tuple[Callable[[], Any], dict[str, str], Callable[..., Tensor]]] = {
    "sd1": stable_diffusion("sd1"),
    "sd2": stable_diffusion("sd2"),
    "starter": stable_diffusion("starter"),
    "sdxl": (
        lambda: StableDiffusionXLPipeline.from_pretrained(tiny("sdxl")),
        {"denoiser": "unet", "te1": "text_encoder", "te2": "text_encoder_2"}, unet_answer,
    ),
    "sd3": (
        lambda: tiny_transformers.make("sd3"),
        {"denoiser": "transformer", "te1": "text_encoder", "te2": "text_encoder_2"}, sd3_answer,
    ),
    "flux": (
        lambda: tiny_transformers.make("flux"),
        {"denoiser": "transformer", "te": "text_encoder"}, flux_answer,
    ),
}  # fmt: skip


def parts_of(pipeline: Any, base: str) -> dict[str, Any]:
    return {ours: getattr(pipeline, theirs) for ours, theirs in STOCK[base][1].items()}


def answers(pipeline: Any, base: str) -> list[Tensor]:
    """Of every part to the same random inputs."""
    with torch.no_grad():
        return [
            (STOCK[base][2] if part == "denoiser" else text_answer)(
                model, torch.Generator().manual_seed(1)
            )
            for part, model in parts_of(pipeline, base).items()
        ]


def layers_in(pipeline: Any, base: str) -> Iterator[tuple[str, Any]]:
    """Our names for the layers that programs put LoRAs on, and the layers."""
    for part, model in parts_of(pipeline, base).items():
        for path, module in model.named_modules():
            flat = path.replace(".", "_")
            name = f"lora_{part}_text_model_{flat.removeprefix('text_model_')}"
            name = f"lora_unet_{flat}" if part == "denoiser" else name
            if TARGETS.search(flat) and isinstance(module, nn.Linear | nn.Conv2d):
                yield name, module


def adapter_for(
    weight: Tensor, rng: torch.Generator, rank: int, alpha: float, dora: bool
) -> Adapter:
    ones = (1,) * (weight.dim() - 2)
    down = torch.randn(rank, *weight.shape[1:], generator=rng)
    up = 0.3 * torch.randn(weight.shape[0], rank, *ones, generator=rng)
    lora = Adapter.lora(down, up, alpha)
    if not dora:
        return lora
    norm = weight.flatten(1).norm(dim=1).reshape(-1, 1, *ones)
    return Adapter("DoRA", {**lora.tensors, "dora_scale": 1.3 * norm})


def random_lora(
    pipeline: Any, base: str, dora: bool = False, alphas: tuple[float, ...] = ALPHAS
) -> LoraFile:
    """Ranks and alphas differ from layer to layer."""
    rng = torch.Generator().manual_seed(0)
    layers: dict[str, Adapter] = {}
    for number, (name, module) in enumerate(layers_in(pipeline, base)):
        rank, alpha = RANKS[number % len(RANKS)], alphas[number % len(alphas)]
        layers[name] = adapter_for(module.weight.detach(), rng, rank, alpha, dora)
    return LoraFile(layers)


def add(file: LoraFile, pipeline: Any, base: str) -> None:
    """The deltas, onto the weights, by hand."""
    for name, module in layers_in(pipeline, base):
        if name in file.layers:
            weight = module.weight.data
            weight += file.layers[name].delta(weight)


def assert_stock_agrees(file: LoraFile, written: Path, base: str, pipeline: Any) -> None:
    """Every part of a stock pipeline that loaded `written` answers as with our deltas."""
    stock = STOCK[base][0]()
    stock.load_lora_weights(written.parent, weight_name=written.name)
    pristine = answers(pipeline, base)
    add(file, pipeline, base)
    every = (answers(pipeline, base), answers(stock, base), pristine)
    prefixes = [f"lora_{part}_".replace("denoiser", "unet") for part in STOCK[base][1]]
    for prefix, ours, theirs, bare in zip(prefixes, *every, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
        changed = any(name.startswith(prefix) for name in file.layers)
        assert not changed or (ours - bare).abs().max() > 0.01  # or nothing was shown


@pytest.mark.parametrize(
    ("base", "names"),
    [("sd1", "kohya"), ("sd1", "peft"), ("sd2", "kohya"), ("starter", "kohya"),
     ("sdxl", "kohya"), ("sdxl", "peft"), ("sd3", "peft"), ("flux", "peft")],
)  # fmt: skip
def test_stock_pipelines_load_what_we_write(base: str, names: Names, tmp_path: Path) -> None:
    # of kohya's files diffusers 0.42 takes one alpha for all attention layers
    alphas = (1.5,) if names == "kohya" else ALPHAS
    pipeline = STOCK[base][0]()
    file = random_lora(pipeline, base, alphas=alphas)
    path = write_lora(file, tmp_path / "ours.safetensors", torch.float32, names)
    assert_stock_agrees(file, path, base, pipeline)
    again = read_lora(path)
    assert again.layers.keys() == file.layers.keys()
    for name, adapter in file.layers.items():
        its = again.layers[name].tensors
        assert its.keys() == adapter.tensors.keys()
        assert all(torch.equal(its[role], adapter.tensors[role]) for role in its), name


def test_stock_flux_loads_kohyas_names(tmp_path: Path) -> None:
    """Of double blocks and text: diffusers 0.42 cuts the single blocks' stacks by FLUX.1's own
    sizes, and leaves the alpha of the last layer out."""
    pipeline = STOCK["flux"][0]()
    every = random_lora(pipeline, "flux").layers
    file = LoraFile(
        {n: it for n, it in every.items() if n.startswith(("lora_te_", "lora_unet_transformer"))},
        {"modelspec.architecture": "flux-1-dev/lora"},  # narrower than any real one
    )
    stacked = with_key_style(file, "kohya")
    assert "lora_unet_double_blocks_0_img_attn_qkv" in stacked.layers
    path = write_lora(stacked, tmp_path / "ours.safetensors", torch.float32)
    assert_stock_agrees(file, path, "flux", pipeline)


@pytest.mark.parametrize("base", ["sd1", "flux"])
def test_stock_pipelines_load_our_dora(base: str, tmp_path: Path) -> None:
    pipeline = STOCK[base][0]()
    every = random_lora(pipeline, base, dora=True).layers
    # transformers 5.23 cannot load the magnitudes of a text encoder
    file = LoraFile({name: it for name, it in every.items() if name.startswith("lora_unet_")})
    path = write_lora(file, tmp_path / "ours.safetensors", torch.float32, "peft")
    assert_stock_agrees(file, path, base, pipeline)
    # and a file of kohya's names from PEFT's has LyCORIS' shape of the magnitudes
    kohya = write_lora(read_lora(path), tmp_path / "kohya.safetensors", torch.float32)
    for name, adapter in read_lora(kohya).layers.items():
        assert torch.equal(adapter.tensors["dora_scale"], file.layers[name].tensors["dora_scale"])


@pytest.mark.parametrize("base", ["sd1", "sdxl", "sd3", "flux"])
def test_what_diffusers_saves_is_read(base: str, tmp_path: Path) -> None:
    """Our file through a stock pipeline and out again in diffusers' own format: same deltas, and
    written once more by us, the same keys and numbers."""
    pipeline = STOCK[base][0]()
    file = random_lora(pipeline, base)
    write_lora(file, tmp_path / "ours.safetensors", torch.float32, "peft")
    pipeline.load_lora_weights(tmp_path, weight_name="ours.safetensors")
    saved: dict[str, Any] = {}
    for name in STOCK[base][1].values():
        model = getattr(pipeline, name)
        saved[f"{name}_lora_layers"] = get_peft_model_state_dict(model, adapter_name="default_0")
        saved[f"{name}_lora_adapter_metadata"] = model.peft_config["default_0"].to_dict()
    pipeline.save_lora_weights(tmp_path, weight_name="theirs.safetensors", **saved)
    theirs = read_lora(tmp_path / "theirs.safetensors")
    assert theirs.layers.keys() == file.layers.keys()
    for name, adapter in theirs.layers.items():
        weight = torch.zeros(adapter.shape)
        torch.testing.assert_close(adapter.delta(weight), file.layers[name].delta(weight), msg=name)


def test_what_pefts_names_cannot_hold_is_said(tmp_path: Path) -> None:
    lora = Adapter.lora(torch.ones(2, 6), torch.ones(5, 2), 1.0)
    by_input = Adapter("DoRA", {**lora.tensors, "dora_scale": torch.ones(1, 6)})
    by_output = Adapter("DoRA", {**lora.tensors, "dora_scale": torch.ones(5, 1)})
    for layers, sentence in (
        ({"lora_unet_a": Adapter("full", {"diff": torch.ones(5, 6)})}, "full layer"),
        ({"lora_unet_a": by_input}, "DoRA by input"),
        ({"lora_unet_a": by_output, "lora_unet_b": lora}, "one of the two"),
        ({"lora_unet_input_blocks_4_1_proj_in": lora}, "first code"),
    ):
        with pytest.raises(LoraFileError, match=sentence):
            write_lora(LoraFile(layers), tmp_path / "a.safetensors", names="peft")
    assert not list(tmp_path.iterdir())
