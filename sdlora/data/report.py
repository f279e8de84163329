"""Dataset report: every picture as a training would see it, with its bucket, crop and caption, all
problems, and the length of the training. No torch; the list is the training's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sdlora.data.buckets import Bucket, BucketCrop, assign_buckets, bucket_crop
from sdlora.data.caption_augmentation import CaptionAugmenter, WordLists
from sdlora.data.dataset import read_dataset
from sdlora.data.folder import MASK_MARK, Example, Problem
from sdlora.data.validation_split import split_dataset
from sdlora.errors import ModelError
from sdlora.lora.format.metadata import count_tags
from sdlora.messages import Message, Setting
from sdlora.models.registry import model_facts
from sdlora.prompt.chunks import Tokenize, Unit, chunked
from sdlora.prompt.tokenizer import open_tokenizer
from sdlora.settings.cadence import in_steps
from sdlora.settings.train import TrainSettings
from sdlora.workspace import Workspace

UNKNOWN_PX = 512  # the resolution of a model that is not here yet
# A word that is one token, among this share of the vocabulary, is common: byte pairs are merged the
# most frequent first (Sennrich et al. 2016, arXiv:1508.07909), and numbered in that order.
COMMON_SHARE = 0.6


@dataclass(frozen=True)
class CaptionRow:
    """A picture as the training will see it. `caption` is the text without augmentation, and
    `drawn` are its augmented texts; `tokens` is None when the model is not on this computer."""

    example: Example
    bucket: Bucket
    cut: BucketCrop
    caption: str
    drawn: tuple[str, ...]
    tokens: int | None
    chunks: int  # of at most 75 tokens, one beside the other, in which the caption is read
    problems: tuple[Problem, ...]
    held_out: bool = False  # to be validated with, and not learnt

    @property
    def length(self) -> str:
        """The caption's length in words; '' when it is not known."""
        if self.tokens is None:
            return ""
        return f"{self.tokens} tokens" + (f" in {self.chunks} chunks" if self.chunks > 1 else "")

    @property
    def as_json(self) -> dict[str, Any]:
        """Row as plain JSON types."""
        example = self.example
        return {
            "picture": str(example.image), "size": example.size, "bucket": self.bucket,
            "cut": [round(part, 1) for part in self.cut[:4]], "scale": round(self.cut.scale, 4),
            "caption": self.caption, "drawn": self.drawn, "tokens": self.tokens,
            "chunks": self.chunks,
            "repeats": example.repeats, "regularisation": example.regularisation,
            "mask": str(example.mask) if example.mask else None, "sha256": example.digest,
            "held_out": self.held_out,
            "problems": [{"file": str(p.path), **_as_json(p)} for p in self.problems],
        }  # fmt: skip


