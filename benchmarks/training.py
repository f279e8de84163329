"""How fast training is: `python -m benchmarks.training`.

A UNet in the shape of SD 1.5 or SDXL with random weights. A step of ours, from latents and texts
that were encoded once, beside two others at the same rank, batch and precision, in turn:

- bare: forward and backward of the same network with the same adapters and nothing else; what is
  above it is the price of the loop.
- diffusers: what a step of diffusers' `train_text_to_image_lora.py` does by its documentation, put
  together from diffusers, peft and accelerate: the VAE and the text encoder in every step, its loss
  read back, LoRA on the attention's projections, AdamW. For SD 1.5 only.

Memory is the GPU's peak, with what each needs on it.

With --diffusers DIR and --sd-scripts DIR, the scripts themselves are run instead, from checkouts of
their repositories, by --diffusers-python and --sd-scripts-python, interpreters that have what they
require: see `benchmarks.peer_trainers`.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, DDPMScheduler
from diffusers.optimization import get_scheduler
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from torch.nn.functional import mse_loss
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.blend import UNETS, open_unet
from benchmarks.peer_trainers import measure_peers
from benchmarks.report import show
from sdlora.adapters import detach
from sdlora.device import DTYPES, generator_for, pick_device, pick_dtype
from sdlora.models.base import Conditioning, ModelFamily
from sdlora.settings.train import TrainSettings
from sdlora.training.latent_dataset import LatentBatch
from sdlora.training.train_state import TrainState
from sdlora.training.trainer import READ_EVERY

# The published VAE and text encoder of SD 1.5
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
PROJECTIONS = ["to_k", "to_q", "to_v", "to_out.0"]
Step = Callable[[int], object]
# The processor's time is that of our own work, whatever else a busy machine does; without a GPU,
# and with OMP_NUM_THREADS=1, it is the wall's of a quiet machine.
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


@dataclass
class Encoded:
    """Stands for a dataset: latents and conditioning of random pictures, encoded once."""

    family: ModelFamily
    batch_size: int
    pixels: int
    texts: bool = True

    def batch(self, step: int) -> LatentBatch:
        """The pictures of a step."""
        rng, config = generator_for(0, step), self.family.denoiser.config
        cells = self.pixels // 8
        latents = torch.randn(self.batch_size, 4, cells, cells, generator=rng)
        cond = {"context": torch.randn(self.batch_size, 77, config.cross_attention_dim)}
        if config.addition_embed_type:
            width = config.projection_class_embeddings_input_dim
            cond["pooled"] = torch.randn(
                self.batch_size, width - 6 * config.addition_time_embed_dim
            )
        sizes = torch.tensor([[self.pixels, self.pixels, 0, 0, self.pixels, self.pixels]])
        return LatentBatch(latents, Conditioning(cond), sizes.repeat(self.batch_size, 1))


def ours_and_bare(family: ModelFamily, options: argparse.Namespace) -> dict[str, Step]:
    """A step of ours; and the network alone, with the adapters of that step."""
    settings = TrainSettings(
        data="random", name="random", rank=options.rank, alpha=options.rank, steps=100_000,
        batch_size=options.batch, targets=("self_attention", "cross_attention"),
        gradient_checkpointing=options.checkpointing,
    )  # fmt: skip
    data = Encoded(family, options.batch, options.pixels)
    learner = TrainState(family, data, settings)  # type: ignore[arg-type]
    kept = data.batch(1).to(family.device)
    t = torch.full((options.batch,), 500, device=family.device)
    conditioning = family.condition_on_size(
        kept.conditioning.to(family.device, family.dtype), kept.sizes
    )

    def ours(step: int) -> None:
        learnt = learner.train_step(step)
        if step % READ_EVERY == 0:
            learnt.numbers.tolist()

    def bare(step: int) -> None:
        with family.autocast():
            answer = family.predict(kept.latents, t, conditioning)
        mse_loss(answer.float(), kept.latents).backward()
        for parameter in learner.parameters:
            parameter.grad = None

    return {"bare": bare, "ours": ours}


def diffusers_step(family: ModelFamily, options: argparse.Namespace) -> Step:
    """The work of the script's step, on pictures and tokens that are in memory already."""
    device, dtype, unet = family.device, family.dtype, family.denoiser
    mixed = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, "no")
    accelerator = Accelerator(mixed_precision=mixed, cpu=device.type == "cpu")
    vae = AutoencoderKL(**VAE).to(device, dtype).requires_grad_(False)
    words = CLIPTextModel(CLIPTextConfig(**TEXT, num_attention_heads=12)).to(device, dtype)
    words.requires_grad_(False)
    scale = {"r": options.rank, "lora_alpha": options.rank}
    unet.add_adapter(LoraConfig(**scale, init_lora_weights="gaussian", target_modules=PROJECTIONS))
    if mixed != "no":
        cast_training_params(unet, dtype=torch.float32)
    learning = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-4, weight_decay=1e-2)
    rates = get_scheduler("constant", optimizer)
    model, optimizer, rates = accelerator.prepare(unet.train(), optimizer, rates)
    noise = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    size = (options.batch, 3, options.pixels, options.pixels)

    def step(number: int) -> float:
        rng = torch.Generator().manual_seed(number)
        pixels = (2 * torch.rand(size, generator=rng) - 1).to(device)
        tokens = torch.randint(0, 49408, (options.batch, 77), generator=rng).to(device)
        with accelerator.accumulate(model):
            latents = vae.encode(pixels.to(dtype)).latent_dist.sample() * vae.config.scaling_factor
            eps = torch.randn_like(latents)
            t = torch.randint(0, 1000, (options.batch,), device=device)
            context = words(tokens)[0]
            answer = model(noise.add_noise(latents, eps, t), t, context, return_dict=False)[0]
            loss = mse_loss(answer.float(), eps.float())
            mean = accelerator.gather(loss.repeat(options.batch)).mean().item()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(learning, 1.0)
            optimizer.step()
            rates.step()
            optimizer.zero_grad()
        return mean + loss.detach().item()

    return step


