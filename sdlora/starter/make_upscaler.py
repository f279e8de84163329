"""The starter model's upscaler: from what the model makes of a scene to the scene drawn larger.

A pair is a scene drawn at the model's own size, put through the model, and the same scene, in the
same style, drawn at twice the size. Half of the scenes are plain, the others in every style and
shipped look alike, so that styles are enlarged as they are and not drawn away. Most small pictures
only pass the VAE, with a little noise in the latents. Half of the plain ones are noised and
denoised by the UNet (SDEdit, arXiv:2108.01073) just so far that every line stays in its place: they
have the spots and the wavering lines that generated pictures have, and the upscaler learns to mend
them. The UNet does not know the styles, and would take them away.
"""

from __future__ import annotations

from functools import partial
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from sdlora.cache import digest_of
from sdlora.starter.draw import caption, random_scene
from sdlora.starter.make_loop import DEVICE, MakeStage, Plan, step_rng
from sdlora.starter.make_vae import look_of, picture, picture_rng
from sdlora.starter.measure import to_pixels
from sdlora.upscalers.compact import CompactLayout, CompactUpscaler

SIDE, SCALE = 128, 2
LAYOUT = CompactLayout(features=32, convolutions=8, scale=SCALE)
FIRST_PICTURE = 1_000_000  # pictures that the VAE was not trained on
LATENT_NOISE = 0.10  # at the most, in standard deviations of the latents
# Timesteps of 1000 that pictures are noised to, and how far apart the steps back are at the most
FIRST_TIMESTEPS, TIMESTEPS_PER_STEP = (30, 300), 100
GUIDANCE = 5.0
CROP, BATCH = 32, 8  # pixels of the small picture, crops in a step
# Looks that are easily mistaken for a fault of the model and mended: crops in a step that show them
SOFT_LOOKS, SOFT_CROPS = ("blurred", "glow", "pixelated"), 3
GRADIENT_WEIGHT, ENERGY_WEIGHT = 0.5, 0.1
EASY_ERROR = 0.01  # of 0..1: an absolute error that counts as small
GREY = (0.299, 0.587, 0.114)


def new_upscaler() -> CompactUpscaler:
    """Return an untrained network."""
    return CompactUpscaler(LAYOUT)


