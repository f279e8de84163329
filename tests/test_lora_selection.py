"""LoRAs over steps, by image, in the negative prompt and in the second pass.

Pictures equal those built by hand with fixed weights where they coincide, and differ elsewhere.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file, save_file

from sdlora.adapters import Blend
from sdlora.inference.engine import render
from sdlora.inference.image_pipeline import ImageDone, ImagePipeline
from sdlora.lora.format.file import LoraFile, read_lora, write_lora
from sdlora.lora.library.library import Library
from sdlora.messages import PAGE
from sdlora.models.base import ModelFamily
from sdlora.models.registry import open_family
from sdlora.prompt import PromptResources
from sdlora.settings.image_request import ImageRequest
from sdlora.workspace import STARTER_LORAS, STARTER_MODEL
from tiny import CPU, open_tiny, tiny_lora, weights_hash

NEON, PAINT = "neon_lighting", "impressionist_style"
HOUSE = "a big blue house, meadow background"
Texts = Callable[[int], tuple[float, float]]


@pytest.fixture(scope="module")
def starter() -> ModelFamily:
    return open_family(str(STARTER_MODEL), torch.float32, CPU)


@pytest.fixture(scope="module")
def shipped() -> Library:
    return Library([STARTER_LORAS])


@pytest.fixture(scope="module")
def tiny_one(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelFamily, Library]:
    """A tiny model with two LoRAs that change the text encoder as well."""
    family, folder = open_tiny("sd1"), tmp_path_factory.mktemp("loras")
    for seed, name in enumerate(("neon", "oil")):
        file = tiny_lora(family, seed)
        write_lora(file, folder / f"{name}.safetensors", torch.float32)
    return family, Library([folder])


def pictures(family: ModelFamily, library: Library, prompt: str, **asked: Any) -> np.ndarray:
    """(N,H,W,3); a problem fails the test."""
    request = ImageRequest.from_values(
        {"prompt": prompt, "steps": 4, "seed": 3, "sampler": "ddim", "upscaler": "none", **asked}
    )
    images, report = render(family, request, library)
    assert not report["problems"]
    return np.stack([np.asarray(image) for image in images]).astype(int)


def far(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one - other).max())


def by_hand(
    family: ModelFamily, file: LoraFile, weights: Texts, texts: tuple[str, str], steps: int = 4
) -> np.ndarray:
    """DDIM with guidance 5, the LoRA merged anew before each answer: `weights(step)` on the
    negative text and on the other one; the text encoder's too."""
    blend, scheduler = Blend(family), DDIMScheduler.from_config(family.pipeline.scheduler.config)
    scheduler.set_timesteps(steps)
    side = family.denoiser.config.sample_size
    shape = (1, family.denoiser.config.in_channels, side, side)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for step, t in enumerate(scheduler.timesteps):
            answers = []
            for weight, text in zip(weights(step), texts, strict=True):
                blend.apply([(file, weight, weight)])
                context = family.encode_prompt(text).tensors["context"]
                answers.append(family.denoiser(latents, t, context).sample)
            away, wanted = answers
            latents = scheduler.step(away + 5.0 * (wanted - away), t, latents).prev_sample
        blend.clear()
        [image] = family.decode_latents(latents)
    return np.asarray(image)[None].astype(int)


def test_weights_over_the_steps(starter: ModelFamily, shipped: Library) -> None:
    fixed = pictures(starter, shipped, f"{HOUSE} <lora:{NEON}:0.8>")
    plain = pictures(starter, shipped, HOUSE)
    assert far(fixed, plain) > 40
    same = pictures(starter, shipped, f"{HOUSE} <lora:{NEON}:0.8@0,0.8@1>")
    assert far(same, fixed) <= 2
    file = read_lora(shipped.find(NEON).path)
    moving = pictures(starter, shipped, f"{HOUSE} <lora:{NEON}:unet=0@0,1@4>")
    texts = ("", HOUSE)
    assert far(moving, by_hand(starter, file, lambda s: (s / 4, s / 4), texts)) <= 2
    half = pictures(starter, shipped, f"{HOUSE} [<lora:{NEON}:1>:0.5]")
    switched = by_hand(starter, file, lambda s: (float(s >= 2),) * 2, texts)
    assert far(half, switched) <= 2 and far(half, moving) > 10 and far(half, plain) > 10


