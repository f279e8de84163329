"""The training loop: a folder of captioned pictures in, a LoRA file out, events all the way.

Read it from top to bottom: `train` is the whole of it, what follows are its first chapters; the
others have pages of their own in `sdlora.training`, and `trainer` is the next to read. Whatever
differs between base models is behind `ModelFamily`. Randomness comes from (seed, step) alone, so
two runs learn the same numbers, and neither samples, nor how a batch is split up, nor where a run
was interrupted change them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from sdlora.data.dataset import Dataset, read_dataset
from sdlora.data.folder import to_warnings
from sdlora.data.validation_split import Split, split_dataset
from sdlora.device import free_memory_gib, pick_device, pick_dtype
from sdlora.errors import SettingsError
from sdlora.events import Done, Event, Paused, Progress, Resumed, Stopped, Warned
from sdlora.inference.engine import never_stop
from sdlora.jobs.resume import apply_changes
from sdlora.lora.format.training_metadata import reproduction_warnings
from sdlora.messages import Message, Setting
from sdlora.models.base import ModelFamily
from sdlora.models.options import model_options
from sdlora.models.registry import is_for_few_steps, open_family
from sdlora.settings.cadence import in_steps
from sdlora.settings.train import TrainSettings
from sdlora.training.checkpoints import SavedState, newest_checkpoint
from sdlora.training.dataset_fingerprint import check_same, digest, fingerprints
from sdlora.training.latent_dataset import encode_dataset
from sdlora.training.loss import DiffusionLoss
from sdlora.training.memory_plan import MemoryPlan, plan_memory
from sdlora.training.optim import check_optimizer
from sdlora.training.trainer import Trainer
from sdlora.training.validation import Validation, unrelated_prompts, without_augmentation
from sdlora.workspace import Workspace

ResultT = TypeVar("ResultT")


def train(
    settings: TrainSettings,
    workspace: Workspace,
    folder: Path,
    should_stop: Callable[[], bool] = never_stop,
) -> Iterator[Event]:
    """Train a LoRA as `settings` say, from a folder of pictures to a file in the workspace's loras.

    The run's `folder` keeps the samples, the LoRA and the checkpoints; where it has some, the
    training goes on from the newest, with the settings that it was made with. Asked to stop, it
    ends after the present step and keeps what it has learnt. SdloraError: pictures, model or
    settings cannot be used, or the training diverged.
    """
    started = time.monotonic()
    saved = yield from find_checkpoint(folder)
    settings = apply_changes(saved.facts["settings"] if saved else settings.given(), folder)
    job = prepare(settings, workspace, folder, saved)
    trainer = yield from run_until_stopped(should_stop, job)
    if trainer is None:
        yield Stopped()
        return
    yield from trainer.begin(saved)
    while not trainer.is_over:
        yield from trainer.train_step()
        if trainer.samples_due:
            yield from trainer.sample(should_stop)
        if trainer.validation_due:
            yield from trainer.validate()
        if trainer.save_due:
            yield from trainer.save()
        if should_stop():
            yield Stopped((yield from trainer.finish(early=True)), trainer.step)
            return
        if trainer.run.is_requested("pause"):
            trainer.run.acknowledge({"pause"})
            yield from trainer.save()
            if trainer.saved_step == trainer.step:  # else what it has learnt would be lost
                yield Paused(trainer.step)
                return
    yield Done((yield from trainer.finish()), time.monotonic() - started)


def find_checkpoint(folder: Path) -> Generator[Event, None, SavedState | None]:
    """Return the newest checkpoint of the run in `folder`; None when it begins."""
    saved, problems = newest_checkpoint(folder)
    if saved:
        yield Resumed(saved.step)
    for problem in problems:
        yield Warned(problem, "it was set aside; the training goes on from an earlier one")
    return saved


def run_until_stopped(
    should_stop: Callable[[], bool], job: Generator[Event, None, ResultT]
) -> Generator[Event, None, ResultT | None]:
    """Pass the job's events on and return its result; None if it was stopped before its end."""
    while not should_stop():
        try:
            event = next(job)
        except StopIteration as end:
            result: ResultT = end.value
            return result
        yield event
    return None


