"""What a training would do with its pictures, before it starts: every one with its bucket, cut and
caption, all that is wrong, and how long it goes on. No torch; the list is the training's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sdlora.data.buckets import Bucket, BucketCrop, assign_buckets, cut_of
from sdlora.data.caption_augmentation import CaptionAugmenter, WordLists
from sdlora.data.dataset import gather
from sdlora.data.folder import MASK_MARK, Example, Problem
from sdlora.data.validation_split import divide
from sdlora.errors import ModelError
from sdlora.lora.format.metadata import count_tags
from sdlora.messages import Message, Setting
from sdlora.prompt.chunks import Tokenize, Unit, chunked
from sdlora.prompt.tokenizer import open_tokenizer
from sdlora.settings.cadence import in_steps
from sdlora.settings.train import TrainSettings
from sdlora.text_files import json_value
from sdlora.workspace import Workspace

UNKNOWN_PX = 512  # the resolution of a model that is not here yet
# A word that is one token, among this share of the vocabulary, is common: byte pairs are merged the
# most frequent first (Sennrich et al. 2016, arXiv:1508.07909), and numbered in that order.
COMMON_SHARE = 0.6


@dataclass(frozen=True)
class CaptionRow:
    """A picture as the training will see it. `caption` is what is read when nothing is drawn, and
    `drawn` is how else it may be worded; `tokens` is None when the model is not here."""

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
        """The row for programs."""
        its = self.example
        return {
            "picture": str(its.image), "size": its.size, "bucket": self.bucket,
            "cut": [round(part, 1) for part in self.cut[:4]], "scale": round(self.cut.scale, 4),
            "caption": self.caption, "drawn": self.drawn, "tokens": self.tokens,
            "chunks": self.chunks,
            "repeats": its.repeats, "regularisation": its.regularisation,
            "mask": str(its.mask) if its.mask else None, "sha256": its.digest,
            "held_out": self.held_out,
            "problems": [{"file": str(p.path), **_as_json(p)} for p in self.problems],
        }  # fmt: skip


@dataclass(frozen=True)
class Preflight:
    """All rows in the order of the training, `others`: problems of files that are no row, and
    `general` ones of the set as a whole."""

    settings: TrainSettings
    rows: tuple[CaptionRow, ...]
    others: tuple[Problem, ...]
    general: tuple[Problem, ...]
    trigger: str
    resolution: int
    lists: WordLists

    @cached_property
    def buckets(self) -> dict[Bucket, int]:
        """How many pictures are trained at which size, repeats not counted."""
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
        """How often every picture is seen, per repeat."""
        return self.settings.steps / self.steps_per_round

    @property
    def tags(self) -> dict[str, int]:
        """How many captions have which tag, the most frequent first."""
        return count_tags(row.caption for row in self.learnt if not row.example.regularisation)

    @property
    def as_json(self) -> dict[str, Any]:
        """All but the rows, for programs."""
        return {
            "pictures": len(self.rows), "trigger": self.trigger, "resolution": self.resolution,
            "buckets": [[*bucket, count] for bucket, count in self.buckets.items()],
            "steps": self.settings.steps, "steps_per_round": self.steps_per_round,
            "rounds": round(self.rounds, 2), "tags": self.tags,
            "left_out": [{"file": str(p.path), **_as_json(p)} for p in self.others],
            "problems": [{"file": str(p.path), **_as_json(p)} for p in self.general],
        }  # fmt: skip


def _as_json(problem: Problem) -> dict[str, str]:
    return {"what": problem.what, "advice": problem.advice}


def check(settings: TrainSettings, workspace: Workspace) -> Preflight:
    """Look at all that a training with these settings, presets included, would start from.
    DataError: it would not start."""
    model = _Model(Path(workspace.model_source(settings.model)))
    gathered = gather(settings, workspace)
    resolution = settings.resolution or model.resolution
    assigned, resized = assign_buckets(gathered.examples, resolution, settings.upscale)
    buckets = {id(example): bucket for bucket, some in assigned.items() for example in some}
    problems = _by_picture(gathered.examples, [*gathered.problems, *resized])
    split = divide(gathered, settings, workspace)
    learnt = {id(example) for example in split.learnt}
    wording = CaptionAugmenter(settings, gathered.lists)
    rows = []
    for example in gathered.examples:
        bucket, own = buckets[id(example)], not example.regularisation
        caption = wording.plain(example.caption, own)
        drawn = wording.variants(example.caption, example.digest, own)
        wrong = problems.pop(example.image, [])
        cut, other = cut_of(example.size, bucket), tuple(dict.fromkeys(drawn))
        said = caption, other, *model.count(caption), tuple(wrong)
        rows.append(CaptionRow(example, bucket, cut, *said, held_out=id(example) not in learnt))
    general = [*model.problems, *_about_trigger(gathered.trigger, model, Path(settings.data))]
    general += split.problems
    others = tuple(problem for some in problems.values() for problem in some)
    found = gathered.trigger, resolution, gathered.lists
    report = Preflight(settings, tuple(rows), others, tuple(general), *found)
    return replace(report, settings=in_steps(settings, report.steps_per_round))


def _by_picture(
    examples: Iterable[Example], problems: Iterable[Problem]
) -> dict[Path, list[Problem]]:
    """Problems by the picture they are about, those of its caption among them; by their own file
    where it belongs to no picture."""
    images = [example.image for example in examples]
    owners = {image.with_suffix(""): image for image in images} | {image: image for image in images}
    found: dict[Path, list[Problem]] = {}
    for problem in problems:
        stem = problem.path.with_suffix("") if problem.path.name else problem.path
        plain = stem.with_name(stem.name.removesuffix(MASK_MARK)) if stem.name else stem
        about = owners.get(problem.path) or owners.get(plain) or problem.path
        found.setdefault(about, []).append(problem)
    return found


def _about_trigger(trigger: str, model: _Model, data: Path) -> list[Problem]:
    if not trigger:
        what = "has no trigger word: its captions begin with nothing in common"
        return [
            Problem(
                data,
                what,
                Message(
                    "choose one with {setting}, so that prompts can call it",
                    setting=Setting("trigger_word"),
                ),
            )
        ]
    if model.is_common(trigger):
        template = "has the trigger word {word!r}, which the model knows well already"
        what = Message(template, word=trigger)
        advice = "choose a word that means nothing yet, so that its own meaning stays as it is"
        return [Problem(data, what, advice)]
    return []


class _Model:
    """What a model's folder tells without being opened."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: list[Problem] = []
        self.resolution, self.tokenize = UNKNOWN_PX, None
        unet, vae = self._config("unet"), self._config("vae")
        try:
            self.resolution = int(unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1))
            self.tokenize = open_tokenizer(folder)
        except (KeyError, TypeError, ModelError):
            template = "is not on this computer: {size} pixels are taken, tokens not counted"
            what = Message(template, size=UNKNOWN_PX)
            self.problems.append(Problem(folder, what, "they are known once it is downloaded"))

    tokenize: Tokenize | None

    def count(self, caption: str) -> tuple[int | None, int]:
        """Tokens of a caption, marks not counted, and chunks that it is read in."""
        if self.tokenize is None:
            return None, 1
        return len(self.tokenize(caption)), len(chunked([(caption, 1.0)], self.tokenize))

    def is_common(self, trigger: str) -> bool:
        """Whether the trigger is one word that the model was told often."""
        units, words = self._units(trigger), self._config("text_encoder").get("vocab_size", 0)
        return len(units) == 1 and units[0].numbers[0] < COMMON_SHARE * words

    def _units(self, text: str) -> Sequence[Unit]:
        return self.tokenize(text) if self.tokenize else ()

    def _config(self, part: str) -> dict[str, Any]:
        try:
            said = json_value((self.folder / part / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return said if isinstance(said, dict) else {}
