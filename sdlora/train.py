"""THE loop: a folder of captioned pictures in, a LoRA file out, events all the way.

Read it from top to bottom: `train` is the story, what follows are its chapters in order. Whatever
differs between base models is `Family`'s business. Randomness comes from (seed, step) alone, so two
runs learn the same numbers, and neither samples nor how a batch is split up change them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from sdlora.adapters import attach, collect, trainable_report
from sdlora.data.captions import common_trigger, spread, with_trigger
from sdlora.data.folder import Example, scan_folder
from sdlora.device import generator_for, pick_device, pick_dtype
from sdlora.encode import Batch, Dataset, encode_dataset
from sdlora.errors import DataError, SdloraError
from sdlora.events import Done, Event, Progress, SampleReady, Saved, Started, Step, Stopped, Warned
from sdlora.families import open_family
from sdlora.families.base import Family
from sdlora.generate import never, render
from sdlora.lora.file import LoraFile, write_lora
from sdlora.lora.metadata import TrainingFacts, count_tags, training_metadata
from sdlora.optim import find_optimizer, make_optimizer, rate_share, set_rates
from sdlora.pace import Pace
from sdlora.settings import ImageRequest, TrainSettings
from sdlora.workspace import Workspace, free_path, publish

READ_EVERY = 5  # steps; to read a loss is to wait for the device
# What memory, disk or model may do to a sample without ending the training.
SAMPLE_FAILURES = (SdloraError, RuntimeError, ValueError, TypeError, LookupError, OSError)
ResultT = TypeVar("ResultT")


def train(
    settings: TrainSettings,
    workspace: Workspace,
    folder: Path,
    should_stop: Callable[[], bool] = never,
) -> Iterator[Event]:
    """Train a LoRA as `settings` say, from a folder of pictures to a file in the workspace's loras.

    The run's `folder` keeps the samples and the LoRA too. Asked to stop, the training ends after
    the present step and keeps what it has learnt. SdloraError: pictures, model or settings cannot
    be used, or the loss is no longer a number.
    """
    began = time.monotonic()
    training = yield from unless(should_stop, prepare(settings, workspace, folder))
    if training is None:
        yield Stopped()
        return
    yield training.started()
    for step in range(1, settings.steps + 1):
        training.learn(step)
        yield training.report(step)
        if training.samples_at(step):
            yield from training.sample(step, should_stop)
        if should_stop():
            break
    path = yield from training.save(step)
    yield Done(path, time.monotonic() - began) if step == settings.steps else Stopped(path, step)


def unless(
    should_stop: Callable[[], bool], job: Generator[Event, None, ResultT]
) -> Generator[Event, None, ResultT | None]:
    """Pass the job's events on and return its result; None if it was stopped before its end."""
    while not should_stop():
        try:
            event = next(job)
        except StopIteration as end:
            return end.value
        yield event
    return None


def prepare(
    settings: TrainSettings, workspace: Workspace, folder: Path
) -> Generator[Event, None, Training]:
    """Read the pictures, open the model, encode the ones with the other, attach the adapter."""
    find_optimizer(settings.optimizer)  # what is wrong with it is said before the long work
    device, why_device = pick_device()
    dtype, why_dtype = pick_dtype(device, settings.precision)
    examples, trigger = yield from read_pictures(settings, workspace)
    yield Progress("loading the model")
    family = open_family(workspace.model_source(settings.model), dtype, device)
    dataset = yield from encode_dataset(family, examples, settings)
    chosen = {"device": f"{device}: {why_device}", "number format": f"{dtype}: {why_dtype}"}
    return Training(settings, workspace, folder, family, dataset, trigger, chosen)


def read_pictures(
    settings: TrainSettings, workspace: Workspace
) -> Generator[Event, None, tuple[list[Example], str]]:
    """The examples, every caption with the trigger word in it, and that word ('' for none)."""
    yield Progress("reading pictures")
    path = Path(settings.data)
    if not path.is_dir():
        path = workspace.dataset_folders().get(settings.data, path)
    examples, problems = scan_folder(path)
    yield from (problem.warned() for problem in problems)
    captions = (example.caption for example in examples if example.caption)
    trigger = settings.trigger_word or common_trigger(captions)
    return [replace(e, caption=with_trigger(e.caption, trigger)) for e in examples], trigger