def prepare(
    settings: TrainSettings,
    workspace: Workspace,
    folder: Path,
    saved: SavedState | None = None,
) -> Generator[Event, None, Trainer]:
    """Read the pictures, open the model, encode the ones with the other, attach the adapter.
    RunError: the pictures are others than those that the training began with."""
    device, device_reason = pick_device()
    check_optimizer(settings.optimizer, device)  # an error comes before the long work
    dtype, dtype_reason = pick_dtype(device, settings.precision)
    pictures = yield from read_pictures(settings, workspace)
    prints = fingerprints(pictures.examples, pictures.lists)
    if saved:
        check_same(saved.facts["pictures"], prints)
    yield from reproduction_warnings(folder, digest(prints))
    split = split_dataset(pictures, settings, workspace)
    yield from to_warnings(split.problems)
    plan = yield from plan_training(settings, workspace, dtype, device)
    settings = plan.settings
    family = yield from open_model(settings, workspace, dtype, device)
    dataset = yield from encode_dataset(
        family, split.learnt, settings, workspace.cache, split.lists
    )
    settings = in_steps(settings, dataset.steps_per_round)
    validation = yield from prepare_validation(settings, family, split, workspace, pictures.trigger)
    yield Progress("preparing the adapter")
    return Trainer(
        settings=settings, workspace=workspace, folder=folder, family=family,
        dataset=replace(dataset, settings=settings), validation=validation, fingerprints=prints,
        validation_fingerprints=fingerprints(split.held_out) if settings.validation_data else {},
        trigger=pictures.trigger,
        auto_choices={
            "device": f"{device}: {device_reason}", "number format": f"{dtype}: {dtype_reason}",
            **plan.details,
        },
    )  # fmt: skip


def plan_training(
    settings: TrainSettings, workspace: Workspace, dtype: torch.dtype, device: torch.device
) -> Generator[Event, None, MemoryPlan]:
    """Decide how the training fits into the device's memory; warn where the plan needs more than is
    free."""
    source = workspace.model_source(settings.model)
    plan = plan_memory(settings, source, dtype.itemsize, device)
    free = free_memory_gib(device)
    if plan.prediction and plan.prediction.total > free * 2**30:
        yield Warned(
            Message(
                "the training needs {needed}; {free:.1f} GiB are free",
                needed=str(plan.prediction), free=free,
            ),
            Message(
                "{memory} = low or lowest makes the weights smaller, {batch} and {resolution} the "
                "activations",
                memory=Setting("memory"), batch=Setting("batch_size"),
                resolution=Setting("resolution"),
            ),
        )  # fmt: skip
    return plan


def open_model(
    settings: TrainSettings, workspace: Workspace, dtype: torch.dtype, device: torch.device
) -> Generator[Event, None, ModelFamily]:
    """Open the base model as the settings train it. SettingsError: they do not fit it."""
    yield Progress("loading the model")
    source = workspace.checked_model(settings.model)
    family = open_family(source, dtype, device, model_options(settings, workspace))
    if family.extra_channels:
        raise SettingsError(
            "{model} is an inpainting model, which also reads a mask and a masked picture; train "
            "on the model that it was made from, its LoRAs fit both",
            model=settings.model,
        )
    if is_for_few_steps(source):
        yield Warned(
            Message("{model} is made for pictures in few steps, as its name says", model=source),
            "a LoRA learns better on the model that it was made from, and fits both",
        )
    DiffusionLoss.from_settings(settings, family.noise)  # an error comes before the long work
    family.caption_clip_skip = settings.clip_skip
    if settings.zero_terminal_snr:
        family.use_zero_terminal_snr()  # samples are drawn as it is trained
    return family


def prepare_validation(
    settings: TrainSettings, family: ModelFamily, split: Split, workspace: Workspace, trigger: str
) -> Generator[Event, None, Validation]:
    """Encode the pictures of the validation split, and choose the prompts to measure drift on."""
    held_out = None
    if split.held_out:
        plain = without_augmentation(settings)
        held_out = yield from encode_dataset(
            family, split.held_out, plain, workspace.cache, split.lists
        )
    prompts = unrelated_prompts(settings, family.name, trigger, bool(split.held_out))
    return Validation(family, settings, held_out, prompts)


def read_pictures(settings: TrainSettings, workspace: Workspace) -> Generator[Event, None, Dataset]:
    """Read the examples and what belongs to them; warn of all that is wrong."""
    yield Progress("reading pictures")
    dataset = read_dataset(settings, workspace)
    yield from to_warnings(dataset.problems)
    return dataset