def test_every_image_has_its_own_tags(starter: ModelFamily, shipped: Library) -> None:
    """Drawn from its seed; each equals the picture whose prompt was written out."""
    prompt = f"{HOUSE} {{<lora:{NEON}:0.8>|<lora:{PAINT}:0.8>|, night}}"
    asked = {"prompt": prompt, "steps": 4, "seed": 3, "count": 5, "upscaler": "none"}
    request = ImageRequest.from_values(asked)
    painter = ImagePipeline(starter, shipped)
    sheet = painter.plan(request)
    assert not sheet.problems and len({wish.prompt for wish in sheet.images}) == 3
    events = painter.generate(sheet)
    made = [np.asarray(e.image).astype(int) for e in events if isinstance(e, ImageDone)]
    painter.blend.clear()
    for number, (image, wish) in enumerate(zip(made, sheet.images, strict=True)):
        alone = pictures(starter, shipped, wish.prompt, seed=wish.seed, sampler="dpm++_2m")[0]
        assert far(image, alone) <= 2
        names = [use["name"] for use in sheet.report(number)["loras"]]
        assert names == [name for name in (NEON, PAINT) if name in wish.prompt]


def test_a_tag_in_the_negative_prompt(starter: ModelFamily, shipped: Library) -> None:
    was = weights_hash(starter)
    made = pictures(starter, shipped, HOUSE, negative_prompt=f"dull <lora:{NEON}:1>")
    file = read_lora(shipped.find(NEON).path)
    expected = by_hand(starter, file, lambda _: (1.0, 0.0), ("dull", HOUSE))
    assert far(made, expected) <= 2
    plain = pictures(starter, shipped, HOUSE, negative_prompt="dull")
    both = pictures(starter, shipped, f"{HOUSE} <lora:{NEON}:1>", negative_prompt="dull")
    assert far(made, plain) > 20 and far(made, both) > 20
    none = pictures(starter, shipped, HOUSE, negative_prompt=f"dull <lora:{NEON}:0>")
    assert far(none, plain) <= 2
    assert weights_hash(starter) == was


def test_a_curve_that_the_text_encoder_does_not_follow_is_told(tmp_path: Path) -> None:
    family = open_tiny("sd1")
    for name, learns in (("words", True), ("unet", False)):
        file = tiny_lora(family, train_text_encoder=learns)
        write_lora(file, tmp_path / f"{name}.safetensors", torch.float32)
    painter = ImagePipeline(family, Library([tmp_path]))
    told = {
        "<lora:words:0@0,1@1>": True,
        "<lora:words:te=0:unet=0@0,1@1>": False,
        "[<lora:words:1>:0.5]": False,
        "<lora:words:1>": False,
        "<lora:unet:0@0,1@1>": False,
    }
    for tag, expected in told.items():
        sheet = painter.plan(ImageRequest.from_values({"prompt": f"a cat {tag}", "steps": 4}))
        assert ["in the denoiser only" in problem.message for problem in sheet.problems] == [
            True
        ] * expected
    painter.blend.clear()


def test_what_of_a_file_is_not_known_is_told_and_the_rest_used(tmp_path: Path) -> None:
    family, path = open_tiny("sd1"), tmp_path / "odd.safetensors"
    tensors = load_file(write_lora(tiny_lora(family), path, torch.float32))
    save_file({**tensors, "odd.key": torch.ones(1)}, path)
    painter = ImagePipeline(family, Library([tmp_path]))
    sheet = painter.plan(ImageRequest.from_values({"prompt": "a cat <lora:odd:1>", "steps": 2}))
    assert [problem.message for problem in sheet.problems] == [
        "odd has tensors that are not known here and not used: 'odd.key'"
    ]
    assert not sheet.loras.unused and len(sheet.loras.constant) == 1
    painter.blend.clear()


