"""THE loop: a folder of captioned pictures in, a LoRA file out, events all the way.

Read it from top to bottom: `train` is the story, what follows are its first chapters; the others
have pages of their own in `sdlora.training`, and `trainer` is the next to read. Whatever differs
between base models is `Family`'s business. Randomness comes from (seed, step) alone, so two runs
learn the same numbers, and neither samples, nor how a batch is split up, nor where a run was
interrupted change them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from sdlora.data.dataset import Dataset, read_dataset
from sdlora.data.folder import to_warnings
from sdlora.data.validation_split import split_dataset
from sdlora.device import pick_device, pick_dtype
from sdlora.events import Done, Event, Paused, Progress, Resumed, Stopped, Warned
from sdlora.inference.engine import never
from sdlora.jobs.control_files import clear_requests, is_requested
from sdlora.jobs.resume import apply_changes
from sdlora.lora.format.training_metadata import compared
from sdlora.models.registry import open_family
from sdlora.settings.cadence import in_steps
from sdlora.settings.train import TrainSettings
from sdlora.training.checkpoints import SavedState, newest_checkpoint
from sdlora.training.dataset_fingerprint import check_same, digest, fingerprints
from sdlora.training.latent_dataset import encode_dataset
from sdlora.training.loss import DiffusionLoss
from sdlora.training.optim import try_optimizer
from sdlora.training.trainer import Trainer
from sdlora.training.validation import Validation, plainly, unrelated_prompts
from sdlora.workspace import Workspace

ResultT = TypeVar("ResultT")


def train(
    settings: TrainSettings,
    workspace: Workspace,
    folder: Path,
    should_stop: Callable[[], bool] = never,
) -> Iterator[Event]:
    """Train a LoRA as `settings` say, from a folder of pictures to a file in the workspace's loras.

    The run's `folder` keeps the samples, the LoRA and the checkpoints; where it has some, the
    training goes on from the newest, with the settings that it was made with. Asked to stop, it
    ends after the present step and keeps what it has learnt. SdloraError: pictures, model or
    settings cannot be used, or the training diverged.
    """
    began = time.monotonic()
    begun = yield from find_checkpoint(folder)
    settings = apply_changes(begun.facts["settings"] if begun else settings.given(), folder)
    training = yield from unless(should_stop, prepare(settings, workspace, folder, begun))
    if training is None:
        yield Stopped()
        return
    yield from training.begin(begun)
    while not training.is_over:
        yield from training.learn()
        yield from training.look_up(should_stop)
        if should_stop():
            yield Stopped((yield from training.keep(early=True)), training.step)
            return
        if is_requested(folder, "pause"):
            clear_requests(folder, "pause")
            yield from training.save()
            if training.saved_step == training.step:  # else it would lose what it has learnt
                yield Paused(training.step)
                return
    yield Done((yield from training.keep()), time.monotonic() - began)


def find_checkpoint(folder: Path) -> Generator[Event, None, SavedState | None]:
    """Where the run in `folder` got to; None when it begins."""
    found, problems = newest_checkpoint(folder)
    if found:
        yield Resumed(found.step)
    for problem in problems:
        yield Warned(problem, "it was set aside; the training goes on from an earlier one")
    return found


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
    settings: TrainSettings,
    workspace: Workspace,
    folder: Path,
    begun: SavedState | None = None,
) -> Generator[Event, None, Trainer]:
    """Read the pictures, open the model, encode the ones with the other, attach the adapter.
    RunError: the pictures are others than those that the training began with."""
    device, why_device = pick_device()
    try_optimizer(settings.optimizer, device)  # what is wrong is said before the long work
    dtype, why_dtype = pick_dtype(device, settings.precision)
    gathered = yield from read_pictures(settings, workspace)
    prints = fingerprints(gathered.examples, gathered.lists)
    if begun:
        check_same(begun.facts["pictures"], prints)
    yield from compared(folder, digest(prints))
    split = split_dataset(gathered, settings, workspace)
    yield from to_warnings(split.problems)
    others_prints = fingerprints(split.held_out) if settings.validation_data else {}
    yield Progress("loading the model")
    family = open_family(workspace.model_source(settings.model), dtype, device)
    DiffusionLoss.of(settings, family.noise)  # whether they go together, before the long work
    family.caption_clip_skip = settings.clip_skip
    if settings.zero_terminal_snr:
        family.begin_from_noise()  # its samples are made as they are learnt
    kept = workspace.cache, split.lists
    dataset = yield from encode_dataset(family, split.learnt, settings, *kept)
    settings = in_steps(settings, dataset.steps_per_round)
    dataset = replace(dataset, settings=settings)
    measured = None
    if split.held_out:
        measured = yield from encode_dataset(family, split.held_out, plainly(settings), *kept)
    chosen = {"device": f"{device}: {why_device}", "number format": f"{dtype}: {why_dtype}"}
    yield Progress("preparing the adapter")
    prompts = unrelated_prompts(settings, family.name, gathered.trigger, bool(split.held_out))
    validation = Validation(family, settings, measured, prompts)
    learns = family, dataset, validation, prints, others_prints
    return Trainer(settings, workspace, folder, *learns, gathered.trigger, chosen)


def read_pictures(settings: TrainSettings, workspace: Workspace) -> Generator[Event, None, Dataset]:
    """The examples and what belongs to them; all that is wrong is said."""
    yield Progress("reading pictures")
    gathered = read_dataset(settings, workspace)
    yield from to_warnings(gathered.problems)
    return gathered
