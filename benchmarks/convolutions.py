"""What convolutions as matrix products bring on a processor: `python -m benchmarks.convolutions`.

First layers of the shapes of SD 1.5, forward and backward, by torch's own convolution and as a
product. Then steps of a training and of pictures on its whole UNet, both ways in turn.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.blend import open_unet
from benchmarks.report import show
from benchmarks.training import ours_and_bare
from sdlora.models import im2col_convolution
from sdlora.models.im2col_convolution import Im2colConv2d

# in, out, side of the kernel, side of the picture
LAYERS = (
    (2560, 1280, 3, 2), (1280, 1280, 3, 2), (2560, 1280, 3, 4), (1280, 1280, 3, 4),
    (1280, 1280, 3, 8), (640, 640, 3, 8), (640, 640, 3, 16), (320, 320, 3, 16), (1280, 1280, 1, 8),
)  # fmt: skip
USUAL = im2col_convolution.MAX_PIXELS


def median_s(work: Callable[[], object], rounds: int) -> float:
    """Seconds of the median of some rounds, after one that is not counted."""
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def layer_row(shape: tuple[int, ...], batch: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of forward and backward of one layer, both ways."""
    inner, outer, kernel, side = shape
    conv = nn.Conv2d(inner, outer, kernel, padding=kernel // 2).requires_grad_(False)
    x = torch.randn(batch, inner, side, side, requires_grad=True)
    grad = torch.randn(batch, outer, side, side)
    im2col_convolution.MAX_PIXELS = 2**30

    def time_ms(way: nn.Module) -> float:
        return 1000 * median_s(lambda: way(x).backward(grad), rounds)

    row = {"torch ms": time_ms(conv), "product ms": time_ms(Im2colConv2d.of(conv))}
    im2col_convolution.MAX_PIXELS = USUAL
    ratio = row["torch ms"] / row["product ms"]
    return {"layer": str(shape), "batch": batch, **row, "torch / product": ratio}


def step_rows(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of steps on a whole UNet, both ways in turn, and the median ratio of the pairs."""
    family = open_unet("sd15", torch.device("cpu"), torch.float32)
    train = ours_and_bare(family, options)["ours"]
    cells = options.pixels // 8
    x, context = torch.randn(2, 4, cells, cells), torch.randn(2, 77, 768)
    t = torch.full((2,), 500)

    @torch.no_grad()
    def picture(step: int) -> None:
        family.denoiser(x, t, context)

    found: dict[str, float] = {}
    for name, step in {"training": train, "picture": picture}.items():
        pairs = []
        for number in range(options.rounds + 1):
            times = {}
            for way, pixels in (("torch", 0), ("product", USUAL)):
                im2col_convolution.MAX_PIXELS = pixels
                began = time.perf_counter()
                step(number + 1)
                times[way] = time.perf_counter() - began
            pairs.append(times)
        found |= {f"{name} {way} s": statistics.median(p[way] for p in pairs[1:]) for way in times}
        found[f"{name} torch / product"] = statistics.median(
            p["torch"] / p["product"] for p in pairs[1:]
        )
    return found


def main() -> None:
    """Measure and print as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pixels", type=int, default=128)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    options.checkpointing = False
    torch.set_num_threads(options.threads)
    layers = [
        layer_row(shape, batch, options.rounds)
        for shape, batch in itertools.product(LAYERS, (1, 4))
        if batch * shape[3] ** 2 <= 256
    ]
    show({"threads": options.threads, "layers": layers, **step_rows(options)})


if __name__ == "__main__":
    main()