@dataclass(frozen=True)
class Preflight:
    """Report of a dataset: all rows in the order of the training, `others`: problems of files that
    are no row, and `general` ones of the set as a whole."""

    settings: TrainSettings
    rows: tuple[CaptionRow, ...]
    others: tuple[Problem, ...]
    general: tuple[Problem, ...]
    trigger: str
    resolution: int
    lists: WordLists

    @cached_property
    def buckets(self) -> dict[Bucket, int]:
        """Number of pictures per bucket, repeats not counted."""
        return dict(sorted(Counter(row.bucket for row in self.learnt).items()))

    @property
    def learnt(self) -> list[CaptionRow]:
        """The rows that are not held out."""
        return [row for row in self.rows if not row.held_out]

    @property
    def steps_per_round(self) -> int:
        """Optimizer steps in which every picture is seen once per repeat."""
        sizes: Counter[Bucket] = Counter()
        for row in self.learnt:
            sizes[row.bucket] += row.example.repeats
        size = self.settings.batch_size * self.settings.gradient_accumulation
        return sum(-(-count // size) for count in sizes.values())

    @property
    def rounds(self) -> float:
        """Number of times that every picture is seen, per repeat."""
        return self.settings.steps / self.steps_per_round

    @property
    def tags(self) -> dict[str, int]:
        """Number of captions per tag, the most frequent tag first."""
        return count_tags(row.caption for row in self.learnt if not row.example.regularisation)

    @property
    def as_json(self) -> dict[str, Any]:
        """Report without its rows, as plain JSON types."""
        return {
            "pictures": len(self.rows), "trigger": self.trigger, "resolution": self.resolution,
            "buckets": [[*bucket, count] for bucket, count in self.buckets.items()],
            "steps": self.settings.steps, "steps_per_round": self.steps_per_round,
            "rounds": round(self.rounds, 2), "tags": self.tags,
            "left_out": [{"file": str(p.path), **_as_json(p)} for p in self.others],
            "problems": [{"file": str(p.path), **_as_json(p)} for p in self.general],
        }  # fmt: skip


def _as_json(problem: Problem) -> dict[str, str]:
    return {"what": problem.message, "advice": problem.advice}


def check_dataset(settings: TrainSettings, workspace: Workspace) -> Preflight:
    """Return the report of the dataset of a training with these settings, presets included.
    DataError: the training would not start."""
    model = _Model(Path(workspace.model_source(settings.model)))
    dataset = read_dataset(settings, workspace)
    resolution = settings.resolution or model.resolution
    assigned, resized = assign_buckets(dataset.examples, resolution, settings.upscale)
    buckets = {id(example): bucket for bucket, group in assigned.items() for example in group}
    problems = _by_picture(dataset.examples, [*dataset.problems, *resized])
    split = split_dataset(dataset, settings, workspace)
    learnt = {id(example) for example in split.learnt}
    augmenter = CaptionAugmenter(settings, dataset.lists)
    rows = []
    for example in dataset.examples:
        caption = augmenter.plain(example.caption, not example.regularisation)
        drawn = augmenter.variants(example.caption, example.digest, not example.regularisation)
        bucket, (tokens, chunks) = buckets[id(example)], model.count(caption)
        row = CaptionRow(
            example, bucket, bucket_crop(example.size, bucket), caption,
            drawn=tuple(dict.fromkeys(drawn)), tokens=tokens, chunks=chunks,
            problems=tuple(problems.pop(example.image, ())),
            held_out=id(example) not in learnt,
        )  # fmt: skip
        rows.append(row)
    general = [*model.problems, *_about_trigger(dataset.trigger, model, Path(settings.data))]
    general += split.problems
    report = Preflight(
        settings=settings,
        rows=tuple(rows),
        others=tuple(problem for group in problems.values() for problem in group),
        general=tuple(general),
        trigger=dataset.trigger,
        resolution=resolution,
        lists=dataset.lists,
    )
    return replace(report, settings=in_steps(settings, report.steps_per_round))


def _by_picture(
    examples: Iterable[Example], problems: Iterable[Problem]
) -> dict[Path, list[Problem]]:
    """Return problems by the picture that they are about, those of its caption among them; by their
    own file where it belongs to no picture."""
    images = [example.image for example in examples]
    owners = {image.with_suffix(""): image for image in images} | {image: image for image in images}
    by_file: dict[Path, list[Problem]] = {}
    for problem in problems:
        stem = problem.path.with_suffix("") if problem.path.name else problem.path
        plain = stem.with_name(stem.name.removesuffix(MASK_MARK)) if stem.name else stem
        owner = owners.get(problem.path) or owners.get(plain) or problem.path
        by_file.setdefault(owner, []).append(problem)
    return by_file


def _about_trigger(trigger: str, model: _Model, data: Path) -> list[Problem]:
    if not trigger:
        message = "has no trigger word: its captions begin with nothing in common"
        return [
            Problem(
                data,
                message,
                Message(
                    "choose one with {setting}, so that prompts can call it",
                    setting=Setting("trigger_word"),
                ),
            )
        ]
    if model.is_common(trigger):
        template = "has the trigger word {word!r}, which the model knows well already"
        message = Message(template, word=trigger)
        advice = "choose a word that means nothing yet, so that its own meaning stays as it is"
        return [Problem(data, message, advice)]
    return []


class _Model:
    """Facts from a model folder's configuration files; the weights are not opened."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: list[Problem] = []
        self.resolution, self.vocabulary, self.tokenize = UNKNOWN_PX, 0, None
        try:
            facts = model_facts(folder)
            self.resolution, self.vocabulary = facts.resolution, facts.vocabulary
            self.tokenize = open_tokenizer(folder)
        except ModelError:
            template = "is not on this computer: {size} pixels are taken, tokens not counted"
            message = Message(template, size=UNKNOWN_PX)
            self.problems.append(Problem(folder, message, "they are known once it is downloaded"))

    tokenize: Tokenize | None

    def count(self, caption: str) -> tuple[int | None, int]:
        """Tokens of a caption, marks not counted, and chunks that it is read in."""
        if self.tokenize is None:
            return None, 1
        return len(self.tokenize(caption)), len(chunked([(caption, 1.0)], self.tokenize))

    def is_common(self, trigger: str) -> bool:
        """Return True if the trigger is one token, and a frequent one in the text that the
        tokenizer was made from."""
        units = self._units(trigger)
        return len(units) == 1 and units[0].numbers[0] < COMMON_SHARE * self.vocabulary

    def _units(self, text: str) -> Sequence[Unit]:
        return self.tokenize(text) if self.tokenize else ()
