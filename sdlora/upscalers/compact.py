"""Upscalers of the Compact kind, the smallest of the ESRGAN family: network, reader and writer.

Real-ESRGAN (arXiv:2107.10833) calls the layout SRVGGNetCompact. Its files hold one sequence, named
`body`: convolutions at even numbers, a PReLU after each but the last, which makes scale^2 pixels of
each pixel. Public files of it are realesr-general-x4v3 (64 features, 32 convolutions, scale 4) and
realesr-animevideov3 (64, 16, 4). Only safetensors files are read: a .pth is a pickle, which can
hold a program.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from sdlora.errors import ModelError

COLOURS = 3
PREFIXES = ("params_ema.", "params.", "")  # how training code nests the weights, best first
MAX_FEATURES, MAX_CONVOLUTIONS, MAX_SCALE = 512, 256, 8


@dataclass(frozen=True)
class CompactLayout:
    """Numbers that a file's shapes tell: channels inside, convolutions between first and last, and
    the factor by which a side grows."""

    features: int
    convolutions: int
    scale: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor of such a network, by name."""
        last = 2 * self.convolutions + 2
        shapes: dict[str, tuple[int, ...]] = {}
        for place in range(0, last + 1, 2):
            inputs = COLOURS if place == 0 else self.features
            outputs = COLOURS * self.scale**2 if place == last else self.features
            shapes[f"body.{place}.weight"] = (outputs, inputs, 3, 3)
            shapes[f"body.{place}.bias"] = (outputs,)
            if place < last:
                shapes[f"body.{place + 1}.weight"] = (self.features,)
        return shapes


class CompactUpscaler(nn.Module):
    """Convolutions at the small size, a pixel shuffle, and the enlarged picture added to it."""

    def __init__(self, layout: CompactLayout) -> None:
        super().__init__()
        self.layout = layout
        features = layout.features
        layers: list[nn.Module] = [nn.Conv2d(COLOURS, features, 3, padding=1), nn.PReLU(features)]
        for _ in range(layout.convolutions):
            layers += [nn.Conv2d(features, features, 3, padding=1), nn.PReLU(features)]
        layers.append(nn.Conv2d(features, COLOURS * layout.scale**2, 3, padding=1))
        self.body = nn.ModuleList(layers)

    @property
    def scale(self) -> int:
        """Factor by which a side grows."""
        return self.layout.scale

    @property
    def reach(self) -> int:
        """Pixels of the small picture, each way, that a pixel of the large one depends on."""
        return self.layout.convolutions + 2

    def forward(self, pixels: Tensor) -> Tensor:
        """Enlarge pixels (B,3,h,w) in 0..1 to (B,3,h*scale,w*scale), which may leave 0..1."""
        features = pixels
        for layer in self.body:
            features = layer(features)
        detail = functional.pixel_shuffle(features, self.scale)
        return detail + functional.interpolate(pixels, scale_factor=self.scale, mode="nearest")


def read_compact(path: Path) -> CompactUpscaler:
    """Read an upscaler in float32, its numbers checked before anything is allocated.

    ModelError: the file is not there, is damaged, is a pickle or holds something else.
    """
    if path.suffix.lower() != ".safetensors":
        raise ModelError(
            "{file} is not opened: only .safetensors files are, for others can hold programs; "
            "convert it to safetensors",
            file=path.name,
        )
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        prefix, layout = _layout_of(shapes, path)
        tensors = load_file(path)
    except OSError as error:
        raise ModelError(
            "the upscaler {file} cannot be read: {why}", file=path, why=error.strerror or error
        ) from None
    except SafetensorError as error:
        raise ModelError("the upscaler {file} is damaged: {why}", file=path, why=error) from None
    network = CompactUpscaler(layout)
    network.load_state_dict({name: tensors[prefix + name].float() for name in layout.shapes()})
    return network.eval().requires_grad_(False)


def write_compact(network: CompactUpscaler, path: Path, dtype: torch.dtype) -> None:
    """Write the weights under the names that other programs read; an old file is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().to("cpu", dtype) for key, value in network.state_dict().items()}
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)


def _layout_of(shapes: Mapping[str, tuple[int, ...]], path: Path) -> tuple[str, CompactLayout]:
    """Return the prefix of the names, and the layout. ModelError: it is no whole Compact file."""
    for prefix in PREFIXES:
        names = {
            name.removeprefix(prefix): shape
            for name, shape in shapes.items()
            if name.startswith(prefix + "body.")
        }
        first = names.get("body.0.weight", ())
        layout = _guess(names) if len(first) == 4 else None
        if layout and layout.shapes() == names:
            return prefix, layout
    raise ModelError(
        "{file} is not an upscaler of the Compact kind (body.0.weight and so on: convolutions and "
        "PReLU in turn, 3 colours in and out); others cannot be used yet",
        file=path.name,
    )


def _guess(shapes: Mapping[str, tuple[int, ...]]) -> CompactLayout | None:
    """Return the layout that the first and the last layer and the number of layers would have;
    None where such a one cannot be."""
    convolutions = sum(1 for shape in shapes.values() if len(shape) == 4) - 2
    last = shapes.get(f"body.{2 * convolutions + 2}.bias", (0,))
    features, scale = shapes["body.0.weight"][0], math.isqrt(math.prod(last) // COLOURS)
    possible = 1 <= features <= MAX_FEATURES and 1 <= scale <= MAX_SCALE
    if not possible or not 0 <= convolutions <= MAX_CONVOLUTIONS:
        return None
    return CompactLayout(features, convolutions, scale)
