"""The starter model's denoiser: an SD1-layout UNet with attention at every resolution."""

from __future__ import annotations

import random
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from sdlora.noise_schedule import DDPM, LossWeighting
from sdlora.starter.draw import Scene, caption, draw, random_scene
from sdlora.starter.make_loop import DEVICE, MakeStage, Plan, step_rng
from sdlora.starter.make_text import tokens_of
from sdlora.starter.make_vae import LATENT_CHANNELS

CAPTION_DROPOUT = 0.1
MIN_SNR = LossWeighting("min_snr", 5.0)


def new_scheduler() -> DDIMScheduler:
    """Stable Diffusion 1's own noise: epsilon, scaled-linear betas, 1000 steps."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


def new_unet() -> UNet2DConditionModel:
    """An untrained denoiser of (B, 8, 16, 16) latents with (B, 77, 128) text."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(64, 96, 160),
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=128,
        norm_num_groups=16,
    )


def scene_at(index: int) -> Scene:
    """The scene of training picture `index`."""
    return random_scene(random.Random(20_000_003 + index))


def caption_or_empty(index: int, rng: random.Random) -> str:
    """A caption of picture `index`, or none, so that guidance works."""
    return "" if rng.random() < CAPTION_DROPOUT else caption(scene_at(index), rng)


def _pixels(index: int) -> np.ndarray:
    return np.asarray(draw(scene_at(index)))


@torch.no_grad()
def latent_pool(vae: AutoencoderKL, count: int, folder: Path, processes: int = 2) -> Tensor:
    """(count, 8, 16, 16) posterior means of the pictures of `scene_at`, kept in `folder`."""
    path = folder / f"latents-{count}.safetensors"
    if not path.exists():
        latents = []
        with Pool(processes) as workers:
            for first in range(0, count, 32):
                drawn = workers.map(_pixels, range(first, min(first + 32, count)), chunksize=8)
                pixels = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 127.5 - 1
                pixels = pixels.to(DEVICE, memory_format=torch.channels_last)
                latents.append(vae.encode(pixels).latent_dist.mean.half().cpu().contiguous())
        save_file({"latents": torch.cat(latents)}, path)
    return load_file(path)["latents"]


def train_unet(
    folder: Path,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    plan: Plan,
    *,
    start: UNet2DConditionModel | None = None,
    pictures: int = 12_000,
    batch: int = 16,
    seed: int = 4,
) -> UNet2DConditionModel:
    """The denoiser, on cached latents and freshly worded captions; from `start` if there is one.

    Sets the VAE's scaling factor.
    """
    torch.manual_seed(seed)
    unet = (start or new_unet()).to(DEVICE, memory_format=torch.channels_last)
    stage = MakeStage("unet", {"unet": unet}, folder, plan)
    latents = latent_pool(vae, pictures, folder)
    vae.register_to_config(scaling_factor=round(1 / latents[:4000].float().std().item(), 5))
    noise = DDPM.from_config(new_scheduler().config).to(DEVICE)

    def loss_at(step: int) -> Tensor:
        rng, caption_rng = step_rng(seed, step), random.Random(f"{seed}-{step}")
        indices = torch.randint(len(latents), (batch,), generator=rng)
        texts = [caption_or_empty(int(index), caption_rng) for index in indices]
        with torch.no_grad():
            context = text_encoder(tokens_of(tokenizer, texts).to(DEVICE)).last_hidden_state
        x0 = latents[indices].float().to(DEVICE) * vae.config.scaling_factor
        eps = torch.randn(x0.shape, generator=rng).to(DEVICE)
        t = noise.sample_timesteps(batch, rng).to(DEVICE)
        noisy = noise.add_noise(x0, eps, t).contiguous(memory_format=torch.channels_last)
        predicted = unet(noisy, t, context).sample
        error = F.mse_loss(predicted, noise.target(x0, eps, t), reduction="none").mean((1, 2, 3))
        return (noise.loss_weight(t, MIN_SNR) * error).mean()

    stage.run(loss_at)
    stage.use_average()
    return unet
