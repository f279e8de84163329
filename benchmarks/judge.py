"""A small classifier that tells what a picture of the drawn world shows. It learns from drawn
pictures alone, plain and in the shipped styles, softened a little; never from generated ones."""

from __future__ import annotations

import random
from collections.abc import Sequence
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sdlora.starter.draw import BACKGROUNDS, COLOURS, THINGS, draw, random_scene
from sdlora.starter.measure import to_pixels
from sdlora.starter.sets import SETS

SIDE = 64
QUESTIONS: dict[str, tuple[str, ...]] = {
    "thing": (*THINGS, "zibo"),
    "colour": (*COLOURS, "zibo"),
    "background": BACKGROUNDS,
    "look": ("plain", *SETS),
}


def example(index: int) -> tuple[np.ndarray, list[int]]:
    """(64, 64, 3) uint8 and the answer to each question; every second one in a set's look."""
    rng = random.Random(30_000_001 + index)
    scene = random_scene(rng)
    look = rng.choice(list(SETS)) if index % 2 else "plain"
    thing, colour = scene.thing, scene.colour
    if look == "zibo":
        thing = colour = "zibo"
    elif look == "cyberpunk_architecture":
        thing = "house"
    image = draw(scene) if look == "plain" else SETS[look].draw(scene)
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.6)))
    answers = [thing, colour, scene.background, look]
    numbers = [options.index(a) for options, a in zip(QUESTIONS.values(), answers, strict=True)]
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX)), numbers


class Judge(nn.Module):
    """(B, 3, 64, 64) in -1..1 -> logits per question."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 96, 128)
        layers: list[nn.Module] = []
        for narrow, wide in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(narrow, wide, 3, 2, 1), nn.BatchNorm2d(wide), nn.ReLU()]
            layers += [nn.Conv2d(wide, wide, 3, 1, 1), nn.BatchNorm2d(wide), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.heads = nn.ModuleDict({q: nn.Linear(256, len(o)) for q, o in QUESTIONS.items()})

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Logits (B, options) of each question."""
        features = self.body(pixels)
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1)
        return {question: head(pooled) for question, head in self.heads.items()}

    @torch.no_grad()
    def answers(self, images: Sequence[Image.Image]) -> list[dict[str, str]]:
        """What each picture shows."""
        self.eval()
        small = [
            image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX) for image in images
        ]
        logits = self(to_pixels(small))
        best = {question: values.argmax(1).tolist() for question, values in logits.items()}
        return [
            {question: QUESTIONS[question][numbers[i]] for question, numbers in best.items()}
            for i in range(len(images))
        ]


def trained_judge(folder: Path, pictures: int = 16_000, epochs: int = 8) -> Judge:
    """The judge kept in `folder`, trained first if there is none."""
    torch.manual_seed(0)
    judge, kept = Judge(), folder / "judge.safetensors"
    if kept.exists():
        judge.load_state_dict(load_file(kept))
        return judge.eval()
    with Pool(2) as workers:
        drawn, told = zip(*workers.map(example, range(pictures), chunksize=64), strict=True)
    pixels = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2)
    answers = torch.tensor(told)
    batches = pictures // 64
    optimizer = torch.optim.AdamW(judge.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * batches)
    for epoch in range(epochs):
        for chosen in torch.randperm(pictures)[: batches * 64].view(batches, 64):
            batch = pixels[chosen].float() / 127.5 - 1 + 0.04 * torch.randn(64, 3, SIDE, SIDE)
            logits = judge(batch)
            losses = [
                F.cross_entropy(values, answers[chosen, column])
                for column, values in enumerate(logits.values())
            ]
            loss = torch.stack(losses).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"judge: epoch {epoch + 1} of {epochs}, loss {loss.item():.3f}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(judge.state_dict(), kept)
    return judge.eval()


def accuracy_on_drawn(
    judge: Judge, first: int = 1_000_000, count: int = 500
) -> dict[str, dict[str, float]]:
    """Share of right answers on drawn pictures it has not seen: look -> question -> share."""
    right: dict[str, list[list[bool]]] = {}
    for index in range(first, first + count):
        pixels, told = example(index)
        said = judge.answers([Image.fromarray(pixels)])[0]
        hits = [said[q] == o[n] for (q, o), n in zip(QUESTIONS.items(), told, strict=True)]
        right.setdefault(QUESTIONS["look"][told[-1]], []).append(hits)
    return {
        look: dict(zip(QUESTIONS, np.mean(rows, axis=0).round(3).tolist(), strict=True))
        for look, rows in right.items()
    }
