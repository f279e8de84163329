"""Validation: the loss on pictures that are held out, which tells learning from overfitting.

The same pictures under the same noise at the same levels every time, so that two figures differ by
what was learnt in between and by nothing else: the loss of a step is mostly the noise level that
was drawn.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image, ImageChops, ImageStat
from torch import Tensor

from sdlora.device import generator_for
from sdlora.events import Event, Validated, Warned
from sdlora.messages import Message, Setting
from sdlora.models.base import ModelFamily
from sdlora.settings.presets import preset_drift_prompts
from sdlora.settings.train import TrainSettings
from sdlora.training.latent_dataset import LatentBatch, LatentDataset
from sdlora.training.loss import DiffusionLoss, NoisedLatents, loss_of
from sdlora.training.sample_images import SAMPLE_FAILURES, draw_plain

BASE_LOSS_PICTURES = 2
BASE_LOSS_LEVELS = (0.2, 0.5, 0.8)  # shares of the noise levels that are trained
MAX_BASE_LOSS_RATIO = 1.5  # times the base model's: what is trained can only have lowered it


@torch.no_grad()
def fixed_noise_loss(
    family: ModelFamily, batch: LatentBatch, settings: TrainSettings, levels: Sequence[float]
) -> Tensor:
    """(len(levels) * B,) squared errors at `levels`, shares of all noise levels, without dropout.
    A picture's noise is its own, so that the figure does not hang on how many stand together."""
    plain = DiffusionLoss(DiffusionLoss.from_settings(settings, family.noise).noise)
    generators = [generator_for(settings.seed, name, "validation") for name in batch.names]
    shape = batch.latents.shape[1:]
    eps = torch.stack([torch.randn(shape, generator=rng) for rng in generators]).to(family.device)
    batch = batch.to(family.device)
    losses: list[Tensor] = []
    with family.eval_mode():
        for level in levels:
            timesteps = torch.full(
                (len(batch),), round(level * family.noise.num_steps), device=family.device
            )
            losses.append(loss_of(family, batch, NoisedLatents(timesteps, eps, eps), plain))
    return torch.cat(losses)


@dataclass
class BaseLossCheck:
    """Check that the adapter is better than none, on a few pictures that it is trained on."""

    family: ModelFamily
    dataset: LatentDataset
    settings: TrainSettings
    base: float | None = None  # the base model's loss; None: nobody looked before the first step

    def measure_base(self) -> None:
        """Measure the base model, while the adapter changes nothing yet."""
        self.base = self._loss()

    def complaint(self) -> str:
        """Return what is wrong with the adapter now, '' for nothing. Waits for the device."""
        if not self.base:
            return ""
        times = self._loss() / self.base
        if times <= MAX_BASE_LOSS_RATIO:
            return ""
        return f"its loss on the pictures that it learns is {times:.1f} times the base model's"

    def _loss(self) -> float:
        low, high = self.settings.min_timestep / 1000, self.settings.max_timestep / 1000
        levels = [low + level * (high - low) for level in BASE_LOSS_LEVELS]
        batch = self.dataset.batch(1)[:BASE_LOSS_PICTURES]
        return float(fixed_noise_loss(self.family, batch, self.settings, levels).mean())


LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)  # of all noise levels
WORSE, OFTEN = 1.01, 2  # above the best by this factor, this many times in a row: it overfits
MOST_UNRELATED = 3  # prompts, of 8 steps each, when none were chosen


def without_augmentation(settings: TrainSettings) -> TrainSettings:
    """Return the settings with which held-out pictures are read: nothing about them is random."""
    plain = {
        "caption_dropout": 0.0, "tag_dropout": 0.0, "shuffle_tags": False, "caption_variants": 1,
        "flip": False, "crop_jitter": 0.0, "colour_jitter": 0.0, "gradient_accumulation": 1,
    }  # fmt: skip
    return settings.model_copy(update=plain)


