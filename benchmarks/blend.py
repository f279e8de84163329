"""How fast LoRAs switch, and what they cost while they stand: `python -m benchmarks.blend`.

UNets in the shapes of SD 1.5 and SDXL with random weights, LoRAs on attention and feed-forward
layers. Beside our own times: the floor, which is the larger of copying the touched weights once and
of the low-rank products alone, and diffusers, which loads, sets and fuses the same files. Each time
is the best of several, memory what stands and the peak on the way there. Where memory is too small
for the numbers that the program would pick, bfloat16 is measured.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import psutil
import torch
import transformers
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from benchmarks.report import show
from sdlora.adapters import Blend
from sdlora.device import DTYPES, free_memory_gib, pick_device, pick_dtype
from sdlora.lora.format.file import LoraFile, read_lora, write_lora
from sdlora.lora.format.layer import Adapter
from sdlora.models.base import ModelFamily
from sdlora.models.sd import StableDiffusion
from sdlora.models.sdxl import StableDiffusionXL

_SDXL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
}
# The configs of the published models' UNets; `small` is SDXL's in small, to see that all of it runs
UNETS: dict[str, dict[str, Any]] = {
    "sd15": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "sdxl": {
        **_SDXL,
        "block_out_channels": (320, 640, 1280),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "transformer_layers_per_block": (1, 2, 10),
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 1280 + 6 * 256,
    },
    "small": {
        **_SDXL,
        "block_out_channels": (64, 64, 128),
        "attention_head_dim": (2, 2, 4),
        "cross_attention_dim": 64,
        "transformer_layers_per_block": (1, 1, 2),
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 16 + 6 * 8,
    },
}


def open_unet(kind: str, device: torch.device, dtype: torch.dtype) -> ModelFamily:
    """A family with a random UNet of that shape; what is around it is as small as it can be."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, **UNETS[kind])
    unet = unet.to(dtype).to_empty(device=device).eval()
    for name, parameter in unet.named_parameters():
        is_scale = "norm" in name and name.endswith("weight")
        parameter.data.fill_(1) if is_scale else parameter.data.uniform_(-0.02, 0.02)
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    parts: dict[str, Any] = {
        "unet": unet,
        "vae": AutoencoderKL(block_out_channels=(4,), norm_num_groups=2),
        "text_encoder": CLIPTextModel(_text_config()),
        "tokenizer": CLIPTokenizer(vocab=words, merges=[]),
        "scheduler": DDIMScheduler(),
    }
    if kind == "sd15":
        nothing = {"safety_checker": None, "feature_extractor": None}
        pipeline = StableDiffusionPipeline(**parts, **nothing, requires_safety_checker=False)
        return StableDiffusion("sd1", pipeline, device, dtype)
    second = CLIPTextModelWithProjection(_text_config())
    pipeline = StableDiffusionXLPipeline(
        **parts, text_encoder_2=second, tokenizer_2=parts["tokenizer"], add_watermarker=False
    )
    return StableDiffusionXL("sdxl", pipeline, device, dtype)


def _text_config() -> CLIPTextConfig:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "projection_dim": 8}
    return CLIPTextConfig(vocab_size=2, num_hidden_layers=1, num_attention_heads=1, **sizes)


def random_lora(family: ModelFamily, rank: int, seed: int) -> LoraFile:
    """On the layers that kohya's trainer takes by default, in float16."""
    rng = torch.Generator().manual_seed(seed)
    targets = family.lora_targets(("attention", "feed_forward"))["denoiser"]
    layers = {}
    for path in [path for paths in targets.values() for path in paths]:
        out, *inner = family.adaptable_layers["denoiser"][path].weight.shape
        down = torch.randn(rank, *inner, generator=rng) / rank
        up = 0.02 * torch.randn(out, rank, *(1 for _ in inner[1:]), generator=rng)
        name = "lora_unet_" + path.replace(".", "_")
        layers[name] = Adapter.lora(down.half(), up.half(), float(rank))
    return LoraFile(layers)