def test_the_text_encoder_follows_steps_and_sides(tiny_one: tuple[ModelFamily, Library]) -> None:
    family, library = tiny_one
    file = read_lora(library.find("neon").path)
    half = pictures(family, library, "a cat [<lora:neon:0.5>:2]", negative_prompt="dull")
    weights = lambda s: (0.5 * (s >= 2),) * 2  # noqa: E731
    assert far(half, by_hand(family, file, weights, ("dull", "a cat"))) <= 2
    negative = pictures(family, library, "a cat", negative_prompt="dull <lora:neon:0.5>")
    assert far(negative, by_hand(family, file, lambda _: (0.5, 0.0), ("dull", "a cat"))) <= 2
    sides = pictures(
        family, library, "a cat <lora:neon:0.25>", negative_prompt="dull <lora:neon:0.25>"
    )
    assert far(sides, by_hand(family, file, lambda _: (0.5, 0.25), ("dull", "a cat"))) <= 2


def test_images_of_a_mixed_batch_are_those_alone(tiny_one: tuple[ModelFamily, Library]) -> None:
    family, library = tiny_one
    prompt = "a {cat <lora:neon:0.5>|[dog|fox] <lora:oil:te=0:unet=0@0,1@1>|" + "b" * 90 + "}"
    asked = {"count": 4, "negative_prompt": "{x <lora:oil:0.3>|y}"}
    together = pictures(family, library, prompt, batch_size=4, **asked)
    pairs = pictures(family, library, prompt, batch_size=3, **asked)
    again = pictures(family, library, prompt, batch_size=4, **asked)
    assert far(together, pairs) <= 2 and (together == again).all()
    for number in range(4):
        alone = pictures(
            family, library, prompt, seed=3 + number, negative_prompt=asked["negative_prompt"]
        )
        assert far(together[number], alone[0]) <= 2


def test_a_weight_of_its_own_in_the_second_pass(tiny_one: tuple[ModelFamily, Library]) -> None:
    family, library = tiny_one
    hires = {"hires_scale": 1.5, "hires_steps": 2}
    same = pictures(family, library, "a cat <lora:neon:0.5:hr=0.5>", **hires)
    fixed = pictures(family, library, "a cat <lora:neon:0.5>", **hires)
    off = pictures(family, library, "a cat <lora:neon:0.5:hr=0>", **hires)
    first = pictures(family, library, "a cat [<lora:neon:0.5>::1.0]", **hires)
    assert far(same, fixed) <= 2 and far(off, first) <= 2 and far(off, fixed) > 5
    alone = pictures(family, library, "a cat <lora:neon:0.5:hr=0>")
    assert (alone == pictures(family, library, "a cat <lora:neon:0.5>")).all()


def test_the_report_tells_weights_over_the_steps(tiny_one: tuple[ModelFamily, Library]) -> None:
    family, library = tiny_one
    request = ImageRequest.from_values({
        "prompt": "a <lora:NEON:0.5:0.25> <lora:neon:0.5> <lora:nein:1>", "steps": 4, "seed": 1,
        "negative_prompt": "[<lora:oil:1>:0.5]",
    })  # fmt: skip
    painter = ImagePipeline(family, library)
    report = painter.plan(request).report(0)
    painter.blend.clear()
    [neon, oil] = report["loras"]
    assert (neon["tag"], neon["name"], neon["file"]) == ("NEON", "neon", "neon.safetensors")
    assert (neon["weight"], neon["text_encoder_weight"], neon["steps"]) == (0.75, 1.0, ())
    assert neon["hash"] == library.hashes(library.find("neon")).autov3 and neon["layers"] > 80
    assert oil["negative"] and oil["steps"] == ((1, 0.0, 0.0), (3, 1.0, 1.0))
    assert report["unused"] == {"nein": "there is no LoRA 'nein'. Did you mean neon?"}
    assert len(report["problems"]) == 2


