"""Train state: the adapter, its optimizer and its average (EMA), step by step.

Nothing here waits for the device. All that a step depends on is the settings, its number and what
`state_dict` gives; so a training can be taken up at any step and computes the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdlora.adapters import attach, compile_blocks, limit_norms, why_uncompiled
from sdlora.device import generator_for
from sdlora.models.base import ModelFamily
from sdlora.settings.train import TrainSettings
from sdlora.training.latent_dataset import LatentBatch, LatentDataset
from sdlora.training.loss import DiffusionLoss, loss_of
from sdlora.training.optim import OPTIMIZERS, lr_multiplier, make_optimizer, set_rates
from sdlora.training.skip_nonfinite import NonFiniteSkip

HEADER = 64 * 2**10  # bytes, about: the names and the facts in a file, which are not numbers


@dataclass(frozen=True)
class StepResult:
    """Result of a step: its pictures, and (2,) its loss and its gradient's norm before
    clipping, still on the device."""

    step: int
    names: Sequence[str]
    numbers: Tensor


@dataclass(frozen=True)
class TrainStateDict:
    """State of a training: tensors on the CPU, and plain numbers that JSON holds exactly."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


class TrainState:
    """An open family with an adapter attached that is trained on a dataset."""

    def __init__(
        self, family: ModelFamily, dataset: LatentDataset, settings: TrainSettings
    ) -> None:
        self.family, self.dataset = family, dataset
        self.objective = DiffusionLoss.from_settings(settings, family.noise)
        groups = attach(family, settings)
        rates = [(group.parameters, group.rate) for group in groups]
        self.parameters: list[Tensor] = [p for parameters, _ in rates for p in parameters]
        self.optimizer = make_optimizer(settings.optimizer, rates, settings.weight_decay)
        self.skip_nonfinite = NonFiniteSkip(self.optimizer)
        self.lr_factor = 1.0  # lowered when the training diverged
        half = family.dtype == torch.float16
        self.scaler = torch.amp.GradScaler(family.device.type, enabled=half)
        self.ema = self._copies() if settings.ema_decay else []
        for part in {group.part for group in groups}:
            family.components[part].train()
        # captions that are encoded in every step need their encoders
        family.offload({group.part for group in groups} if dataset.texts else family.text_encoders)
        self.apply_settings(settings)
        if settings.compile_blocks and not why_uncompiled(family.device):
            compile_blocks(family)

    def apply_settings(self, settings: TrainSettings) -> None:
        """Go on with settings that differ in how they save memory."""
        self.settings = settings
        if settings.gradient_checkpointing:
            self.family.enable_gradient_checkpointing()
        if settings.stream_blocks:
            self.family.stream_blocks(settings.stream_blocks)

    def train_step(self, step: int) -> StepResult:
        """Take one optimizer step. Nothing is read back, so the device never waits for us."""
        self.optimizer.zero_grad(set_to_none=True)  # what a step that failed may have left
        batch = self.dataset.batch(step)
        loss = self._forward_backward(batch, step)
        norm = self._optimizer_step(loss, step)
        return StepResult(step, batch.names, torch.stack((loss, norm)))

    def _forward_backward(self, batch: LatentBatch, step: int) -> Tensor:
        """Return the loss of the step's pictures, its gradient added up in the parameters."""
        settings, family, device = self.settings, self.family, self.family.device
        rng = generator_for(settings.seed, step, "noise")
        draw = self.objective.sample(batch.latents.shape, rng).to(device)
        batch = batch.to(device)
        loss = torch.zeros((), device=device)
        cuda = device.type == "cuda"
        offloaded = torch.autograd.graph.save_on_cpu(pin_memory=cuda) if settings.offload else None
        with torch.random.fork_rng(devices=[device] if cuda else []), offloaded or nullcontext():
            torch.manual_seed(generator_for(settings.seed, step, "dropout").initial_seed())
            for first in range(0, len(batch), settings.batch_size):
                rows = slice(first, first + settings.batch_size)
                losses = loss_of(family, batch[rows], draw[rows], self.objective)
                share = losses.sum() / len(batch)
                self.scaler.scale(share).backward()  # type: ignore[no-untyped-call]
                loss += share.detach()
        return loss

    def _optimizer_step(self, loss: Tensor, step: int) -> Tensor:
        """Move the adapter against the gradient, if that is sound; returns the gradient's norm."""
        settings = self.settings
        self.scaler.unscale_(self.optimizer)
        limit = settings.max_grad_norm or torch.inf
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, limit)
        set_rates(self.optimizer, self.lr_factor * lr_multiplier(settings, step))
        sound = (loss + norm).isfinite()
        self.skip_nonfinite.step(sound)
        if self.scaler.is_enabled():
            self.scaler.update()
        if settings.max_norm:
            before = self._copies()
            limit_norms(self.family, settings)
            self._set_params(
                torch.where(sound, *pair) for pair in zip(self.parameters, before, strict=True)
            )
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:  # a young average forgets its beginning sooner (tf.train.EMA)
            decay = min(settings.ema_decay, (1 + step) / (10 + step))
            with torch.no_grad():
                apart = torch._foreach_sub(self.parameters, self.ema)
                torch._foreach_mul_(apart, (1 - decay) * sound)  # not at all where it was left out
                torch._foreach_add_(self.ema, apart)
        return norm

    @property
    def learning_rate(self) -> float:
        """The learning rate of the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    @contextmanager
    def ema_weights(self) -> Iterator[None]:
        """Hold the adapter as it is saved and shown: its average where there is one. Afterwards it
        is as it was, to the bit."""
        averages = OPTIMIZERS[self.settings.optimizer].averages
        if not (self.ema or averages):
            yield
            return
        self.skip_nonfinite.settle()
        optimizer: Any = self.optimizer
        learning = self._copies()
        if averages:
            optimizer.eval()
        if self.ema:
            self._set_params(self.ema)
        try:
            yield
        finally:
            if averages:
                optimizer.train()
            self._set_params(learning)

    def _copies(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def _set_params(self, values: Iterable[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

    @property
    def lora_bytes(self) -> int:
        """About what the LoRA takes on the disk."""
        return sum(parameter.numel() for parameter in self.parameters) * 2 + HEADER

    @property
    def checkpoint_bytes(self) -> int:
        """About what a checkpoint takes on the disk, known before there is one."""
        numbers = 1 + bool(self.ema) + OPTIMIZERS[self.settings.optimizer].remembers
        learning = sum(parameter.numel() for parameter in self.parameters)
        return round(numbers * 4 * learning) + self.lora_bytes + HEADER

    def state_dict(self) -> TrainStateDict:
        """Return a copy of all that the next step depends on; this waits for the device."""
        self.skip_nonfinite.settle()
        tensors = {f"adapter.{i}": p for i, p in enumerate(self.parameters)}
        tensors |= {f"average.{i}": p for i, p in enumerate(self.ema)}
        numbers: dict[str, Any] = {}
        for i, parameter in enumerate(self.parameters):
            for name, value in self.optimizer.state.get(parameter, {}).items():
                values = tensors if isinstance(value, Tensor) else numbers
                values[f"optimizer.{i}.{name}"] = value
        groups = [
            {name: value for name, value in group.items() if name != "params"}
            for group in self.optimizer.param_groups
        ]
        facts = {
            "rate_factor": self.lr_factor, "optimizer": numbers, "groups": groups,
            "scaler": self.scaler.state_dict(),
        }  # fmt: skip
        copied = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}
        return TrainStateDict(copied, facts)

    def load_state_dict(self, state: TrainStateDict) -> None:
        """Go on from exactly what `state_dict` gave."""
        self._set_params([state.tensors[f"adapter.{i}"] for i in range(len(self.parameters))])
        for i, value in enumerate(self.ema):
            value.copy_(state.tensors[f"average.{i}"])
        self.skip_nonfinite.forget()
        self.optimizer.state.clear()
        for name, value in {**state.tensors, **state.facts["optimizer"]}.items():
            kind, place, *key = name.split(".", 2)
            if kind == "optimizer":
                parameter = self.parameters[int(place)]
                if isinstance(value, Tensor):
                    value = value.to(parameter.device, copy=True)
                self.optimizer.state[parameter][key[0]] = value
        for group, values in zip(self.optimizer.param_groups, state.facts["groups"], strict=True):
            group.update(_like(group, values))
        self.lr_factor = state.facts["rate_factor"]
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state.facts["scaler"])


def _like(group: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON's values in the types that the optimizer made."""
    return {
        name: tuple(value) if isinstance(group.get(name), tuple) else value
        for name, value in values.items()
    }
