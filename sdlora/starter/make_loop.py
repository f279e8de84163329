"""A resumable training loop for the starter model's stages: warm-up, hold, decay and average."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Plan:
    """Length and learning rate of a stage. `decay` is the number of last steps that fall to
    zero."""

    steps: int
    learning_rate: float
    decay: int
    warmup: int = 100
    ema: float = 0.0
    save_every_s: float = 60.0

    def rate(self, step: int) -> float:
        """Learning rate of `step` (from 0): linear warm-up, constant, then linear to zero
        (warmup-stable-decay, arXiv:2404.06395), so that a longer plan resumes a shorter one."""
        rise = min(1.0, (step + 1) / self.warmup)
        fall = min(1.0, (self.steps - step) / max(self.decay, 1))
        return self.learning_rate * min(rise, fall)


def step_rng(seed: int, step: int) -> torch.Generator:
    """Randomness of one step, the same however the stage was interrupted."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


class MakeStage:
    """Parameters, optimizer and average of one stage, kept in one safetensors file and one JSON."""

    def __init__(self, name: str, modules: dict[str, nn.Module], folder: Path, plan: Plan) -> None:
        self.name, self.plan, self.path = name, plan, folder / f"{name}.safetensors"
        self.params = {
            f"{part}.{key}": value
            for part, module in modules.items()
            for key, value in module.named_parameters()
            if value.requires_grad
        }
        self.optimizer = torch.optim.AdamW(
            self.params.values(), plan.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4
        )
        self.average = {key: value.detach().clone() for key, value in self.params.items()}
        self.step = 0
        if self.path.exists():
            self.load()

    def load(self) -> None:
        """Continue from what the last save left."""
        held = load_file(self.path, device=str(DEVICE))
        self.step = int(held["step"])
        for key, value in self.params.items():
            value.data.copy_(held[f"param/{key}"])
            self.average[key].copy_(held[f"average/{key}"])
            if self.step and f"exp_avg/{key}" in held:
                self.optimizer.state[value] = {
                    "step": torch.tensor(float(self.step)),
                    "exp_avg": held[f"exp_avg/{key}"],
                    "exp_avg_sq": held[f"exp_avg_sq/{key}"],
                }

    def save(self) -> None:
        """Write the state beside the old one, then take its place."""
        held = {"step": torch.tensor(self.step)}
        for key, value in self.params.items():
            held[f"param/{key}"] = value.detach().contiguous()
            held[f"average/{key}"] = self.average[key].contiguous()
            state = self.optimizer.state[value]
            for moment in ("exp_avg", "exp_avg_sq"):
                if moment in state:
                    held[f"{moment}/{key}"] = state[moment].contiguous()
        fresh = self.path.with_suffix(".new")
        save_file(held, fresh)
        os.replace(fresh, self.path)

    def use_average(self) -> None:
        """Put the averaged weights into the modules, for export."""
        if self.plan.ema:
            for key, value in self.params.items():
                value.data.copy_(self.average[key])

    @torch.no_grad()
    def update_average(self) -> None:
        """Exponential moving average with a ramp, as in arXiv:1911.07023."""
        decay = min(self.plan.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.average.values()), list(self.params.values()), 1 - decay)

    def run(
        self, loss_at: Callable[[int], Tensor], report: Callable[[int], str] | None = None
    ) -> None:
        """Take the steps that are left; `loss_at(step)` computes the loss of one batch."""
        saved = began = time.monotonic()
        first, total, seen = self.step, 0.0, 0
        while self.step < self.plan.steps:
            for group in self.optimizer.param_groups:
                group["lr"] = self.plan.rate(self.step)
            loss = loss_at(self.step)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.params.values(), 1.0)
            self.optimizer.step()
            self.step += 1
            if self.plan.ema:
                self.update_average()
            total, seen = total + loss.item(), seen + 1
            if not math.isfinite(total):
                raise FloatingPointError(f"{self.name}: the loss is not finite at step {self.step}")
            if self.step % 100 == 0:
                pace = (time.monotonic() - began) / (self.step - first)
                log_row = {
                    "stage": self.name,
                    "step": self.step,
                    "loss": round(total / seen, 5),
                    "s": round(pace, 3),
                }
                print(json.dumps(log_row), report(self.step) if report else "", flush=True)
                total, seen = 0.0, 0
            if time.monotonic() - saved > self.plan.save_every_s:
                self.save()
                saved = time.monotonic()
        self.save()


def count(modules: Iterable[nn.Module]) -> int:
    """Parameters in all of them."""
    return sum(p.numel() for module in modules for p in module.parameters())