class Clock:
    """The best of several times, with the device's queue empty before and after."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device, self.repeats = device, repeats

    def best_s(
        self, work: Callable[[], object], before: Callable[[], object] | None = None
    ) -> float:
        """Seconds; `before` is done each time first, and not counted."""
        best = float("inf")
        for _ in range(self.repeats):
            if before:
                before()
            self._wait()
            began = time.perf_counter()
            work()
            self._wait()
            best = min(best, time.perf_counter() - began)
        return best

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class Memory:
    """How much memory more than at the start is held, and was at most: the GPU's or ours in RAM."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.held_gib = self.peak_gib = 0.0

    def _now(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated() / 2**30
        return float(psutil.Process().memory_info().rss / 2**30)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look every few milliseconds while the body runs."""
        gc.collect()
        with suppress(OSError, AttributeError):  # glibc keeps what is freed, and gives it again
            ctypes.CDLL(None).malloc_trim(0)
        start, done, seen = self._now(), threading.Event(), [0.0]

        def look() -> None:
            while not done.wait(0.005):
                seen.append(self._now() - start)

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
        self.held_gib = self._now() - start
        self.peak_gib = max(*seen, self.held_gib)


def keep_freed_memory() -> None:
    """Else glibc gives large pieces back to the system, and to get them again costs as much as the
    arithmetic: a step would look twice as fast after something large was freed."""
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def floor_s(family: ModelFamily, files: Sequence[LoraFile], clock: Clock) -> dict[str, float]:
    """Copying every touched weight once, and the products of all factors, written to one place."""
    places = Blend(family).match(files[0]).places
    weights = [family.adaptable_layers[part][path].weight.data for part, path, _ in places]
    copies = [weight.clone() for weight in weights]
    products: list[tuple[Tensor, Tensor, Tensor]] = []
    targets: dict[tuple[int, int], Tensor] = {}
    for name in files[0].layers:
        factors = [its for file in files if (its := file.layers[name].factors())]
        down = torch.cat([down.flatten(1) for down, _ in factors]).to(family.device)
        up = torch.cat([up for _, up in factors], 1).to(family.device)
        shape = (up.shape[0], down.shape[1])
        target = targets.setdefault(shape, torch.empty(shape, device=family.device))
        products.append((up, down, target))
    copy = clock.best_s(lambda: [w.copy_(c) for w, c in zip(weights, copies, strict=True)])
    product = clock.best_s(lambda: [torch.mm(up, down, out=to) for up, down, to in products])
    flops = sum(2 * up.shape[0] * down.numel() for up, down, _ in products)
    return {
        "copy_s": copy,
        "products_s": product,
        "products_at_the_best_rate_s": flops / matmul_rate(family.device, clock),
        "touched_gib": sum(weight.nbytes for weight in weights) / 2**30,
    }


def matmul_rate(device: torch.device, clock: Clock) -> float:
    """float32 operations a second in a large square product, which no narrow one reaches."""
    side = 2048 if device.type == "cpu" else 8192
    square = torch.randn(side, side, device=device)
    return 2 * side**3 / clock.best_s(lambda: torch.mm(square, square))


def step_inputs(family: ModelFamily, latent: int) -> dict[str, Any]:
    """Of one call of the UNet for one image with guidance."""
    config = family.denoiser.config
    numbers: dict[str, Any] = {"device": family.device, "dtype": family.dtype}
    inputs: dict[str, Any] = {
        "sample": torch.randn(2, 4, latent, latent, **numbers),
        "timestep": torch.tensor(500, device=family.device),
        "encoder_hidden_states": torch.randn(2, 77, config.cross_attention_dim, **numbers),
    }
    if config.addition_embed_type:
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {
            "text_embeds": torch.randn(2, pooled, **numbers),
            "time_ids": torch.ones(2, 6, **numbers),
        }
    return inputs


def measure_ours(
    family: ModelFamily, paths: Sequence[Path], clock: Clock, step: Callable[[], object]
) -> dict[str, Any]:
    """Switching between sets of so many LoRAs, from memory and from the disk, and a step then."""
    files, memory, blend = [read_lora(path) for path in paths], Memory(family.device), Blend(family)
    with memory.watched():
        blend.apply([(file, 0.8, 0.8) for file in files])
    strengths = iter(x / 997 for x in range(1, 997))

    def switch() -> None:
        strength = next(strengths)  # another one every time, so that every layer is computed
        blend.apply([(file, strength, strength) for file in files])

    def warm(prepare: Callable[[], object]) -> None:
        prepare()
        step()  # whichever state it is, the memory that a step needs has been used before

    def from_disk() -> None:
        blend.apply([(read_lora(path), 0.8, 0.8) for path in paths])

    times = {"switch_s": clock.best_s(switch), "from_disk_s": clock.best_s(from_disk)}
    times["back_to_none_s"] = clock.best_s(blend.clear, switch)
    times["from_none_s"] = clock.best_s(switch, blend.clear)
    times |= {"step_s": float("inf"), "step_none_s": float("inf")}
    for _ in range(clock.repeats):  # in turn, for a machine is not equally fast all the time
        for name, prepare in (("step_s", switch), ("step_none_s", blend.clear)):
            times[name] = min(
                times[name], Clock(family.device, 1).best_s(step, partial(warm, prepare))
            )
    return times | {"held_gib": memory.held_gib, "peak_gib": memory.peak_gib}


def measure_diffusers(
    family: ModelFamily, paths: Sequence[Path], clock: Clock, step: Callable[[], object]
) -> dict[str, Any]:
    """load_lora_weights + set_adapters, a step unfused, fuse_lora, and the way back."""
    pipeline, memory = family.pipeline, Memory(family.device)
    names = [path.stem for path in paths]
    once = Clock(family.device, 1)

    def load() -> None:
        for path in paths:
            pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name=path.stem)
        pipeline.set_adapters(names, [0.8] * len(names))

    def away() -> None:
        pipeline.unfuse_lora()
        pipeline.unload_lora_weights()

    with memory.watched():
        times = {"load_and_set_s": once.best_s(load)}
        times["step_unfused_s"] = clock.best_s(step)
        times["fuse_s"] = once.best_s(lambda: pipeline.fuse_lora(adapter_names=names))
    times["unfuse_and_unload_s"] = once.best_s(away)
    times["load_set_fuse_s"] = times["load_and_set_s"] + times["fuse_s"]
    return times | {"held_gib": memory.held_gib, "peak_gib": memory.peak_gib}


def measure(family: ModelFamily, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One row for each number of LoRAs."""
    clock = Clock(family.device, options.repeats)
    inputs = step_inputs(family, options.latent)

    def step() -> None:
        with torch.inference_mode():
            family.denoiser(**inputs)

    paths = [
        write_lora(random_lora(family, options.rank, seed), folder / f"lora{seed}.safetensors")
        for seed in range(max(options.loras))
    ]
    step()  # the first is slow
    table: dict[str, Any] = {}
    for count in options.loras:
        chosen = paths[:count]
        floor = floor_s(family, [read_lora(path) for path in chosen], clock)
        ours = measure_ours(family, chosen, clock, step)
        theirs = measure_diffusers(family, chosen, clock, step)
        best = max(floor["copy_s"], floor["products_at_the_best_rate_s"])
        table[f"{count} LoRAs"] = {
            "floor": floor,
            "ours": ours,
            "diffusers": theirs,
            "switch / floor": ours["switch_s"] / max(floor["copy_s"], floor["products_s"]),
            "switch / floor at the best rate": ours["switch_s"] / best,
            "switch / diffusers": ours["switch_s"] / theirs["load_set_fuse_s"],
            "from disk / diffusers": ours["from_disk_s"] / theirs["load_set_fuse_s"],
            "step / none": ours["step_s"] / ours["step_none_s"],
            "step unfused / none": theirs["step_unfused_s"] / ours["step_none_s"],
        }
    return table


def numbers_for(kind: str, device: torch.device) -> torch.dtype:
    """What the program would pick, if the UNet fits with two copies of its weights."""
    dtype = pick_dtype(device)[0]
    with torch.device("meta"):
        values = sum(p.numel() for p in UNet2DConditionModel(**UNETS[kind]).parameters())
    fits = 3 * values * dtype.itemsize / 2**30 < free_memory_gib(device)
    return dtype if fits else torch.bfloat16


def main() -> None:
    """Measure and print as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--unets", choices=UNETS, nargs="+", default=["sd15", "sdxl"])
    parser.add_argument("--device", type=torch.device, default=pick_device()[0])
    parser.add_argument("--dtype", choices=DTYPES)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--loras", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--latent", type=int, default=32, help="cells a side of a step's input")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    diffusers.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    keep_freed_memory()
    tables: dict[str, Any] = {}
    for kind in options.unets:
        named = DTYPES.get(options.dtype)
        dtype = named or numbers_for(kind, options.device)
        began = os.getloadavg()[0]
        with tempfile.TemporaryDirectory() as folder:
            table = measure(open_unet(kind, options.device, dtype), options, Path(folder))
        load = {"load_before": began, "load_after": os.getloadavg()[0]}
        tables[kind] = {"dtype": str(dtype), "threads": torch.get_num_threads(), **load, **table}
    show({"asked": {name: str(value) for name, value in vars(options).items()}, **tables})


if __name__ == "__main__":
    main()
