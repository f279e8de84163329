"""The model that ships: a stock Stable Diffusion, small, that takes any text and carries styles."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from sdlora.events import SampleReady, Warned
from sdlora.inference.engine import Engine
from sdlora.lora.library.library import Library
from sdlora.settings.image_request import ImageRequest
from sdlora.starter.draw import draw
from sdlora.starter.make_loop import Plan
from sdlora.starter.make_text import new_tokenizer
from sdlora.starter.make_upscaler import train_upscaler
from sdlora.starter.measure import STYLES, StyleAxis
from sdlora.starter.sets import SETS, pictures
from sdlora.workspace import STARTER_LORAS, STARTER_MODEL, Workspace

PROMPT = "a big blue house, night background"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    workspace = Workspace.open(tmp_path_factory.mktemp("workspace"))
    return Engine(workspace, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    stock = StableDiffusionPipeline.from_pretrained(
        STARTER_MODEL, dtype=torch.float32, local_files_only=True
    )
    stock.set_progress_bar_config(disable=True)
    return stock


@pytest.fixture(scope="module")
def axis_of(pipeline: StableDiffusionPipeline) -> Callable[[str], StyleAxis]:
    """The axis of a style, made once: it draws and encodes a hundred pictures."""
    return functools.cache(partial(StyleAxis, pipeline.vae))


def pixels_of(engine: Engine, prompt: str, **settings: object) -> np.ndarray:
    """(H, W, 3) of the first image; a warning fails the test."""
    for event in engine.generate(
        ImageRequest.from_values({"prompt": prompt, "seed": 3, **settings})
    ):
        assert not isinstance(event, Warned), event
        if isinstance(event, SampleReady):
            with Image.open(event.path) as image:
                return np.asarray(image.convert("RGB")).astype(int)
    raise AssertionError("no picture")


def test_is_a_small_genuine_stable_diffusion(pipeline: StableDiffusionPipeline) -> None:
    files = [path for path in STARTER_MODEL.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 24 * 2**20
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md"}
    config = pipeline.scheduler.config
    assert (config.prediction_type, config.beta_schedule) == ("epsilon", "scaled_linear")
    assert pipeline.tokenizer.model_max_length == 77
    assert pipeline.vae_scale_factor == 8
    assert pipeline.unet.config.sample_size * 8 >= 128


@pytest.mark.parametrize(
    "text", ["zibo!", "画 ü é", "😀", "<lora:x:0.8> {a|b} [c]", "a\tb\nc", "¥5"]
)
def test_tokenizer_can_say_any_text(pipeline: StableDiffusionPipeline, text: str) -> None:
    tokens = pipeline.tokenizer(text).input_ids
    assert pipeline.tokenizer.eos_token_id not in tokens[1:-1]
    said = pipeline.tokenizer.decode(tokens, skip_special_tokens=True)
    assert "".join(said.split()) == "".join(text.split())


def test_a_second_run_of_the_recipe_keeps_the_tokenizer(tmp_path: Path) -> None:
    # a new one has the same words under other numbers, which a trained text encoder does not know
    first, second = (new_tokenizer(tmp_path / "tokenizer").get_vocab() for _ in range(2))
    assert first == second


def test_the_upscaler_is_trained_again_to_the_bit_and_goes_on(
    pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    weights = []
    for name, lengths in (("once", (4,)), ("again", (4,)), ("resumed", (2, 4))):
        (tmp_path / name).mkdir()
        for steps in lengths:
            plan = Plan(steps=steps, learning_rate=1e-3, decay=0, ema=0.9)
            made = train_upscaler(tmp_path / name, plan, pipeline, pictures=4, processes=1)
        assert made
        weights.append(made.state_dict())
    once, *others = weights
    assert all(torch.equal(value, other[key]) for key, value in once.items() for other in others)
    assert train_upscaler(tmp_path, Plan(0, 1e-3, 0), pipeline) is None


def test_shipped_loras_are_listed_small_and_have_their_trigger_words() -> None:
    entries = {entry.name: entry for entry in Library((STARTER_LORAS,)).list()}
    assert set(entries) == set(SETS)
    for name, entry in entries.items():
        assert entry.size_bytes <= 2**20
        assert SETS[name].trigger in entry.trigger_words


@pytest.mark.parametrize("name", STYLES)
def test_style_rises_with_the_weight_from_the_very_base_picture(
    engine: Engine, axis_of: Callable[[str], StyleAxis], name: str
) -> None:
    made: dict[float, list[Image.Image]] = {0: [], 1: []}
    for words in ("a big red house, meadow background", "a big green house in the snow"):
        prompt = f"{SETS[name].trigger}, {words}"
        base = pixels_of(engine, prompt, steps=10, upscaler="none")
        for weight, images in made.items():
            image = pixels_of(engine, f"{prompt} <lora:{name}:{weight}>", steps=10, upscaler="none")
            assert (image == base).all() == (weight == 0)
            images.append(Image.fromarray(image.astype(np.uint8)))
        assert (pixels_of(engine, prompt, steps=10, upscaler="none") == base).all()
    plain, styled = (axis_of(name).score(images).mean().item() for images in made.values())
    assert styled > plain + 0.2


def test_style_axis_tells_plain_from_styled(axis_of: Callable[[str], StyleAxis]) -> None:
    axis = axis_of("neon_lighting")
    scenes = [scene for _, _, scene in pictures("neon_lighting")]
    plain = axis.score([draw(scene) for scene in scenes])
    styled = axis.score([SETS["neon_lighting"].draw(scene) for scene in scenes])
    houses = [scene for _, _, scene in pictures("cyberpunk_architecture")]
    other = axis.score([SETS["cyberpunk_architecture"].draw(scene) for scene in houses])
    assert abs(plain.mean()) < 0.1 and abs(styled.mean() - 1) < 0.1 and abs(other.mean()) < 0.2
    assert max(plain.max(), other.max()) < styled.min()


def test_a_shipped_lora_gives_the_same_picture_in_stock_diffusers(
    engine: Engine, pipeline: StableDiffusionPipeline
) -> None:
    ours = pixels_of(
        engine, f"{PROMPT} <lora:neon_lighting:1>", steps=8, sampler="ddim", upscaler="none"
    )
    pipeline.load_lora_weights(str(STARTER_LORAS), weight_name="neon_lighting.safetensors")
    stock = pipeline(
        PROMPT,
        num_inference_steps=8,
        guidance_scale=ImageRequest().guidance,
        generator=[torch.Generator().manual_seed(3)],
        output_type="np",
    ).images[0]
    pipeline.unload_lora_weights()
    assert np.abs((stock * 255).round() - ours).max() <= 2


def test_two_tags_both_act(engine: Engine, axis_of: Callable[[str], StyleAxis]) -> None:
    """How much of each style is in the picture is measured by benchmarks/strength.py."""
    tags = ["lora:cyberpunk_architecture:0.7", "lora:neon_lighting:0.5"]
    cyberpunk, neon, both = (
        pixels_of(engine, f"{PROMPT}, {words}", steps=10, upscaler="none")
        for words in (*tags, " ".join(tags))
    )
    assert np.abs(both - cyberpunk).mean() > 2
    assert np.abs(both - neon).mean() > 2
    axis = axis_of("neon_lighting")
    without, beside = axis.score([Image.fromarray(p.astype(np.uint8)) for p in (cyberpunk, both)])
    assert beside > without + 0.1


def test_pictures_are_of_twice_the_models_own_size(engine: Engine) -> None:
    native, large = (
        pixels_of(engine, PROMPT, steps=4, upscaler=choice) for choice in ("none", "auto")
    )
    assert large.shape == (native.shape[0] * 2, native.shape[1] * 2, 3)
    halves = large.reshape(*native.shape[:1], 2, native.shape[1], 2, 3).mean((1, 3))
    assert np.abs(halves - native).mean() < 6


def test_model_card_says_what_it_is() -> None:
    card = (STARTER_MODEL / "README.md").read_text(encoding="utf-8")
    for word in ("Apache-2.0", "PSNR", "drawn", "colour", "background"):
        assert word in card
    assert not Path(STARTER_MODEL / "unet" / "diffusion_pytorch_model.bin").exists()
