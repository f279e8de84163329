"""Export of a training's adapter: the LoRA file with its metadata, and its way into the library."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from sdlora.adapters import extract_lora
from sdlora.events import Event, Saved, Warned
from sdlora.lora.format.file import LoraFile, write_lora
from sdlora.lora.format.metadata import TrainingFacts, count_tags, training_metadata
from sdlora.lora.format.training_metadata import reproduction_metadata
from sdlora.messages import Message
from sdlora.settings.train import TrainSettings
from sdlora.training.checkpoints import RunFolder, publish_lora
from sdlora.training.dataset_fingerprint import Prints, digest
from sdlora.training.disk_space import DiskSpace
from sdlora.training.train_state import TrainState


@dataclass(kw_only=True)
class LoraExport:
    """Writes what a training has learnt; `fingerprints` are those of its pictures."""

    settings: TrainSettings
    state: TrainState
    run: RunFolder
    loras: Path
    disk: DiskSpace
    fingerprints: Prints
    trigger: str
    started_at: float = field(default_factory=time.time)

    def lora(self, name: str, step: int) -> LoraFile:
        """Return the adapter as it is after `step`, with the metadata that other programs read."""
        family, dataset, settings = self.state.family, self.state.dataset, self.settings
        facts = TrainingFacts(
            base=family.name,
            prediction=family.noise.prediction,
            resolution=settings.resolution or family.resolution,
            images=len(dataset.items),
            steps=step,
            trigger_word=self.trigger,
            tag_frequency=count_tags(dataset.captions),
            started_at=self.started_at,
            finished_at=time.time(),
        )
        metadata = training_metadata(settings.model_copy(update={"name": name}), facts)
        metadata |= reproduction_metadata(settings, digest(self.fingerprints))
        with self.state.ema_weights():
            return replace(extract_lora(family), metadata=metadata)

    def write_into_run(self, step: int) -> Path:
        """Write the adapter into the run's folder, named by its step; return the path."""
        name = f"{self.settings.name}-step-{step:06}"
        return write_lora(self.lora(name, step), self.run.lora_file(name))

    def publish(self, step: int) -> Generator[Event, None, str]:
        """Write the LoRA into the run's folder and, under a name that is free, where prompts find
        it; return that path. A full disk is waited for."""
        wish = self.settings.name
        make = partial(self.lora, step=step)
        write = partial(publish_lora, make, wish, self.run.path, self.loras)
        path = yield from self.disk.written(write, 2 * self.state.lora_bytes, wait=True)
        if path.stem != wish:
            message = Message(
                "there is a LoRA named {wish} already, so this one is {name}",
                wish=wish, name=path.stem,
            )  # fmt: skip
            yield Warned(message, Message("use it as <lora:{name}:0.8>", name=path.stem))
        yield Saved(str(path), step)
        return str(path)