def test_a_name_taken_for_another_is_told_and_used(tiny_one: tuple[ModelFamily, Library]) -> None:
    family, library = tiny_one
    painter = ImagePipeline(family, library)
    sheet = painter.plan(
        ImageRequest.from_values({"prompt": "a <lora:styles/neon.safetensors:0.5>"})
    )
    painter.blend.clear()
    assert [use["file"] for use in sheet.report(0)["loras"]] == ["neon.safetensors"]
    assert [problem.message for problem in sheet.problems] == [
        "'styles/neon.safetensors' is taken as 'neon': it is the only file of that name, in "
        "another folder"
    ]


def test_what_is_told_keeps_its_template_and_its_record_names_no_folder(
    tiny_one: tuple[ModelFamily, Library], tmp_path: Path
) -> None:
    (tmp_path / "x.txt").write_bytes(b"\x00\x01\x02\x03\x00\x00\xff")
    painter = ImagePipeline(tiny_one[0], tiny_one[1], PromptResources(wildcards=tmp_path))
    sheet = painter.plan(
        ImageRequest.from_values({"prompt": "__x__ <lora:nobody:1>", "clip_skip": 9})
    )
    told = {p.message.template: p.message for p in sheet.problems}
    assert told["{name!r} is not used: {why}"].values["why"].startswith("there is no LoRA")
    skipped = told["{setting} = {given} is more than this model has layers; {limit} is used"]
    assert skipped.on(PAGE).startswith("CLIP skip = 9")
    report = sheet.report(0)
    assert any("x.txt" in problem for problem in report["problems"])
    assert str(tmp_path) not in str(report) and report["unused"].keys() == {"nobody"}


def test_styles_wildcards_and_words_of_a_workspace(tmp_path: Path) -> None:
    family = open_tiny("sd1")
    (tmp_path / "pets.txt").write_text("cat\ndog zibo\n")
    (tmp_path / "styles.csv").write_text("name,prompt,negative_prompt\noil,{prompt} in oil,ugly\n")
    rng = torch.Generator().manual_seed(0)
    for name, width in (("zibo", 16), ("other", 768)):
        rows = torch.randn((2, width), generator=rng)
        save_file({"emb_params": rows}, tmp_path / f"{name}.safetensors")
    (tmp_path / "old.pt").write_bytes(b"\x80\x04")
    painter = ImagePipeline(
        family, Library([]), PromptResources(tmp_path / "styles.csv", tmp_path, tmp_path)
    )
    request = ImageRequest.from_values({
        "prompt": "a __pets__ # not\nother old", "styles": ["oil", "oli"], "seed": 1, "count": 6,
        "steps": 1,
    })  # fmt: skip
    sheet = painter.plan(request)
    texts = {wish.prompt for wish in sheet.images}
    assert texts == {"a cat\nother old in oil", "a dog zibo\nother old in oil"}
    assert {wish.negative_prompt for wish in sheet.images} == {"ugly"}
    with_word = next(i for i, wish in enumerate(sheet.images) if "zibo" in wish.prompt)
    without = next(i for i, wish in enumerate(sheet.images) if "cat" in wish.prompt)
    assert list(sheet.report(with_word)["embeddings"]) == ["zibo"]
    assert sheet.report(without)["embeddings"] == {}
    assert sheet.problems[0].message == "there is no style 'oli' in styles.csv. Did you mean oil?"
    told = "\n".join(problem.message for problem in sheet.problems)
    assert "'other' is not used: it is for Stable Diffusion 1; the open model is" in told
    assert "'old' is not used: old.pt may hold code" in told
    painter.blend.clear()