class SmallPictures:
    """Drawn scenes as a model makes them again, one by one."""

    def __init__(self, model: StableDiffusionPipeline) -> None:
        self.vae, self.unet = model.vae.eval(), model.unet.eval()
        self.tokenizer, self.text_encoder = model.tokenizer, model.text_encoder.eval()
        self.signal: Tensor = model.scheduler.alphas_cumprod.to(DEVICE)

    def key(self) -> str:
        """Return a name for all that the pictures depend on beside the scenes."""
        return digest_of(self.vae, self.unet, self.text_encoder)[:16]

    @torch.no_grad()
    def make(self, number: int, rng: torch.Generator) -> np.ndarray:
        """Return (h, w, 3) uint8: picture `number`, by the VAE alone or by the UNet as well."""
        drawn = to_pixels([Image.fromarray(picture(number, SIDE))]).to(DEVICE)
        latents = self.vae.encode(drawn).latent_dist.mean
        if number % 4 == 0:
            latents = self.denoised(latents, number, rng)
        else:
            noise = torch.randn(latents.shape, generator=rng).to(latents)
            share = LATENT_NOISE * torch.rand((), generator=rng).item()
            latents = latents + share * latents.std() * noise
        levels: Tensor = (self.vae.decode(latents).sample[0].cpu() + 1) * 127.5
        return levels.round().clamp(0, 255).byte().permute(1, 2, 0).numpy()

    def denoised(self, latents: Tensor, number: int, rng: torch.Generator) -> Tensor:
        """Return latents (1,C,h,w) noised to a random timestep and denoised with the picture's
        caption, by DDIM steps (arXiv:2010.02502, eq. 12)."""
        first = int(torch.randint(*FIRST_TIMESTEPS, (), generator=rng))
        steps = -(-first // TIMESTEPS_PER_STEP)
        text = caption(random_scene(picture_rng(number)), picture_rng(number))
        texts = self._encoded(["", text])
        noise = torch.randn(latents.shape, generator=rng).to(latents)
        clean = latents
        for step in range(steps):
            t = first * (steps - step) // steps
            noisy = self.signal[t].sqrt() * clean + (1 - self.signal[t]).sqrt() * noise
            without, given = self.unet(noisy.expand(2, -1, -1, -1), t, texts).sample.split(1)
            noise = without + GUIDANCE * (given - without)
            clean = (noisy - (1 - self.signal[t]).sqrt() * noise) / self.signal[t].sqrt()
        return clean

    def _encoded(self, texts: list[str]) -> Tensor:
        tokens = self.tokenizer(
            texts, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        encoded: Tensor = self.text_encoder(tokens.to(DEVICE))[0]
        return encoded


def _large_pictures(count: int, folder: Path, processes: int) -> np.ndarray:
    """Return (count, H, W, 3) uint8 at the large size, drawn once and kept in `folder`."""
    path = folder / f"large-{count}.npy"
    if not path.exists():
        with Pool(processes) as workers:
            numbers = range(FIRST_PICTURE, FIRST_PICTURE + count)
            large = partial(picture, pixels=SIDE * SCALE)
            np.save(path, np.stack(workers.map(large, numbers, chunksize=32)))
    pictures: np.ndarray = np.load(path, mmap_mode="r")
    return pictures


def _small_pictures(
    model: StableDiffusionPipeline, count: int, folder: Path, seed: int
) -> np.ndarray:
    """Return (count, h, w, 3) uint8 as this model makes them, kept in `folder`."""
    maker = SmallPictures(model)
    path = folder / f"small-{count}-{maker.key()}.npy"
    if not path.exists():
        numbers = range(count)
        rows = [maker.make(FIRST_PICTURE + n, step_rng(seed, n)) for n in numbers]
        np.save(path, np.stack(rows))
    pictures: np.ndarray = np.load(path, mmap_mode="r")
    return pictures


def pair_crops(small: np.ndarray, large: np.ndarray, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return random crops of pairs in 0..1, (BATCH,3,CROP,CROP) and `SCALE` times as large, turned
    over at random."""
    edge = small.shape[1] - CROP + 1
    soft = [n for n in range(len(small)) if look_of(FIRST_PICTURE + n) in SOFT_LOOKS]
    chosen = torch.randint(len(small), (BATCH,), generator=rng).tolist()
    if soft:
        among = torch.randint(len(soft), (SOFT_CROPS,), generator=rng).tolist()
        chosen[:SOFT_CROPS] = [soft[place] for place in among]
    pairs = []
    for number in chosen:
        top, left, mirror = (int(torch.randint(n, (), generator=rng)) for n in (edge, edge, 2))
        for side, held in ((1, small), (SCALE, large)):
            rows = slice(top * side, (top + CROP) * side)
            columns = slice(left * side, (left + CROP) * side)
            crop = np.ascontiguousarray(held[number, rows, columns][:, :: 1 - 2 * mirror])
            pairs.append(torch.from_numpy(crop).permute(2, 0, 1).float() / 255)
    return torch.stack(pairs[::2]).to(DEVICE), torch.stack(pairs[1::2]).to(DEVICE)


def edge_energy(pixels: Tensor) -> Tensor:
    """Return the root of the mean squared gradient of the grey picture, in windows of 7 pixels."""
    grey = (pixels * pixels.new_tensor(GREY)[:, None, None]).sum(1, keepdim=True)
    down, right = grey.diff(dim=-2)[..., :-1], grey.diff(dim=-1)[..., :-1, :]
    return (F.avg_pool2d(down.square() + right.square(), 7, 3) + 1e-5).sqrt()


def upscaler_loss(made: Tensor, drawn: Tensor, small: Tensor) -> Tensor:
    """Absolute error of the pixels and of their differences to the next, and of the energy of the
    edges nearby, which keeps lines as strong as they are drawn where their place is uncertain.

    Each crop counts by how well the small picture enlarged by itself does already, so that soft
    pictures, whose errors are small, are learnt as well as sharp ones."""
    across = (1, 2, 3)
    error = (made - drawn).abs().mean(across)
    for dim in (-2, -1):
        error = error + GRADIENT_WEIGHT * (made - drawn).diff(dim=dim).abs().mean(across)
    energy = (edge_energy(made) - edge_energy(drawn)).abs().mean(across)
    plain = F.interpolate(small, scale_factor=SCALE, mode="bicubic")
    weight = 2 * EASY_ERROR / ((plain - drawn).abs().mean(across) + EASY_ERROR)
    return (weight * (error + ENERGY_WEIGHT * energy)).mean()


def train_upscaler(
    folder: Path,
    plan: Plan,
    model: StableDiffusionPipeline,
    start: CompactUpscaler | None = None,
    *,
    pictures: int = 1200,
    processes: int = 2,
    seed: int = 5,
) -> CompactUpscaler | None:
    """Train on pairs of this model, from `start` if there is one; None: nothing was trained."""
    torch.manual_seed(seed)
    network = (start or new_upscaler()).to(DEVICE).requires_grad_(True)
    stage = MakeStage("upscaler", {"upscaler": network}, folder, plan)
    if stage.step < plan.steps:
        large = _large_pictures(pictures, folder, processes)
        small = _small_pictures(model, pictures, folder, seed)

        def loss_at(step: int) -> Tensor:
            pixels, drawn = pair_crops(small, large, step_rng(seed, step))
            return upscaler_loss(network(pixels), drawn, pixels)

        stage.run(loss_at)
    stage.use_average()
    return network.eval() if stage.step else start
