"""Measured cost of a training on this device: memory of the largest step, time of all.

The steps are real: the model, the adapter, the optimizer and pictures of the largest bucket. What
they learnt is thrown away.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from sdlora.data.folder import Example
from sdlora.data.report import Preflight
from sdlora.device import free_memory_gib, pick_device, pick_dtype
from sdlora.errors import DeviceError
from sdlora.events import Done, Event, Measured, Progress
from sdlora.messages import Setting
from sdlora.models.options import model_options
from sdlora.models.registry import open_family
from sdlora.training.latent_dataset import encode_dataset
from sdlora.training.memory_plan import plan_memory
from sdlora.training.out_of_memory import OUT_OF_MEMORY
from sdlora.training.train_state import TrainState
from sdlora.workspace import Workspace

STEPS = 3  # the first of which is slower, and not counted


def measure(report: Preflight, workspace: Workspace) -> Iterator[Event]:
    """Take a few steps of the training that a dataset report is of, and tell what they took.
    DeviceError: it does not fit."""
    started = time.monotonic()
    settings = report.settings.model_copy(update={"caption_variants": 1})
    device, _ = pick_device()
    dtype, _ = pick_dtype(device, settings.precision)
    free = free_memory_gib(device)
    source = workspace.checked_model(settings.model)
    settings = plan_memory(settings, source, dtype.itemsize, device).settings
    examples, share = largest_step(report)
    yield Progress("loading the model")
    try:
        with _peak(device) as peak:
            family = open_family(source, dtype, device, model_options(settings, workspace))
            dataset = yield from encode_dataset(
                family, examples, settings, workspace.cache, report.lists
            )
            state = TrainState(family, dataset, settings)
            for step in range(1, STEPS + 1):
                yield Progress("taking steps to measure them", step, STEPS)
                if step == 2:
                    _wait(device)
                    began = time.monotonic()
                state.train_step(step)
            _wait(device)
    except OUT_OF_MEMORY:
        raise DeviceError(
            "a step of {count} pictures does not fit into the {free:.1f} GiB that are free; choose "
            "a lower {memory}, a smaller {batch} or a smaller {resolution}",
            count=len(examples), free=free, memory=Setting("memory"),
            batch=Setting("batch_size"), resolution=Setting("resolution"),
        ) from None  # fmt: skip
    step_s = (time.monotonic() - began) / (STEPS - 1)
    whole = step_s * share * settings.steps
    yield Measured(str(device), step_s, whole, settings.steps, peak[0], free)
    yield Done(seconds=time.monotonic() - started)


def largest_step(report: Preflight) -> tuple[list[Example], float]:
    """Return the pictures of a step that needs the most memory, and the share of its pixels that a
    step has on the average."""
    size = report.settings.batch_size * report.settings.gradient_accumulation
    counts = {
        bucket: sum(row.example.repeats for row in report.learnt if row.bucket == bucket)
        for bucket in report.buckets
    }
    pixels = {b: b.width * b.height * min(size, count) for b, count in counts.items()}
    bucket = max(pixels, key=pixels.__getitem__)
    mean = sum(b.width * b.height * count for b, count in counts.items()) / report.steps_per_round
    examples = [row.example for row in report.learnt if row.bucket == bucket]
    while len(examples) < min(size, counts[bucket]):
        examples += examples  # those that repeat
    return examples[:size], mean / pixels[bucket]


@contextmanager
def _peak(device: torch.device) -> Iterator[list[float]]:
    """GiB taken at most while it is open, in a list of one: of the GPU, or of this process beyond
    what it had before."""
    peak: list[float] = [0.0]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak[0] = torch.cuda.max_memory_reserved(device) / 2**30
        return
    process, over = psutil.Process(), threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        while not over.wait(0.02):
            peak[0] = max(peak[0], (process.memory_info().rss - before) / 2**30)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
