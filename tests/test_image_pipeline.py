"""What the picture's sheet says about the LoRAs that its prompt names."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sdlora.inference.image_pipeline import ImageDone, ImagePipeline
from sdlora.inference.plan import GenerationPlan
from sdlora.lora.format.file import LoraFile, write_lora
from sdlora.lora.format.layer import Adapter
from sdlora.lora.library.library import Library
from sdlora.settings.image_request import ImageRequest
from tiny import open_tiny, tiny_lora, weights_hash


def test_strays_sums_and_words_are_told(tmp_path: Path) -> None:
    family = open_tiny("sd1")
    layers = tiny_lora(family).layers
    strays = {
        f"lora_unet_astray_{i}": Adapter.lora(torch.ones(1, 4), torch.ones(4, 1), 1.0)
        for i in range(2)
    }
    words = {"a": {"": torch.ones(1, 16)}}  # the model has the letter
    write_lora(LoraFile({**layers, **strays}, {}, words), tmp_path / "neon.safetensors")
    was, painter = weights_hash(family), ImagePipeline(family, Library([tmp_path]))
    plan = painter.plan(
        ImageRequest(prompt="a cat <lora:neon:0.5> <lora:neon:0.5:0.25> lora:neon:-0.2")
    )
    assert [problem.message for problem in plan.problems] == [
        "2 layers of 'neon' are not in this model and are not used: "
        "lora_unet_astray_0, lora_unet_astray_1",
        "'neon' stands 3 times, and its weights add up: 0.5 + 0.25 + -0.2 = 0.55",
        "the LoRA's own word 'a' is not used: the model has one",
    ]
    (use,) = plan.lora_uses(0)
    assert (use.name, use.layers) == ("neon", len(layers))
    painter.blend.clear()
    assert weights_hash(family) == was


def images_of(painter: ImagePipeline, plan: GenerationPlan) -> list[Image.Image]:
    events = painter.generate(plan)
    return [event.image for event in events if isinstance(event, ImageDone)]


def painted(painter: ImagePipeline, tags: str, **asked: object) -> np.ndarray:
    """(N, H, W, 3) of a cat with these tags."""
    request = ImageRequest.from_values({"prompt": f"a cat {tags}", "seed": 1, "steps": 6, **asked})
    made = images_of(painter, painter.plan(request))
    return np.stack([np.asarray(image) for image in made]).astype(int)


def test_a_weight_that_changes_over_the_steps_is_the_merged_one_at_each(tmp_path: Path) -> None:
    family = open_tiny("sd1")
    for seed, name in enumerate(("neon", "oil")):
        file = tiny_lora(family, seed, train_text_encoder=False)
        write_lora(file, tmp_path / f"{name}.safetensors", torch.float32)
    was, painter = weights_hash(family), ImagePipeline(family, Library([tmp_path]))
    plain, full = painted(painter, ""), painted(painter, "<lora:neon:1>")
    assert np.abs(full - plain).max() > 20
    same = {
        "<lora:neon:1@0,1@1>": full,
        "<lora:neon:0@0,0@1>": plain,
        "[<lora:neon:1>:1.0]": plain,
        "<lora:oil:0.5> <lora:neon:1@0,1@1>": painted(painter, "<lora:oil:0.5> <lora:neon:1>"),
    }
    for tags, expected in same.items():
        assert np.abs(painted(painter, tags) - expected).max() <= 2, tags
    moving = painted(painter, "<lora:neon:0@0,1@6>")
    assert np.abs(moving - full).max() > 5 and np.abs(moving - plain).max() > 5
    assert (painted(painter, "") == plain).all()
    painter.blend.clear()
    assert weights_hash(family) == was


def test_a_switch_half_way_equals_the_two_halves_made_by_hand(tmp_path: Path) -> None:
    family = open_tiny("sd1")
    file = tiny_lora(family, train_text_encoder=False)
    write_lora(file, tmp_path / "neon.safetensors", torch.float32)
    painter = ImagePipeline(family, Library([tmp_path]))
    half = painted(painter, "[<lora:neon:1>:3]", count=2, batch_size=2)
    images = []
    for index in range(2):
        one = ImageRequest.from_values({"prompt": "a cat", "seed": 1 + index, "steps": 6})
        for event in painter.generate(painter.plan(one)):
            if isinstance(event, ImageDone):
                images.append(event.image)
            elif event.state.step == 3:
                painter.blend.apply([(file, 1.0, 1.0)])
    by_hand = np.stack([np.asarray(image) for image in images]).astype(int)
    assert np.abs(half - by_hand).max() <= 2
    assert np.abs(half - painted(painter, "<lora:neon:1>", count=2)).max() > 5