def loss_of(family: Family, batch: Batch, t: Tensor, eps: Tensor, gamma: float) -> Tensor:
    """(B,) squared errors between what the network answers to pictures under noise eps (B,C,h,w) of
    levels t (B,) and what `family.noise` says it should (arXiv:2006.11239, eq. 14), weighted."""
    x0, noise = batch.latents, family.noise
    if not batch.cond:  # the text encoder learns, so captions mean something new in every step
        batch = replace(batch, cond=family.encode_prompts(batch.captions))
    predicted = family.predict(noise.add_noise(x0, eps, t), t, batch)  # (B,C,h,w)
    errors = (predicted.float() - noise.target(x0, eps, t)).square().flatten(1).mean(1)
    return noise.weight(t, gamma) * errors


@dataclass
class Training:
    """A training under way: an open model, the adapter that learns, what it learns from."""

    settings: TrainSettings
    workspace: Workspace
    folder: Path
    family: Family
    dataset: Dataset
    trigger: str
    chosen: Mapping[str, str]  # what was chosen for the user, and why

    def __post_init__(self) -> None:
        settings, family = self.settings, self.family
        learning = attach(family, settings)
        rates = {key: settings.text_encoder_learning_rate for key in family.text_encoders}
        groups = [(some, rates.get(key, settings.learning_rate)) for key, some in learning.items()]
        self.parameters = [parameter for some, _ in groups for parameter in some]
        self.optimizer = make_optimizer(settings.optimizer, groups, settings.weight_decay)
        half = family.dtype == torch.float16
        self.scaler = torch.amp.GradScaler(family.device.type, enabled=half)
        for key in learning:
            family.parts[key].train()
        if settings.gradient_checkpointing:
            family.denoiser.enable_gradient_checkpointing()
            for encoder in family.text_encoders.values():
                encoder.activation_checkpointing_enable()
        self.pace = Pace(settings.steps, settings.sample_every)
        self.started_at = time.time()
        # step, its pictures, and (2,) its loss and gradient's norm, still on the device
        self.unread: list[tuple[int, Sequence[str], Tensor]] = []
        self.sound_step, self.sound = 0, self.weights()

    def started(self) -> Started:
        """What a user wants to know before the first step."""
        details = {
            "pictures": self.dataset.summary(),
            "trigger word": self.trigger or "none; the captions begin with nothing in common",
            "learning": str(trainable_report(self.family)),
            "model": self.family.title,
            **self.chosen,
            "seed": str(self.settings.seed),
        }
        return Started(f"training {self.settings.name}", self.settings.steps, details)

    def learn(self, step: int) -> None:
        """One optimizer step. Nothing is read back, so the device never waits for us."""
        settings, family, device = self.settings, self.family, self.family.device
        batch, rng = self.dataset.batch(step), generator_for(settings.seed, step, "noise")
        t = family.noise.sample_t(len(batch), rng)
        eps = torch.randn(batch.latents.shape, generator=rng)
        batch, t, eps = batch.to(device), *(x.to(device, non_blocking=True) for x in (t, eps))
        loss = torch.zeros((), device=device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(generator_for(settings.seed, step, "dropout").initial_seed())
            for first in range(0, len(batch), settings.batch_size):
                rows = slice(first, first + settings.batch_size)
                losses = loss_of(family, batch[rows], t[rows], eps[rows], settings.min_snr_gamma)
                share = losses.sum() / len(batch)
                self.scaler.scale(share).backward()
                loss += share.detach()
        norm = self.update(step)
        self.unread.append((step, batch.names, torch.stack((loss, norm))))

    def update(self, step: int) -> Tensor:
        """Move the adapter against the gradient; returns the gradient's norm before clipping."""
        settings = self.settings
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, settings.max_grad_norm)
        share = rate_share(settings.schedule, step, settings.steps, settings.warmup_steps)
        set_rates(self.optimizer, share)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def report(self, step: int) -> Step:
        """How far it is; with the mean loss since the last reading, if this step reads."""
        reads = step in (1, self.settings.steps) or step % READ_EVERY == 0 or self.samples_at(step)
        loss = self.read(step) if reads else None
        rate = float(self.optimizer.param_groups[0]["lr"])
        return Step(step, self.settings.steps, loss, rate, self.pace.seconds_left(step))

    def read(self, step: int) -> float:
        """The mean loss of the unread steps up to `step`, once the device has finished them.
        DataError: one of them is not a number; the pictures of that step are named."""
        unread, self.unread = self.unread, []
        numbers = torch.stack([both for *_, both in unread]).tolist()
        for (at, names, _), (loss, norm) in zip(unread, numbers, strict=True):
            # In fp16 a gradient may overflow: the scaler has left that step out by itself.
            if not isfinite(loss if self.scaler.is_enabled() else loss + norm):
                raise self.diverged(at, names)
        self.sound_step, self.sound = step, self.weights()
        self.pace.stepped(step)
        return float(sum(loss for loss, _ in numbers) / len(numbers))

    def weights(self) -> list[Tensor]:
        """A copy of what the adapter knows now."""
        return [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def diverged(self, step: int, names: Sequence[str]) -> DataError:
        """Go back to the last sound step, keep its LoRA in the run's folder, and say all that."""
        for parameter, sound in zip(self.parameters, self.sound, strict=True):
            parameter.copy_(sound)
        kept = ""
        if self.sound_step:
            name = f"{self.settings.name}-step-{self.sound_step:06}"
            path = self.folder / "lora" / f"{name}.safetensors"
            write_lora(self.lora(self.sound_step, name), path)
            kept = f" What was learnt up to step {self.sound_step} is kept as {path}."
        return DataError(
            f"the loss is not a number at step {step}, with {', '.join(names)}; nothing of "
            f"that step is kept.{kept} Lower the learning_rate, or leave these pictures out"
        )

    def samples_at(self, step: int) -> bool:
        """Whether pictures are drawn after this step."""
        return self.settings.sample_every > 0 and step % self.settings.sample_every == 0

    def sample(self, step: int, should_stop: Callable[[], bool]) -> Iterator[Event]:
        """Draw what has been learnt, each prompt from the same noise every time."""
        prompts = self.settings.sample_prompts or spread(self.dataset.captions)
        for index, prompt in enumerate(prompts):
            yield Progress("drawing samples", index, len(prompts))
            try:
                yield from self.draw(step, index, prompt, should_stop)
            except SAMPLE_FAILURES as error:
                yield Warned(f"no sample of {prompt!r} at step {step}: {error}", "training goes on")
        self.pace.sampled()

    def draw(
        self, step: int, index: int, prompt: str, should_stop: Callable[[], bool]
    ) -> Iterator[Event]:
        """One picture by the model as it is now; none when it was stopped before its end."""
        seed = (self.settings.seed + index) % 2**32
        request = ImageRequest.of({"prompt": prompt, "seed": seed})
        images, report = render(self.family, request, should_stop=should_stop)
        for image in images:
            path = self.folder / "samples" / f"step-{step:06}-{index}.png"
            publish(path, partial(image.save, format="png"))
            yield SampleReady(str(path), step, prompt, seed, report)

    def lora(self, step: int, name: str) -> LoraFile:
        """The adapter as it is now, with all that other programs like to know of it."""
        facts = TrainingFacts(
            base=self.family.name,
            prediction=self.family.noise.prediction,
            resolution=self.settings.resolution or self.family.resolution,
            images=len(self.dataset.items),
            steps=step,
            trigger_word=self.trigger,
            tag_frequency=count_tags(self.dataset.captions),
            started_at=self.started_at,
            finished_at=time.time(),
        )
        named = self.settings.model_copy(update={"name": name})
        return replace(collect(self.family), metadata=training_metadata(named, facts))

    def save(self, step: int) -> Generator[Event, None, str]:
        """Write the LoRA into the run's folder and, under a name that is free, where prompts find
        it; returns that path."""
        if self.unread:
            self.read(step)  # what is not a number gets no name
        path = free_path(self.workspace.loras / f"{self.settings.name}.safetensors")
        file = self.lora(step, path.stem)
        for folder in (self.folder / "lora", path.parent):
            write_lora(file, folder / path.name)
        if path.stem != self.settings.name:
            said = f"there is a LoRA named {self.settings.name} already, so this one is {path.stem}"
            yield Warned(said, f"use it as <lora:{path.stem}:0.8>")
        yield Saved(str(path), step)
        return str(path)
