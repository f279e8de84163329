"""Pictures against the stock pipelines, to the bit, and against loops written out by hand."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline
from torch import Tensor

from sdlora.inference.engine import render
from sdlora.inference.samplers import SAMPLERS
from sdlora.lora.library.library import Library
from sdlora.models.base import ModelFamily
from sdlora.settings.image_request import ImageRequest
from tiny import open_tiny, prompt_embeds

PIXEL = 1 / 255


@pytest.fixture(scope="module")
def family() -> ModelFamily:
    return open_tiny("sd1")


def pictures(family: ModelFamily, prompt: str = "a cat", **asked: Any) -> np.ndarray:
    """(N,H,W,3)."""
    request = ImageRequest.from_values({"prompt": prompt, "steps": 4, "seed": 7, **asked})
    return np.stack([np.asarray(image) for image in render(family, request)[0]]).astype(int)


def stock(
    family: ModelFamily,
    sampler: str,
    options: Mapping[str, Any] = MappingProxyType({}),
    **call: Any,
) -> np.ndarray:
    """What the family's own pipeline makes of its own text encoding, from seeds 7 and 8."""
    pipeline, its = family.pipeline, family.pipeline.scheduler
    scheduler, own = SAMPLERS[sampler].ddpm
    pipeline.scheduler = scheduler.from_config(its.config, **own, **options)
    dice = [torch.Generator().manual_seed(seed) for seed in (7, 8)]
    try:
        images = pipeline("a cat", num_images_per_prompt=2, generator=dice, **call).images
    finally:
        pipeline.scheduler = its
    return np.stack([np.asarray(image) for image in images]).astype(int)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_a_plain_prompt_is_the_stock_picture_to_the_bit(kind: str, dtype: torch.dtype) -> None:
    """Over all samplers, with and without guidance and a negative prompt."""
    family = open_tiny(kind, dtype)
    for number, sampler in enumerate(SAMPLERS):
        guidance, negative = (1.0, 5.0)[number % 2], ("", "dull")[number // 2 % 2]
        expected = stock(
            family, sampler, num_inference_steps=4, guidance_scale=guidance,
            negative_prompt=negative or None,
        )  # fmt: skip
        ours = pictures(
            family, sampler=sampler, guidance=guidance, negative_prompt=negative, count=2
        )
        assert (ours == expected).all(), (sampler, guidance, negative)


def test_from_noise_alone_is_the_stock_picture_to_the_bit() -> None:
    """Over all samplers; asked for, or what a training with zero_terminal_snr opened."""
    options = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    family, opened = open_tiny("sd2"), open_tiny("sd2")
    opened.use_zero_terminal_snr()
    for sampler in SAMPLERS:
        expected = stock(family, sampler, options, num_inference_steps=4, guidance_scale=5.0)
        made = pictures(family, sampler=sampler, count=2, zero_terminal_snr=True)
        assert (made == expected).all(), sampler
        assert (pictures(opened, sampler=sampler, count=2) == expected).all(), sampler
    assert (made != pictures(family, sampler=sampler, count=2)).any()


def test_a_model_that_predicts_the_noise_cannot_begin_from_it(family: ModelFamily) -> None:
    asked = ImageRequest.from_values(
        {"prompt": "a cat", "steps": 2, "seed": 7, "zero_terminal_snr": True}
    )
    [image], report = render(family, asked)
    assert "zero_terminal_snr is not used" in " ".join(report["problems"])
    assert (np.asarray(image) == pictures(family, steps=2)[0]).all()


def by_hand(family: ModelFamily, texts: Any, guidance: float = 5.0, steps: int = 4) -> np.ndarray:
    """DDIM without guidance's tricks: at step s the answer is u + g * sum of w (c - u) with
    `texts(s)` = (negative, [(text, w)...])."""
    scheduler = DDIMScheduler.from_config(family.pipeline.scheduler.config)
    scheduler.set_timesteps(steps)
    latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        for step, t in enumerate(scheduler.timesteps):
            negative, wanted = texts(step)

            def answer(text: str, latents: Tensor = latents, t: Tensor = t) -> Tensor:
                context = family.encode_prompt(text).tensors["context"]
                return family.denoiser(latents, t, context).sample

            away = answer(negative)
            total = away + guidance * sum(w * (answer(text) - away) for text, w in wanted)
            latents = scheduler.step(total, t, latents).prev_sample
        [image] = family.decode_latents(latents)
    return np.asarray(image)[None].astype(int)


def test_and_is_a_weighted_sum_of_directions(family: ModelFamily) -> None:
    made = pictures(family, "a cat AND a dog :0.5 AND fog:-0.25", sampler="ddim")
    expected = by_hand(family, lambda _: ("", [("a cat", 1), (" a dog", 0.5), (" fog", -0.25)]))
    assert np.abs(made - expected).max() <= 1
    assert np.abs(made - pictures(family, "a cat", sampler="ddim")).max() > 5


def test_and_without_guidance_still_adds_up(family: ModelFamily) -> None:
    made = pictures(family, "a cat AND a dog", sampler="ddim", guidance=1.0)
    expected = by_hand(family, lambda _: ("", [("a cat", 1), (" a dog", 1)]), guidance=1.0)
    assert np.abs(made - expected).max() <= 1


def test_texts_change_over_the_steps(family: ModelFamily) -> None:
    cases = {
        "a [cat:dog:0.5]": lambda s: ("", [("a cat" if s < 2 else "a dog", 1)]),
        "[cow|horse]": lambda s: ("", [(("cow", "horse")[s % 2], 1)]),
        "a [b::3]c": lambda s: ("", [("a bc" if s < 3 else "a c", 1)]),
    }
    for prompt, texts in cases.items():
        made = pictures(family, prompt, sampler="ddim")
        assert np.abs(made - by_hand(family, texts)).max() <= 1, prompt
    negative = pictures(family, "a", negative_prompt="[b:c:1]", sampler="ddim")
    texts = lambda s: ("b" if s < 1 else "c", [("a", 1)])  # noqa: E731
    assert np.abs(negative - by_hand(family, texts)).max() <= 1


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_lengths_do_not_mix_between_images(kind: str) -> None:
    """Two images of one batch whose prompts have one chunk and three: each as if alone."""
    family = open_tiny(kind)
    asked = {"prompt": "a {cat|" + "long " * 40 + "}", "count": 4, "negative_prompt": "x" * 80}
    together = pictures(family, batch_size=4, **asked)
    alone = np.stack([pictures(family, **{**asked, "count": 1}, seed=7 + i)[0] for i in range(4)])
    assert np.abs(together - alone).max() <= 1
    _, report = render(family, ImageRequest.from_values({**asked, "steps": 1, "seed": 7}))
    assert report["prompt"].startswith(("a cat", "a long"))


def test_emphasis_and_clip_skip_reach_the_picture(family: ModelFamily) -> None:
    asked = [
        {"prompt": "a cat"},
        {"prompt": "a (cat:1.5)"},
        {"prompt": "a (cat:1.5)", "emphasis": "no_norm"},
        {"prompt": "a cat", "clip_skip": 2},
    ]
    made = [pictures(family, **its) for its in asked]
    for index, one in enumerate(made):
        assert all((one != other).any() for other in made[index + 1 :])


@pytest.mark.parametrize("sampler", ["ddim", "euler_a", "dpm++_2m", "unipc"])
def test_the_second_pass_is_a_stock_img2img(family: ModelFamily, sampler: str) -> None:
    """From the first pass's latents, twice the size: diffusers' own pipeline, our second noise."""
    made = pictures(family, sampler=sampler, hires_scale=2, hires_steps=3, hires_strength=0.5)
    assert made.shape == (1, 128, 128, 3)
    (scheduler, own), its = SAMPLERS[sampler].ddpm, family.pipeline.scheduler
    texts = prompt_embeds(family, ["a cat"], [""])
    dice = torch.Generator().manual_seed(7)
    family.pipeline.scheduler = scheduler.from_config(its.config, **own)
    try:
        small = family.pipeline(
            **texts, generator=[dice], num_inference_steps=4, guidance_scale=5.0,
            output_type="latent",
        ).images  # fmt: skip
        large = torch.nn.functional.interpolate(small, (16, 16), mode="bilinear")
        second = StableDiffusionImg2ImgPipeline(
            **{**family.pipeline.components, "scheduler": family.pipeline.scheduler},
            requires_safety_checker=False,
        )
        second.set_progress_bar_config(disable=True)
        expected = second(
            image=large, strength=0.5, num_inference_steps=6, guidance_scale=5.0,
            generator=[dice], **texts,
        ).images[0]  # fmt: skip
    finally:
        family.pipeline.scheduler = its
    assert np.abs(made[0] - np.asarray(expected)).max() <= 1


def test_hires_prompts_go_on_where_the_first_pass_ended(family: ModelFamily) -> None:
    asked = {"hires_scale": 1.5, "hires_steps": 2, "sampler": "ddim"}
    both = pictures(family, "a [cat:dog:1.5]", **asked)
    assert (both != pictures(family, "a cat", **asked)).any()
    first = pictures(family, "a [cat:dog:0.5]", **asked)
    assert (both != first).any()
    assert (pictures(family, "a [cat:dog:1.0]", **asked) != both).any()
    pixels = pictures(family, "a [cat:dog:1.5]", hires_upscaler="lanczos", **asked)
    assert pixels.shape == (1, 96, 96, 3) and (pixels != both).any()


def test_the_second_pass_does_not_depend_on_the_batch(family: ModelFamily) -> None:
    asked = {"hires_scale": 2, "hires_steps": 2, "count": 3, "sampler": "euler_a"}
    apart = pictures(family, batch_size=1, **asked)
    assert np.abs(pictures(family, batch_size=3, **asked) - apart).max() <= 2
    assert (pictures(family, batch_size=1, **asked) == apart).all()


def test_a_library_is_not_needed(family: ModelFamily, tmp_path: Path) -> None:
    _, report = render(family, ImageRequest(prompt="a <lora:x>", steps=1), Library([tmp_path]))
    assert report["unused"] == {"x": "there is no LoRA 'x'."}
