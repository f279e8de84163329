"""The text a picture carries about its making, as A1111 writes and reads it.

    prompt, tags included
    Negative prompt: ...
    Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512, Lora hashes: "neon: 1a2b..."

AUTOMATIC1111/stable-diffusion-webui: modules/processing.py create_infotext, modules/images.py
save_image_with_geninfo, modules/infotext_utils.py quote.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdlora.workspace import publish


def infotext(prompt: str, negative_prompt: str, fields: Mapping[str, object]) -> str:
    """The whole text. `fields` are written in their order; None and empty ones are left out."""
    said = {key: str(value) for key, value in fields.items() if value not in (None, "")}
    lines = [
        prompt,
        f"Negative prompt: {negative_prompt}" if negative_prompt else "",
        ", ".join(f"{key}: {_quoted(value)}" for key, value in said.items()),
    ]
    return "\n".join(line for line in lines if line).strip()


def _quoted(value: str) -> str:
    """JSON where the value holds what separates fields."""
    return json.dumps(value, ensure_ascii=False) if set(value) & set(',:\n"') else value


def lora_hashes(hashes: Mapping[str, str]) -> str:
    """`name: hash, name: hash`; A1111 takes ':' and ',' out of the names."""
    plain = str.maketrans("", "", ":,")
    return ", ".join(f"{name.translate(plain)}: {hash_}" for name, hash_ in hashes.items())


def write_png(image: Image.Image, path: Path, parameters: str) -> Path:
    """Write the picture with its text chunk `parameters`, complete or not at all."""
    chunks = PngInfo()
    chunks.add_text("parameters", parameters)
    return publish(path, lambda temporary: image.save(temporary, "png", pnginfo=chunks))
