"""How much of a style is in a picture, read by the starter model's own eyes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from sdlora.starter.draw import draw
from sdlora.starter.sets import SETS, pictures


def to_pixels(images: Sequence[Image.Image]) -> Tensor:
    """(B, 3, H, W) in -1..1 of pictures of one size."""
    stacked = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def style_statistics(vae: AutoencoderKL, images: Sequence[Image.Image]) -> Tensor:
    """(B, F) mean and spread of every channel after each stage of the encoder: what is left of a
    picture when one forgets where things are (arXiv:1703.06868, eq. 5 and 6)."""
    parameter = next(vae.parameters())
    features = vae.encoder.conv_in(to_pixels(images).to(parameter))
    found = []
    for stage in vae.encoder.down_blocks:
        features = stage(features)
        flat = features.float().flatten(2)
        found += [flat.mean(2), flat.std(2)]
    return torch.cat(found, dim=1).cpu()


class StyleAxis:
    """The line from plain pictures to the same scenes in a shipped set's style.

    0 is plain, 1 is the set itself. The direction is Fisher's linear discriminant (1936) with a
    diagonal spread, so that channels that vary from scene to scene count less.
    """

    def __init__(self, vae: AutoencoderKL, name: str) -> None:
        scenes = [scene for _, _, scene in pictures(name)]
        plain = style_statistics(vae, [draw(scene) for scene in scenes])
        styled = style_statistics(vae, [SETS[name].draw(scene) for scene in scenes])
        self.vae, self.zero = vae, plain.mean(0)
        spread = (plain.var(0) + styled.var(0)) / 2 + 1e-6
        way = styled.mean(0) - self.zero
        self.axis = way / spread / (way.square() / spread).sum()

    def score(self, images: Sequence[Image.Image]) -> Tensor:
        """(B,) place of each picture on the line."""
        return (style_statistics(self.vae, images) - self.zero) @ self.axis
