"""Trainer: what a step brings, what is due after it, and what is kept of it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sdlora.adapters import trainable_report, why_uncompiled
from sdlora.errors import DataError, SdloraError
from sdlora.eta import Pace
from sdlora.events import Checkpoint, Event, Progress, Resumed, Started, Step, Warned
from sdlora.jobs.control_files import Request
from sdlora.lora.format.training_metadata import versions
from sdlora.messages import Message, Setting
from sdlora.models.base import ModelFamily
from sdlora.settings.cadence import is_due
from sdlora.settings.train import TrainSettings
from sdlora.training import checkpoints
from sdlora.training.checkpoints import RunFolder, SavedState
from sdlora.training.dataset_fingerprint import Prints, changes
from sdlora.training.disk_space import DiskSpace
from sdlora.training.latent_dataset import LatentDataset
from sdlora.training.lora_export import LoraExport
from sdlora.training.loss_log import LossLog, LossReading
from sdlora.training.optim import unused
from sdlora.training.out_of_memory import retry_with_less_memory
from sdlora.training.sample_images import draw_samples, prompts_from
from sdlora.training.train_state import TrainState
from sdlora.training.validation import BaseLossCheck, Validation
from sdlora.workspace import Workspace

READ_EVERY = 5  # steps; to read a loss is to wait for the device


@dataclass(kw_only=True)
class Trainer:
    """A training in progress: an open model, the adapter that is trained, its pictures.

    Decides when something is due; `state` holds the numbers, `run` the paths, `export` writes the
    LoRA.
    """

    settings: TrainSettings
    workspace: Workspace
    folder: Path
    family: ModelFamily
    dataset: LatentDataset
    validation: Validation
    fingerprints: Prints
    validation_fingerprints: Prints  # of pictures that are in a folder of their own
    trigger: str
    auto_choices: Mapping[str, str]  # made for the user, with the reasons

    def __post_init__(self) -> None:
        settings, family = self.settings, self.family
        self.step = 0  # the last that was taken
        self.run = RunFolder(self.folder)
        self.state = TrainState(family, self.dataset, settings)
        self.loss_log = LossLog(half_bits=self.state.scaler.is_enabled())
        self.pace = Pace(settings.steps, settings.sample_every)
        self.base_loss = BaseLossCheck(family, self.dataset, settings)
        self.disk = DiskSpace(self.folder, self.workspace.cache)
        self.export = LoraExport(
            settings=settings, state=self.state, run=self.run, loras=self.workspace.loras,
            disk=self.disk, fingerprints=self.fingerprints, trigger=self.trigger,
        )  # fmt: skip
        self.pending_requests: set[Request] = set()  # asked for before this step
        self.handled_step = 0  # the step after which all that was due was done
        self.saved_step = -1  # of the newest checkpoint; -1: none yet
        self.failed_saves = 0  # checkpoints since then that the disk did not take
        self.last_good = 0, self.state.state_dict()  # to go back to when the training diverges

    # Before the first step

    def begin(self, saved: SavedState | None) -> Iterator[Event]:
        """Prepare the first step of this process: load the checkpoint, if there is one; check that
        the largest batch fits into memory; measure the base model."""
        if self.family.device.type != "cpu":  # there nobody says that memory is short
            yield Progress("trying a step of the largest size")
            yield from self.warm_up_memory()
        yield Progress("measuring the base model")
        yield from self.validation.measure_base()
        if saved:
            self.load(saved)
            yield from self.compare_validation(saved)
        else:
            self.base_loss.measure_base()
        yield self.started()
        yield from self.disk.check(
            self.settings, self.step, self.state.checkpoint_bytes, self.state.lora_bytes
        )
        if self.step == 0 and self.validation.is_wanted:
            yield Progress("validating")
            yield from self.validation.measure(0)
        yield Progress("taking the first step")

    def started(self) -> Started:
        """Return what a user wants to know before the first step."""
        details = {
            "pictures": self.dataset.summary(),
            "trigger word": self.trigger or "none; the captions begin with nothing in common",
            "learning": str(trainable_report(self.family)),
            **self.family.details,
            **self.auto_choices,
            **{name.replace("_", " "): why for name, why in unused(self.settings).items()},
            "seed": str(self.settings.seed),
        }
        if self.settings.compile_blocks and (why := why_uncompiled(self.family.device)):
            details["compile blocks"] = why
        if held_out := self.validation.held_out:
            details["validation pictures"] = held_out.summary()
        return Started(f"training {self.settings.name}", self.settings.steps, details)

    def warm_up_memory(self) -> Iterator[Event]:
        """Take the step that needs the most memory, and undo it."""
        before, largest = self.state.state_dict(), self.dataset.largest_step()
        yield from retry_with_less_memory(self, lambda: self.state.train_step(largest))
        self.state.load_state_dict(before)

    def apply_settings(self, settings: TrainSettings) -> None:
        """Go on with settings that need less memory."""
        self.settings = self.export.settings = settings
        self.state.apply_settings(settings)

    # Steps

    @property
    def is_over(self) -> bool:
        """True when there is nothing more to learn."""
        return self.step >= self.settings.steps or self.validation.patience_is_over

    def train_step(self) -> Iterator[Event]:
        """Take one step and tell how far it is; with the mean loss since the last reading, if this
        step reads it."""
        self.pending_requests = self.run.requested("sample", "save")
        self.handled_step = self.step
        result = yield from retry_with_less_memory(
            self, lambda: self.state.train_step(self.step + 1)
        )
        self.step += 1
        self.loss_log.unread.append(result)
        loss = None
        if self.reads_loss:
            reading = self.loss_log.read()
            loss = reading.loss
            self.pace.stepped(self.step)
            if (yield from self.check_divergence(reading)):
                return
        left = self.pace.seconds_left(self.step)
        yield Step(self.step, self.settings.steps, loss, self.state.learning_rate, left)
        self.run.acknowledge(self.pending_requests)

    @property
    def reads_loss(self) -> bool:
        """True when the device is asked for its numbers after this step."""
        due = self.samples_due or self.validation_due or self._checkpoint_due
        return due or self.step in (1, self.settings.steps) or self.step % READ_EVERY == 0

    @property
    def samples_due(self) -> bool:
        """True when pictures are drawn after this step."""
        return self._due(self.settings.sample_every) or self._requested("sample")

    @property
    def validation_due(self) -> bool:
        """True when losses are measured after this step."""
        return self.validation.is_wanted and self._due(self.settings.validate_every)

    @property
    def save_due(self) -> bool:
        """True when a checkpoint is written after this step: also after a new best validation."""
        is_best = self.validation_due and self.validation.figures[-1].best
        return self._checkpoint_due or is_best

    @property
    def _checkpoint_due(self) -> bool:
        # not of its own accord shortly after a step was skipped: it must be possible to go back to
        # before things went wrong
        return self._requested("save") or (
            self._due(self.settings.save_every)
            and not self.loss_log.skipped_shortly_before(self.step)
        )

    def _requested(self, request: Request) -> bool:
        return self.step != self.handled_step and request in self.pending_requests

    def _due(self, every: int | None) -> bool:
        """Return True when something that happens every so many steps happens now."""
        return self.step != self.handled_step and is_due(self.step, every, self.settings.steps)

    # Divergence

    def check_divergence(self, reading: LossReading) -> Generator[Event, None, bool]:
        """Warn of the steps that were skipped; when the training diverges, go back and go slower,
        and return True. DataError: that was tried already."""
        yield from reading.warnings()
        reason = self.loss_log.divergence_reason(self.step) or self.divergence_reason()
        if not reason:
            return False
        if self.state.lr_factor < 1:
            raise self.divergence_error(reading, reason)
        at, (self.step, state) = self.step, self.last_good
        self.state.load_state_dict(state)
        self.state.lr_factor *= 0.5
        self.loss_log.go_back()
        self.handled_step = self.step
        self.pace.resume_from(self.step)
        yield Resumed(self.step)
        yield Warned(
            Message(
                "it diverges at step {at}, {why}: back to step {step}, from where it goes on at "
                "half the learning rate",
                at=at, why=reason, step=self.step,
            ),
            "if that does not help either, the training ends",
        )  # fmt: skip
        return True

    def divergence_reason(self) -> str:
        """Return what is wrong with the adapter, where that is worth a look: when it is to be kept,
        or the loss climbs; '' where nothing is."""
        saved = self._checkpoint_due or self.validation_due or self.step == self.settings.steps
        return self.base_loss.complaint() if self.loss_log.climbs() or saved else ""

    def divergence_error(self, reading: LossReading, reason: str) -> DataError:
        """Keep what there is in the run's folder, and return the error that ends the training."""
        return reading.diverged(self.step, reason, self.export.write_into_run(self.step))

    # What is due

    def sample(self, should_stop: Callable[[], bool]) -> Iterator[Event]:
        """Draw what has been learnt so far."""
        prompts = prompts_from(self.settings.sample_prompts, self.dataset.captions)
        seed = self.settings.seed

        def ends() -> bool:
            return should_stop() or self.run.is_requested("pause")

        with self.state.ema_weights():
            yield from draw_samples(
                self.family, prompts, seed, self.step, self.run.samples, should_stop=ends
            )
        self.pace.sampled()

    def validate(self) -> Iterator[Event]:
        """Measure the adapter as it is now."""
        yield Progress("validating")
        with self.state.ema_weights():
            yield from self.validation.measure(self.step)
        if alarm := self.validation.alarm():
            yield alarm
        if self.validation.patience_is_over:
            message = Message(
                "{count} validations without a new best: it ends here", count=self.settings.patience
            )
            yield Warned(message, "what is kept is the best checkpoint")
        self.pace.sampled()

    def save(self, wait: bool = False) -> Iterator[Event]:
        """Write a checkpoint; of one that the disk does not take it is warned, and the next is
        tried. Where the disk is full, it may `wait` for room instead."""
        if self.step == self.saved_step:
            return
        yield from self.loss_log.read().warnings()
        state, name = self.state.state_dict(), f"{self.settings.name}-step-{self.step:06}"
        lora = self.export.lora(name, self.step)
        write = partial(
            checkpoints.write_checkpoint, self.folder, self.step, name,
            lora=lora, state=state, facts=self._facts(),
        )  # fmt: skip
        try:
            path = yield from self.disk.written(write, self.state.checkpoint_bytes, wait)
        except (OSError, SdloraError) as error:
            self.failed_saves += 1
            if self.failed_saves == 1 or wait:  # those between say nothing new
                advice = "training goes on, and tries every checkpoint that is due"
                message = Message("no checkpoint of step {step}: {why}", step=self.step, why=error)
                yield Warned(message, advice)
            return
        self.failed_saves = 0
        self.last_good, self.saved_step = (self.step, state), self.step
        yield Checkpoint(str(path), self.step)
        yield from self._prune()

    def _facts(self) -> dict[str, object]:
        """Return what a checkpoint says beside its numbers."""
        return {
            "settings": self.settings.model_dump(mode="json"),
            "versions": versions(),
            "pictures": self.fingerprints,
            "validation_pictures": self.validation_fingerprints,
            "ledger": self.loss_log.state_dict(),
            "validation": self.validation.state_dict(),
            "base_loss": self.base_loss.base,
        }

    def _prune(self) -> Iterator[Event]:
        """Delete the checkpoints that shall not be kept."""
        best, keep = self.validation.best, self.settings.keep_checkpoints
        try:
            checkpoints.prune(self.folder, keep, lambda step: bool(best and step == best.step))
        except OSError as error:
            message = Message("an old checkpoint could not be taken away: {why}", why=error)
            yield Warned(message, "training goes on")

    # Checkpoints and the end

    def load(self, saved: SavedState) -> None:
        """Go on from a checkpoint."""
        state = saved.state()
        self.state.load_state_dict(state)
        self.loss_log.load_state_dict(saved.facts["ledger"])
        self.validation.load_state_dict(saved.facts["validation"])
        self.base_loss.base = saved.facts.get("base_loss")  # older ones do not say
        self.step = self.handled_step = self.saved_step = saved.step
        self.last_good = saved.step, state
        self.pace.resume_from(saved.step)

    def compare_validation(self, saved: SavedState) -> Iterator[Event]:
        """Warn when it is measured on other pictures than before; best and patience begin anew."""
        then = saved.facts.get("validation_pictures", self.validation_fingerprints)
        if differences := changes(then, self.validation_fingerprints):  # older ones say none
            self.validation.load_state_dict({"figures": [], "alarmed": False})
            yield Warned(
                Message(
                    "the pictures of {setting} are not those of before; {changes}. Losses on them "
                    "up to step {step} cannot be compared with those to come",
                    setting=Setting("validation_data"), changes=differences, step=saved.step,
                ),
                "best and patience begin anew",
            )  # fmt: skip

    def finish(self, early: bool = False) -> Generator[Event, None, str]:
        """Publish the LoRA, of the best checkpoint where patience ended the training; return its
        path. What ends `early` can go on later, from a checkpoint of its last step."""
        yield from self.loss_log.read().warnings()
        if early:
            yield from self.save(wait=True)
        best = self.validation.best
        if self.validation.patience_is_over and best and best.step:
            self.load(checkpoints.read_checkpoint(self.run.checkpoint(best.step)))
        return (yield from self.export.publish(self.step))
