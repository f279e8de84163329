"""What the picture's sheet says about the LoRAs that its prompt names."""

from pathlib import Path

import torch

from sdlora.lora.adapter import Adapter
from sdlora.lora.file import LoraFile, write_lora
from sdlora.lora.library import Library
from sdlora.paint import Painter
from sdlora.settings import ImageRequest
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
    was, painter = weights_hash(family), Painter(family, Library([tmp_path]))
    sheet = painter.prepare(
        ImageRequest(prompt="a cat <lora:neon:0.5> <lora:neon:0.5:0.25> lora:neon:-0.2")
    )
    assert sheet.problems == [
        "2 layers of 'neon' are not in this model and are not used: "
        "lora_unet_astray_0, lora_unet_astray_1",
        "'neon' stands 3 times, and its weights add up: 0.5 + 0.25 + -0.2 = 0.55",
        "the LoRA's own word 'a' is not used: the model has one",
    ]
    (use,) = sheet.loras
    assert (use.name, use.layers) == ("neon", len(layers))
    painter.blend.clear()
    assert weights_hash(family) == was
