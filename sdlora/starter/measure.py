"""Style score of pictures, from features of the starter model's VAE encoder."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from sdlora.starter.draw import Scene, draw, random_scene
from sdlora.starter.sets import SETS

STYLES = ("impressionist_style", "neon_lighting", "cyberpunk_architecture")
RIDGE = 0.03  # per picture; of 0.03, 0.3 and 1 it told fresh pictures apart best


def to_pixels(images: Sequence[Image.Image]) -> Tensor:
    """(B, 3, H, W) in -1..1 of pictures of one size."""
    stacked = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def style_statistics(vae: AutoencoderKL, images: Sequence[Image.Image]) -> Tensor:
    """Return (B, F) mean and standard deviation of every channel after each stage of the encoder:
    the style statistics of arXiv:1703.06868, eq. 5 and 6, without positions."""
    parameter = next(vae.parameters())
    features = vae.encoder.conv_in(to_pixels(images).to(parameter))
    statistics = []
    for stage in vae.encoder.down_blocks:
        features = stage(features)
        flat = features.float().flatten(2)
        statistics += [flat.mean(2), flat.std(2)]
    return torch.cat(statistics, dim=1).cpu()


class StyleAxis:
    """The line from plain pictures to the same scenes in a shipped set's style.

    0 is plain, 1 is the style. The direction is ridge regression (Hoerl and Kennard 1970) on the
    statistics, with the other styles at 0 too: what nights have in common, or two styles, such as
    lit windows, does not count.
    """

    def __init__(self, vae: AutoencoderKL, name: str, scenes: int = 32) -> None:
        plain = style_statistics(vae, [draw(scene) for scene in scenes_for(name, scenes)])
        own = style_statistics(vae, styled(name, scenes))
        others = [style_statistics(vae, styled(n, scenes // 2)) for n in STYLES if n != name]
        rows = torch.cat([own, plain, *others]).double()
        labels = torch.zeros(len(rows), dtype=torch.double)
        labels[:scenes] = 1
        middle, spread = rows.mean(0), rows.std(0) + 1e-4
        seen = (rows - middle) / spread
        damped = seen.T @ seen + RIDGE * len(rows) * torch.eye(seen.shape[1], dtype=torch.double)
        self.axis = torch.linalg.solve(damped, seen.T @ (labels - labels.mean())) / spread
        self.vae, self.zero, self.spread = vae, plain.double().mean(0), spread
        self.axis /= (own.double().mean(0) - self.zero) @ self.axis

    def score(self, images: Sequence[Image.Image]) -> Tensor:
        """(B,) place of each picture on the line."""
        scores: Tensor = (style_statistics(self.vae, images).double() - self.zero) @ self.axis
        return scores


def scenes_for(name: str, count: int, seed: int = 1) -> list[Scene]:
    """Random scenes of what the set `name` is about."""
    rng = random.Random(seed)
    scenes = [random_scene(rng) for _ in range(count)]
    if name == "cyberpunk_architecture":
        return [replace(scene, thing="house") for scene in scenes]
    return scenes


def styled(name: str, count: int) -> list[Image.Image]:
    """The pictures of `scenes_for` in the style of the set."""
    return [SETS[name].draw(scene) for scene in scenes_for(name, count)]