@dataclass
class Validation:
    """The figures of a training over its steps."""

    family: ModelFamily
    settings: TrainSettings
    held_out: LatentDataset | None
    prompts: tuple[str, ...] = ()  # that have nothing to do with the pictures
    figures: list[Validated] = field(default_factory=list)
    base_pictures: list[Image.Image] = field(default_factory=list)
    alarmed: bool = False

    @property
    def is_wanted(self) -> bool:
        """True when there is anything to measure."""
        return bool(self.settings.validate_every and (self.held_out or self.prompts))

    @property
    def best(self) -> Validated | None:
        """The figure with the lowest loss."""
        return next((figure for figure in reversed(self.figures) if figure.best), None)

    @property
    def patience_is_over(self) -> bool:
        """True when there was no new best for as long as the settings wait for one."""
        patience, best = self.settings.patience, self.best
        return bool(patience and best and len(self.figures) - self.figures.index(best) > patience)

    def measure(self, step: int) -> Iterator[Event]:
        """The figures of the model as it stands, after `step`; that it drifts nowhere before the
        first is known."""
        loss, drift = self.loss() if self.held_out else None, None
        try:
            drift = self.drift() if step else 0.0 if self.prompts else None
        except SAMPLE_FAILURES as error:
            yield self._unmeasured(error)
        yield self.note(Validated(step, loss, drift=drift))

    def note(self, figure: Validated) -> Validated:
        """Keep a figure; the same, knowing whether it is the best."""
        loss, before = figure.loss, self.best
        best = loss is not None and (before is None or loss < (before.loss or 0.0))
        self.figures.append(replace(figure, best=best))
        return self.figures[-1]

    def loss(self) -> float:
        """The mean squared error over pictures held out and LEVELS, which weigh the same."""
        dataset, family, settings = self.held_out, self.family, self.settings
        assert dataset is not None
        batches = map(dataset.batch, range(1, dataset.steps_per_round + 1))
        losses = [fixed_noise_loss(family, batch, settings, LEVELS) for batch in batches]
        return float(torch.cat(losses).mean())

    def drift(self) -> float | None:
        """The mean difference per pixel, 0 to 1, of pictures of unrelated prompts from those that
        the base model made with the same seeds; None when there are no such prompts."""
        if not self.prompts:
            return None
        far = [difference(*pair) for pair in zip(self._drawn(), self.base_pictures, strict=True)]
        return sum(far) / len(far)

    def measure_base(self) -> Iterator[Event]:
        """Keep what the base model makes of the unrelated prompts, while the adapter changes
        nothing yet."""
        try:
            self.base_pictures = [*self._drawn()] if self.settings.validate_every else []
        except SAMPLE_FAILURES as error:
            yield self._unmeasured(error)

    def _drawn(self) -> Iterable[Image.Image]:
        return (draw_plain(self.family, text, self.settings.seed) for text in self.prompts)

    def _unmeasured(self, error: Exception) -> Warned:
        self.prompts = ()
        message = Message("how far unrelated pictures drift is not measured: {why}", why=error)
        return Warned(message, "training goes on")

    def alarm(self) -> Warned | None:
        """Warn once, when the pictures held out are told worse and worse than at the best."""
        best, later = self.best, self.figures[-OFTEN:]
        if self.alarmed or not best or best.loss is None or len(later) < OFTEN:
            return None
        if any((figure.loss or 0.0) <= WORSE * best.loss for figure in later) or best in later:
            return None
        self.alarmed = True
        now = self.figures[-1]
        if not best.step:
            return Warned(
                Message(
                    "overfitting: the validation loss of the base model was better ({best:.4f}) "
                    "than that of the LoRA is now ({now:.4f})",
                    best=best.loss, now=now.loss,
                ),
                Message(
                    "a lower {rate} or more pictures help; the validation pictures should be of "
                    "the same kind as the others, captions too", rate=Setting("learning_rate"),
                ),
            )  # fmt: skip
        return Warned(
            Message(
                "overfitting begins: the validation loss was best after step {step} ({best:.4f}) "
                "and is worse now ({now:.4f})",
                step=best.step, best=best.loss, now=now.loss,
            ),
            Message(
                "use the LoRA of step {step}; more pictures, a lower {rank} or fewer steps help",
                step=best.step, rank=Setting("rank"),
            ),
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of it."""
        rows = [[f.step, f.loss, f.best, f.drift] for f in self.figures]
        return {"figures": rows, "alarmed": self.alarmed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.figures = [Validated(*row) for row in state["figures"]]
        self.alarmed = state["alarmed"]


def unrelated_prompts(
    settings: TrainSettings, family: str, trigger: str, validates: bool
) -> tuple[str, ...]:
    """Return the prompts that drift is measured on: those that the settings name, else, in a
    training that `validates`, those of the model family that do not say the trigger."""
    if settings.drift_prompts or not validates or not settings.measure_drift:
        return settings.drift_prompts if settings.measure_drift else ()
    spoken = {word for word in _word_set(trigger) if len(word) > 2}
    fitting = [text for text in preset_drift_prompts(family) if not spoken & _word_set(text)]
    return tuple(fitting[:MOST_UNRELATED])


def _word_set(text: str) -> set[str]:
    return {*re.findall(r"\w+", text.lower())}


def difference(a: Image.Image, b: Image.Image) -> float:
    """Return the mean absolute difference of two pictures of one size, 0 to 1."""
    means = ImageStat.Stat(ImageChops.difference(a.convert("RGB"), b.convert("RGB"))).mean
    return sum(means) / len(means) / 255
