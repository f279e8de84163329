"""The starter model's VAE: an `AutoencoderKL` of factor 8 for the drawn world and styles of it."""

from __future__ import annotations

import random
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from sdlora.starter.draw import STYLES, draw, random_scene
from sdlora.starter.make_loop import DEVICE, MakeStage, Plan, step_rng
from sdlora.starter.sets import SETS

LATENT_CHANNELS = 8
# Weight of the KL term per latent number: posterior noise of a few percent keeps the latents smooth
# without costing visible sharpness.
KL_WEIGHT = 1e-4


def new_vae() -> AutoencoderKL:
    """An untrained autoencoder: (B, 3, H, W) in -1..1 <-> (B, 8, H/8, W/8)."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=128,
        scaling_factor=1.0,
        force_upcast=False,
    )


def picture_rng(index: int) -> random.Random:
    """Return what picture `index` is drawn by; its scene comes first."""
    return random.Random(10_000_019 + index)


def look_of(index: int) -> str:
    """Return the style or shipped set whose look picture `index` has; '' for a plain one."""
    looks = [*STYLES, *SETS]
    return "" if index % 2 == 0 else looks[(index // 2) % len(looks)]


def picture(index: int, pixels: int = 128) -> np.ndarray:
    """(pixels, pixels, 3) uint8: plain at even indices, in a style or a shipped set's look at odd;
    the same picture at every size."""
    rng = picture_rng(index)
    scene = random_scene(rng)
    look = look_of(index)
    if not look:
        return np.asarray(draw(scene, pixels))
    if look in STYLES:
        image = STYLES[look](draw(scene, pixels), rng)
    else:
        image = SETS[look].draw(scene, pixels)
    return np.asarray(image.convert("RGB"))


def picture_pool(count: int, folder: Path, processes: int = 2) -> Tensor:
    """(count, 3, 128, 128) uint8, drawn once and kept in `folder`."""
    if not count:
        return torch.zeros(0, 3, 128, 128, dtype=torch.uint8)
    path = folder / f"pictures-{count}.npy"
    if not path.exists():
        with Pool(processes) as workers:
            np.save(path, np.stack(workers.map(picture, range(count), chunksize=64)))
    return torch.from_numpy(np.load(path, mmap_mode="r")).permute(0, 3, 1, 2)


def crops(pool: Tensor, batch: int, side: int, rng: torch.Generator) -> Tensor:
    """(batch, 3, side, side) in -1..1: random crops on the 8-pixel grid, half of them mirrored."""
    chosen = torch.randint(len(pool), (batch,), generator=rng).tolist()
    steps = (pool.shape[-1] - side) // 8 + 1
    taken = []
    for index in chosen:
        top, left, mirror = (int(torch.randint(n, (), generator=rng)) for n in (steps, steps, 2))
        crop = pool[index, :, top * 8 : top * 8 + side, left * 8 : left * 8 + side].float()
        taken.append(crop.flip(-1) if mirror else crop)
    pixels = torch.stack(taken) / 127.5 - 1
    return pixels.to(DEVICE, memory_format=torch.channels_last)


def reconstruction_loss(restored: Tensor, pixels: Tensor) -> Tensor:
    """Squared error for PSNR, with some absolute error, which keeps small coloured things sharp."""
    return F.mse_loss(restored, pixels) + 0.1 * F.l1_loss(restored, pixels)


def train_vae(
    folder: Path,
    plan: Plan,
    start: AutoencoderKL | None = None,
    pictures: int = 5000,
    seed: int = 1,
) -> AutoencoderKL:
    """Encoder and decoder together, on 64-pixel crops; from `start` if there is one."""
    torch.manual_seed(seed)
    vae = (start or new_vae()).to(DEVICE, memory_format=torch.channels_last)
    stage = MakeStage("vae", {"vae": vae}, folder, plan)
    pool = picture_pool(pictures if stage.step < plan.steps else 0, folder)

    def loss_at(step: int) -> Tensor:
        rng = step_rng(seed, step)
        pixels = crops(pool, 8, 64, rng)
        posterior = vae.encode(pixels).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=rng).to(pixels)
        restored = vae.decode(posterior.mean + posterior.std * noise).sample
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        loss: Tensor = reconstruction_loss(restored, pixels) + KL_WEIGHT * kl
        return loss

    stage.run(loss_at, lambda step: psnr_report(vae, pool) if step % 500 == 0 else "")
    return vae


def train_decoder(
    folder: Path, plan: Plan, vae: AutoencoderKL, pictures: int = 5000, seed: int = 2
) -> AutoencoderKL:
    """The decoder alone, on whole pictures: the latents a UNet has learnt stay what they are."""
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    stage = MakeStage("decoder", {"vae": vae}, folder, plan)
    pool = picture_pool(pictures if stage.step < plan.steps else 0, folder)

    def loss_at(step: int) -> Tensor:
        rng = step_rng(seed, step)
        pixels = crops(pool, 4, 128, rng)
        with torch.no_grad():
            posterior = vae.encode(pixels).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=rng).to(pixels)
        restored = vae.decode(posterior.mean + posterior.std * noise).sample
        return reconstruction_loss(restored, pixels)

    stage.run(loss_at, lambda step: psnr_report(vae, pool) if step % 500 == 0 else "")
    return vae


def psnr(restored: Tensor, pixels: Tensor) -> Tensor:
    """(B,) decibels for pictures in -1..1, each clipped and measured over the 0..1 range."""
    error = ((restored.clamp(-1, 1) - pixels) / 2).square().mean(dim=(1, 2, 3))
    return -10 * error.log10()


@torch.no_grad()
def psnr_report(vae: AutoencoderKL, pool: Tensor) -> str:
    """Mean PSNR over 16 plain and 16 styled pictures of the pool's end."""
    pixels = pool[-32:].float().to(DEVICE) / 127.5 - 1
    values = psnr(vae.decode(vae.encode(pixels).latent_dist.mean).sample, pixels)
    return f"plain {values[0::2].mean():.2f} dB, styled {values[1::2].mean():.2f} dB"
