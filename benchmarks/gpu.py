"""Speed and memory of training and generating on a GPU: `python -m benchmarks.gpu`.

Networks in the shape of SD 1.5 at 512 px and SDXL at 1024 px, with random weights; the base as
usual, in int8, fp8 and nf4, and with its blocks streamed from main memory. Training, with and
without gradient checkpointing: pictures a second, and the peak of a step in GiB. Generating: steps
a second at guidance (two rows a picture) with 0, 1 and 4 LoRAs, and the peak. VAE and text encoders
are not there, as after their work is done.

Without a GPU it is a trial of the script: `--unets small --pixels 64`.
"""

from __future__ import annotations

import argparse
import gc
from typing import Any

import torch

from benchmarks.blend import UNETS, random_lora
from benchmarks.memory import BASES, train_state, unet_family
from benchmarks.report import show
from benchmarks.training import Encoded, peak_gib, seconds
from sdlora.adapters import Blend, detach
from sdlora.device import DTYPES, pick_device, pick_dtype
from sdlora.models.base import ModelFamily
from sdlora.training.out_of_memory import OUT_OF_MEMORY

PIXELS = {"sd15": 512, "sdxl": 1024, "small": 64}
MODES = tuple(base for base in BASES if not base.endswith("first"))
LORAS = (0, 1, 4)


def training_row(family: ModelFamily, options: argparse.Namespace, checkpointing: bool) -> Any:
    """Return pictures a second and the peak; that it did not fit, where it does not."""
    peak_gib(family.device)
    try:
        state = train_state(family, options, gradient_checkpointing=checkpointing)
        step_s = seconds(state.train_step, options)
    except OUT_OF_MEMORY:
        return "out of memory"
    finally:
        detach(family)
    return {"images/s": options.batch / step_s, "peak_gib": peak_gib(family.device)}


@torch.no_grad()
def generating_row(family: ModelFamily, options: argparse.Namespace, loras: int) -> Any:
    """Return steps a second with so many LoRAs, and the peak."""
    blend = Blend(family)
    family.denoiser.eval()
    blend.apply([(random_lora(family, options.rank, seed), 0.5, 0.0) for seed in range(loras)])
    batch = Encoded(family, 2 * options.batch, options.pixels).batch(1).to(family.device)
    text = family.condition_on_size(batch.conditioning.to(family.device, family.dtype), batch.sizes)
    x, t = batch.latents.to(family.dtype), torch.tensor(500, device=family.device)
    peak_gib(family.device)
    step_s = seconds(lambda _: family.predict(x, t, text), options)
    peak = peak_gib(family.device)
    blend.clear()
    return {"steps/s": 1 / step_s, "peak_gib": peak}


def measure(kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the table of one network: a row per base."""
    table: dict[str, Any] = {}
    for base in MODES:
        family = unet_family(kind, base, options.device, DTYPES[options.dtype])
        generating = {f"{n} LoRAs": generating_row(family, options, n) for n in LORAS}
        training = {
            "plain": training_row(family, options, checkpointing=False),
            "checkpointing": training_row(family, options, checkpointing=True),
        }
        held = (family.details.get(name) for name in ("frozen weights", "streamed blocks"))
        weights = "; ".join(filter(None, held)) or "as usual"
        table[base] = {"weights": weights, "generating": generating, "training": training}
        del family
        gc.collect()
        if options.device.type == "cuda":
            torch.cuda.empty_cache()
        print(f"{kind}, {base}: {table[base]}", flush=True)
    return table


def options_of(words: list[str] | None = None) -> argparse.Namespace:
    """Return the command line's options; `words` in place of it."""
    device = pick_device()[0]
    dtype = next(name for name, of in DTYPES.items() if of == pick_dtype(device)[0])
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--unets", choices=UNETS, nargs="+", default=["sd15", "sdxl"])
    parser.add_argument("--device", type=torch.device, default=device)
    parser.add_argument("--dtype", choices=DTYPES, default=dtype)
    parser.add_argument("--pixels", type=int, default=0, help="a side; 0: 512, SDXL 1024")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--clock", default="wall")
    return parser.parse_args(words)


def main() -> None:
    """Measure and print as JSON."""
    options, tables = options_of(), {}
    asked = {name: str(value) for name, value in vars(options).items()}
    for kind in options.unets:
        pixels = options.pixels or PIXELS[kind]
        tables[kind] = measure(kind, argparse.Namespace(**{**vars(options), "pixels": pixels}))
    show({"asked": asked, **tables})


if __name__ == "__main__":
    main()
