"""Upscaling of finished pictures, in one go or in tiles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sdlora.upscalers.compact import CompactUpscaler, read_compact

TILE = 512  # pixels of the small picture along a tile's side, without its overlap


@dataclass(frozen=True, eq=False)
class Upscaler:
    """An upscaler that is open: its file's name without ending, its network and the device."""

    name: str
    network: CompactUpscaler
    device: torch.device

    @classmethod
    def from_file(cls, path: Path, device: torch.device) -> Upscaler:
        """Open a file. ModelError: it cannot be used."""
        return cls(path.stem, read_compact(path).to(device), device)

    @property
    def scale(self) -> int:
        """Factor by which a side grows."""
        return self.network.scale

    @torch.no_grad()
    def enlarge(self, image: Image.Image, tile: int = TILE) -> Image.Image:
        """Return the picture `scale` times as large, in RGB.

        Tiles overlap by as far as the network looks, so that no seam is there to be seen and a
        large picture takes the memory of one tile.
        """
        levels = np.asarray(image.convert("RGB"))
        pixels = torch.from_numpy(levels.copy()).permute(2, 0, 1)[None].float() / 255
        height, width, _ = levels.shape
        large = np.empty((height * self.scale, width * self.scale, 3), np.uint8)
        for rows in _spans(height, tile):
            for columns in _spans(width, tile):
                places = tuple(
                    slice(s.start * self.scale, s.stop * self.scale) for s in (rows, columns)
                )
                large[places] = self._tile(pixels, rows, columns)
        return Image.fromarray(large)

    def _tile(self, pixels: Tensor, rows: slice, columns: slice) -> np.ndarray:
        """Return rows and columns of pixels (1,3,H,W) enlarged, (h*scale, w*scale, 3) uint8."""
        reach, scale = self.network.reach, self.scale
        top, left = (max(0, span.start - reach) for span in (rows, columns))
        part = pixels[..., top : rows.stop + reach, left : columns.stop + reach]
        made = self.network(part.to(self.device))[0].cpu()
        down, right = (rows.start - top) * scale, (columns.start - left) * scale
        height, width = ((span.stop - span.start) * scale for span in (rows, columns))
        inner = made[:, down : down + height, right : right + width]
        levels: np.ndarray = (inner * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
        return levels


def _spans(length: int, tile: int) -> Iterator[slice]:
    """Yield even parts of a side, none longer than `tile`."""
    count = -(-length // tile)
    edges = [length * number // count for number in range(count + 1)]
    yield from (slice(*pair) for pair in zip(edges, edges[1:], strict=False))