def seconds(step: Step, options: argparse.Namespace) -> float:
    """The median of some steps, after one that is not counted."""
    now, times = CLOCKS[options.clock], []
    for number in range(1, options.steps + 2):
        _wait(options.device)
        began = now()
        step(number)
        _wait(options.device)
        times.append(now() - began)
    return statistics.median(times[1:])


def peak_gib(device: torch.device) -> float | None:
    """The GPU's peak since the last call; None without a GPU."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated(device) / 2**30
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def measure(family: ModelFamily, options: argparse.Namespace) -> dict[str, Any]:
    """Rounds of all that is measured, in turn, because a machine is not equally fast all the time;
    a ratio is the median of the rounds' own."""
    rounds: list[dict[str, float]] = []
    peaks: dict[str, float | None] = {}
    for number in range(options.rounds):
        row: dict[str, float] = {}
        for name, step in ours_and_bare(family, options).items():
            peak_gib(family.device)
            row[name] = seconds(step, options)
            peaks[name] = peak_gib(family.device)
        detach(family)
        if options.unet == "sd15" and not options.alone:
            step = diffusers_step(family, options)
            row["diffusers"] = seconds(step, options)
            peaks["diffusers"] = peak_gib(family.device)
            del step
            family.denoiser.unload_lora()
            gc.collect()
        rounds.append(row)
        print(f"round {number + 1}: {row}", flush=True)

    def ratio(over: str, under: str) -> float:
        return statistics.median(row[over] / row[under] for row in rounds)

    found = {f"{name}_s": statistics.median(row[name] for row in rounds) for name in rounds[0]}
    found["ours / bare"] = ratio("ours", "bare")
    found["ours images/s"] = options.batch / found["ours_s"]
    if "diffusers" in rounds[0]:
        found["images/s, ours / diffusers"] = ratio("diffusers", "ours")
    return {**found, "peak_gib": peaks}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Measure and print as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--unet", choices=UNETS, default="sd15")
    parser.add_argument("--device", type=torch.device, default=pick_device()[0])
    parser.add_argument("--dtype", choices=DTYPES)
    parser.add_argument("--pixels", type=int, default=0, help="a side; 128 without a GPU")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="steps a round")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--alone", action="store_true", help="without diffusers")
    for peer in ("diffusers", "sd-scripts"):
        parser.add_argument(f"--{peer}", type=Path, help="checkout, to run its own script")
        parser.add_argument(f"--{peer}-python", help="interpreter of its environment")
    parser.add_argument("--scratch", type=Path, help="where 8 GB of random weights go for a while")
    options = parser.parse_args()
    usual = 128 if options.device.type == "cpu" else 1024 if options.unet == "sdxl" else 512
    options.pixels = options.pixels or usual
    dtype = DTYPES[options.dtype] if options.dtype else pick_dtype(options.device)[0]
    asked = {name: str(value) for name, value in vars(options).items()} | {"dtype": str(dtype)}
    before = os.getloadavg() if hasattr(os, "getloadavg") else ()
    if options.diffusers or options.sd_scripts:
        options.dtype = options.dtype or "fp32"
        table = measure_peers(options)
    else:
        table = measure(open_unet(options.unet, options.device, dtype), options)
    after = os.getloadavg() if hasattr(os, "getloadavg") else ()
    threads = torch.get_num_threads()
    show({"asked": asked, "threads": threads, "load before": before, "load after": after, **table})


if __name__ == "__main__":
    main()
