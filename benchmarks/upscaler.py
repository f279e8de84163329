"""What the starter's upscaler adds: `python -m benchmarks.upscaler [--count 40]`.

Fresh scenes drawn at 128 px go through the VAE, and are enlarged to 256 px by Lanczos and by the
upscaler; both are compared with the same scenes drawn at 256 px. PSNR, and sharpness: the energy of
the gradient near the drawn lines, the drawn picture's being 1. Plain and in every style and look.
"""

from __future__ import annotations

import random

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image, ImageFilter
from torch import Tensor

from benchmarks.report import asked, show
from sdlora.starter.draw import STYLES, draw, random_scene
from sdlora.starter.measure import to_pixels
from sdlora.starter.sets import SETS
from sdlora.upscalers.files import default_upscaler
from sdlora.upscalers.upscale import Upscaler
from sdlora.workspace import STARTER_MODEL

SIDE = 128
LINE_STEP = 24.0  # of 255: a change of brightness to the next pixel that makes it one of a line


def scene_pair(look: str, rng: random.Random, large: int) -> tuple[Image.Image, Image.Image]:
    """Return a random scene in a look, at the model's size and at `large` pixels."""
    scene, seed = random_scene(rng), rng.randrange(2**31)
    pair = []
    for side in (SIDE, large):
        image = SETS[look].draw(scene, side) if look in SETS else draw(scene, side)
        if look in STYLES:
            image = STYLES[look](image, random.Random(seed))
        pair.append(image.convert("RGB"))
    return pair[0], pair[1]


@torch.no_grad()
def through(vae: AutoencoderKL, image: Image.Image) -> Image.Image:
    """Return what the VAE makes of a picture."""
    restored: Tensor = vae.decode(vae.encode(to_pixels([image])).latent_dist.mean).sample[0]
    levels = ((restored.clamp(-1, 1) + 1) * 127.5).round().byte()
    return Image.fromarray(levels.permute(1, 2, 0).numpy())


def psnr(made: Image.Image, drawn: Image.Image) -> float:
    """Decibels over 0..255."""
    error = (np.asarray(made, float) - np.asarray(drawn, float)) / 255
    return float(-10 * np.log10((error**2).mean()))


def slopes(image: Image.Image) -> np.ndarray:
    """(H-1, W-1) squared gradient of the grey picture, by differences to the next pixel."""
    grey = np.asarray(image.convert("L"), float)
    squared: np.ndarray = (grey[1:, :-1] - grey[:-1, :-1]) ** 2 + (
        grey[:-1, 1:] - grey[:-1, :-1]
    ) ** 2
    return squared


def sharpness(made: Image.Image, drawn: Image.Image) -> float:
    """Energy of the gradient within two pixels of the drawn lines, the drawn picture's being 1."""
    energy = slopes(drawn)
    lines = Image.fromarray((energy > LINE_STEP**2).astype(np.uint8) * 255)
    near = np.asarray(lines.filter(ImageFilter.MaxFilter(5))) > 0
    return float(slopes(made)[near].sum() / max(energy[near].sum(), 1.0))


def rows_of(look: str, count: int, vae: AutoencoderKL, upscaler: Upscaler) -> dict[str, float]:
    """Return the means of a look: decibels and sharpness, by Lanczos and by the upscaler."""
    rng, size = random.Random(99), (SIDE * upscaler.scale,) * 2
    rows = []
    for _ in range(count):
        drawn, large = scene_pair(look, rng, size[0])
        small = through(vae, drawn)
        ways = (small.resize(size, Image.Resampling.LANCZOS), upscaler.enlarge(small))
        rows.append([f(made, large) for f in (psnr, sharpness) for made in ways])
    names = ("psnr, lanczos", "psnr, upscaler", "sharpness, lanczos", "sharpness, upscaler")
    means = np.mean(rows, axis=0)
    return {name: round(float(value), 2) for name, value in zip(names, means, strict=True)}


def main() -> None:
    """Measure and print the table."""
    options = asked(__doc__, count=40)
    vae = AutoencoderKL.from_pretrained(STARTER_MODEL, subfolder="vae").float().eval()
    path = default_upscaler(STARTER_MODEL)
    assert path, "the starter model ships with one"
    upscaler = Upscaler.from_file(path, torch.device("cpu"))
    show({look: rows_of(look, options.count, vae, upscaler) for look in ("plain", *STYLES, *SETS)})


if __name__ == "__main__":
    main()
