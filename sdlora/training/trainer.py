"""A training under way: what a step brings, what is due after it, what is kept of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from sdlora.adapters import extract_lora, trainable_report
from sdlora.errors import DataError, SdloraError
from sdlora.eta import Pace
from sdlora.events import Checkpoint, Event, Progress, Resumed, Saved, Started, Step, Warned
from sdlora.jobs.control_files import Request, answered, asked
from sdlora.lora.format.file import LoraFile, write_lora
from sdlora.lora.format.metadata import TrainingFacts, count_tags, training_metadata
from sdlora.lora.format.training_metadata import recipe_metadata, versions
from sdlora.messages import Message, Setting
from sdlora.models.base import Family
from sdlora.settings.cadence import is_due
from sdlora.settings.train import TrainSettings
from sdlora.training import checkpoints
from sdlora.training.checkpoints import publish_lora
from sdlora.training.dataset_fingerprint import Prints, changes, digest
from sdlora.training.disk_space import DiskSpace
from sdlora.training.latent_dataset import LatentDataset
from sdlora.training.loss_log import LossLog, LossReading
from sdlora.training.optim import unused
from sdlora.training.out_of_memory import making_do
from sdlora.training.sample_images import draw_samples, prompts_from
from sdlora.training.train_state import TrainState
from sdlora.training.validation import BaseLossCheck, Validation
from sdlora.workspace import Workspace

READ_EVERY = 5  # steps; to read a loss is to wait for the device


@dataclass
class Trainer:
    """A training under way: an open model, the adapter that learns, what it learns from."""

    settings: TrainSettings
    workspace: Workspace
    folder: Path
    family: Family
    dataset: LatentDataset
    validation: Validation
    prints: Prints
    validation_prints: Prints  # of pictures that are in a folder of their own
    trigger: str
    chosen: Mapping[str, str]  # what was chosen for the user, and why

    def __post_init__(self) -> None:
        settings, family = self.settings, self.family
        self.step = 0  # the last that was taken
        self.learner = TrainState(family, self.dataset, settings)
        self.ledger = LossLog(half_bits=self.learner.scaler.is_enabled())
        self.pace = Pace(settings.steps, settings.sample_every)
        self.health = BaseLossCheck(family, self.dataset, settings)
        self.room = DiskSpace(self.folder, self.workspace.cache)
        self.started_at = time.time()
        self.wishes: set[Request] = set()  # what somebody asked for before this step
        self.looked_up = 0  # the step after which all that was due was done
        self.saved_step = -1  # of the newest checkpoint; -1: none yet
        self.not_saved = 0  # checkpoints since then that the disk did not take
        self.good = 0, self.learner.state()  # to go back to when the numbers go wrong

    @property
    def is_over(self) -> bool:
        """Whether there is nothing more to learn."""
        return self.step >= self.settings.steps or self.validation.patience_is_over

    def begin(self, begun: checkpoints.SavedState | None) -> Iterator[Event]:
        """Before the first step of this process: known is what a checkpoint says, or nothing; that
        the largest batch fits into memory; what the base model makes of the pictures held out."""
        if self.family.device.type != "cpu":  # there nobody says that memory is short
            yield Progress("trying a step of the largest size")
            yield from self.rehearse()
        yield Progress("measuring the base model")
        yield from self.validation.see_base()
        if begun:
            self.restore(begun)
            yield from self.compare(begun)
        else:
            self.health.see_base()
        yield self.started()
        sizes = self.learner.checkpoint_bytes, self.learner.lora_bytes
        yield from self.room.check(self.settings, self.step, *sizes)
        if self.step == 0 and self.validation.wanted:
            yield Progress("validating")
            yield from self.validation.measure(0)
        yield Progress("taking the first step")

    def started(self) -> Started:
        """What a user wants to know before the first step."""
        details = {
            "pictures": self.dataset.summary(),
            "trigger word": self.trigger or "none; the captions begin with nothing in common",
            "learning": str(trainable_report(self.family)),
            "model": self.family.title,
            **self.chosen,
            **{name.replace("_", " "): why for name, why in unused(self.settings).items()},
            "seed": str(self.settings.seed),
        }
        if held_out := self.validation.held_out:
            details["held out"] = held_out.summary()
        return Started(f"training {self.settings.name}", self.settings.steps, details)

    def rehearse(self) -> Iterator[Event]:
        """Take the step that needs the most memory, and forget it again."""
        begun, largest = self.learner.state(), self.dataset.largest_step()
        yield from making_do(self, lambda: self.learner.learn(largest))
        self.learner.restore(begun)

    def use(self, settings: TrainSettings) -> None:
        """Go on with settings that need less memory."""
        self.settings = settings
        self.learner.use(settings)

    def learn(self) -> Iterator[Event]:
        """One step, and how far it is; with the mean loss since the last reading, if it reads."""
        self.wishes = {wish for wish in ("sample", "save") if asked(self.folder, wish)}
        learnt = yield from making_do(self, lambda: self.learner.learn(self.step + 1))
        self.step += 1
        self.ledger.unread.append(learnt)
        loss = None
        if self.reads:
            reading = self.ledger.read()
            loss = reading.loss
            self.pace.stepped(self.step)
            if (yield from self.judge(reading)):
                return
        left = self.pace.seconds_left(self.step)
        yield Step(self.step, self.settings.steps, loss, self.learner.rate, left)

    @property
    def reads(self) -> bool:
        """Whether the device is asked for its numbers after this step."""
        due = self.samples_now or self.validates_now or self.saves_now
        return due or self.step in (1, self.settings.steps) or self.step % READ_EVERY == 0

    @property
    def samples_now(self) -> bool:
        """Whether pictures are drawn after this step."""
        return self.is_due(self.settings.sample_every) or "sample" in self.wishes

    @property
    def validates_now(self) -> bool:
        """Whether figures are taken after this step."""
        return self.validation.wanted and self.is_due(self.settings.validate_every)

    @property
    def saves_now(self) -> bool:
        """Whether a checkpoint is written after this step. Not of its own accord shortly after a
        step was left out: one must be able to go back to before things went wrong."""
        return "save" in self.wishes or (
            self.is_due(self.settings.save_every) and not self.ledger.suspicious(self.step)
        )

    def is_due(self, every: int | None) -> bool:
        """Whether something that happens every so many steps happens now."""
        return is_due(self.step, every, self.settings.steps)

    def judge(self, reading: LossReading) -> Generator[Event, None, bool]:
        """Tell of the steps that were left out; when it diverges, go back and go slower, which is
        true then, and when that was tried already, give up."""
        yield from reading.warnings()
        why = self.ledger.diverged(self.step) or self.unwell()
        if not why:
            return False
        if self.learner.rate_factor < 1:
            raise self.give_up(reading, why)
        at, (self.step, state) = self.step, self.good
        self.learner.restore(state)
        self.learner.rate_factor *= 0.5
        self.ledger.go_back()
        self.looked_up = self.step
        self.pace.go_on(self.step)
        yield Resumed(self.step)
        yield Warned(
            Message(
                "it diverges at step {at}, {why}: back to step {step}, from where it goes on at "
                "half the learning rate",
                at=at,
                why=why,
                step=self.step,
            ),
            "if that does not help either, the training ends",
        )
        return True

    def unwell(self) -> str:
        """What is wrong with what was learnt, where that is worth a look: when it is to be kept, or
        the loss climbs; '' where nothing is."""
        kept = self.saves_now or self.validates_now or self.step == self.settings.steps
        return self.health.complaint() if self.ledger.climbs() or kept else ""

    def give_up(self, reading: LossReading, why: str) -> DataError:
        """Keep what there is in the run's folder, and say why it ends."""
        name = f"{self.settings.name}-step-{self.step:06}"
        path = write_lora(self.lora(name), self.folder / "lora" / f"{name}.safetensors")
        return reading.diverged(self.step, why, path)

    def look_up(self, should_stop: Callable[[], bool]) -> Iterator[Event]:
        """What is due after this step, beside learning: samples, figures, a checkpoint."""
        if self.step == self.looked_up:  # it went back to there
            return
        answered(self.folder, *self.wishes)
        if self.samples_now:
            yield from self.sample(should_stop)
        if self.validates_now:
            yield from self.measure()
        if self.saves_now or (self.validates_now and self.validation.figures[-1].best):
            yield from self.save()
        self.looked_up = self.step

    def sample(self, should_stop: Callable[[], bool]) -> Iterator[Event]:
        """Draw what has been learnt so far."""
        prompts = prompts_from(self.settings.sample_prompts, self.dataset.captions)
        folder, seed = self.folder / "samples", self.settings.seed

        def ends() -> bool:
            return should_stop() or asked(self.folder, "pause")

        with self.learner.as_kept():
            yield from draw_samples(self.family, prompts, seed, self.step, folder, ends)
        self.pace.sampled()

    def measure(self) -> Iterator[Event]:
        """Take the figures of the adapter as it is now."""
        yield Progress("validating")
        with self.learner.as_kept():
            yield from self.validation.measure(self.step)
        if alarm := self.validation.alarm():
            yield alarm
        if self.validation.patience_is_over:
            said = Message(
                "{count} validations without a new best: it ends here", count=self.settings.patience
            )
            yield Warned(said, "what is kept is the best checkpoint")
        self.pace.sampled()

    def save(self, wait: bool = False) -> Iterator[Event]:
        """Write a checkpoint; one that the disk does not take is said, and the next is tried. Where
        the disk is full, it may `wait` for room instead."""
        if self.step == self.saved_step:
            return
        yield from self.ledger.read().warnings()
        state, name = self.learner.state(), f"{self.settings.name}-step-{self.step:06}"
        facts = {
            "settings": self.settings.model_dump(mode="json"),
            "versions": versions(),
            "pictures": self.prints,
            "validation_pictures": self.validation_prints,
            "ledger": self.ledger.state(),
            "validation": self.validation.state(),
            "base_loss": self.health.base,
        }
        told = self.folder, self.step, name, self.lora(name), state, facts
        write = partial(checkpoints.write_checkpoint, *told)
        try:
            path = yield from self.room.written(write, self.learner.checkpoint_bytes, wait)
        except (OSError, SdloraError) as error:
            self.not_saved += 1
            if self.not_saved == 1 or wait:  # those between say nothing new
                advice = "training goes on, and tries every checkpoint that is due"
                said = Message("no checkpoint of step {step}: {why}", step=self.step, why=error)
                yield Warned(said, advice)
            return
        self.not_saved = 0
        self.good, self.saved_step = (self.step, state), self.step
        yield Checkpoint(str(path), self.step)
        yield from self.prune()

    def prune(self) -> Iterator[Event]:
        """Take away the checkpoints that shall not be kept."""
        best, keep = self.validation.best, self.settings.keep_checkpoints
        try:
            checkpoints.prune(self.folder, keep, lambda step: bool(best and step == best.step))
        except OSError as error:
            said = Message("an old checkpoint could not be taken away: {why}", why=error)
            yield Warned(said, "training goes on")

    def restore(self, begun: checkpoints.SavedState) -> None:
        """Know what a checkpoint knows."""
        state = begun.state()
        self.learner.restore(state)
        self.ledger.restore(begun.facts["ledger"])
        self.validation.restore(begun.facts["validation"])
        self.health.base = begun.facts.get("base_loss")  # older ones do not say
        self.step = self.looked_up = self.saved_step = begun.step
        self.good = begun.step, state
        self.pace.go_on(begun.step)

    def compare(self, begun: checkpoints.SavedState) -> Iterator[Event]:
        """Tell whether it is measured on the same pictures as before; on others it begins anew."""
        then = begun.facts.get("validation_pictures", self.validation_prints)  # older ones say none
        if said := changes(then, self.validation_prints):
            self.validation.restore({"figures": [], "alarmed": False})
            yield Warned(
                Message(
                    "the pictures of {setting} are not those of before; {changes}. Losses on them "
                    "up to step {step} cannot be compared with those to come",
                    setting=Setting("validation_data"), changes=said, step=begun.step,
                ),
                "best and patience begin anew",
            )  # fmt: skip

    def lora(self, name: str) -> LoraFile:
        """The adapter as it is now, with all that other programs like to know of it."""
        facts = TrainingFacts(
            base=self.family.name,
            prediction=self.family.noise.prediction,
            resolution=self.settings.resolution or self.family.resolution,
            images=len(self.dataset.items),
            steps=self.step,
            trigger_word=self.trigger,
            tag_frequency=count_tags(self.dataset.captions),
            started_at=self.started_at,
            finished_at=time.time(),
        )
        named = self.settings.model_copy(update={"name": name})
        said = training_metadata(named, facts)
        said |= recipe_metadata(self.settings, digest(self.prints))
        with self.learner.as_kept():
            return replace(extract_lora(self.family), metadata=said)

    def keep(self, early: bool = False) -> Generator[Event, None, str]:
        """Write the LoRA into the run's folder and, under a name that is free, where prompts find
        it; returns that path. What ends `early` can go on later. A full disk is waited for."""
        yield from self.ledger.read().warnings()
        if early:
            yield from self.save(wait=True)
        best = self.validation.best
        if self.validation.patience_is_over and best and best.step:
            path = checkpoints.checkpoint_path(self.folder, best.step)
            self.restore(checkpoints.read_checkpoint(path))
        wish = self.settings.name
        publish = partial(publish_lora, self.lora, wish, self.folder, self.workspace.loras)
        path = yield from self.room.written(publish, 2 * self.learner.lora_bytes, wait=True)
        if path.stem != wish:
            said = Message(
                "there is a LoRA named {wish} already, so this one is {name}",
                wish=wish, name=path.stem,
            )  # fmt: skip
            yield Warned(said, Message("use it as <lora:{name}:0.8>", name=path.stem))
        yield Saved(str(path), self.step)
        return str(path)
