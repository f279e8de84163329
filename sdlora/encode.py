"""Examples encoded once, batches ever after.

A picture passes the VAE once and a caption the text encoder once; both are kept in main memory.
Which of them a step sees depends on (seed, step) alone, so a run can begin at any step.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from sdlora.data.buckets import Bucket, assign_buckets, crop_sizes
from sdlora.data.folder import Example, Problem
from sdlora.data.images import BROKEN, load_pixels
from sdlora.device import generator_for
from sdlora.errors import DataError
from sdlora.events import Event, Progress
from sdlora.families.base import Family
from sdlora.settings import TrainSettings

Cond = Mapping[str, Tensor]


@dataclass(frozen=True)
class Batch:
    """Pictures of one size, as `Family.predict` wants them.

    latents (B,C,h,w); cond: batch is dim 0 of every value, empty while captions are still words;
    sizes (B,6): original height and width, top and left of the cut, height and width.
    weights (B,): of each picture's loss; None: all 1. mask (B,1,h,w), 0..1: the weight of the loss
    at each latent cell; None: 1 everywhere.
    """

    latents: Tensor
    cond: Cond
    sizes: Tensor
    captions: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    weights: Tensor | None = None
    mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, rows: slice) -> Batch:
        """Some of the rows."""
        some = self._mapped(lambda x: x[rows])
        return replace(some, captions=self.captions[rows], names=self.names[rows])

    def to(self, device: torch.device) -> Batch:
        """The same on `device`, copied without waiting for it."""
        return self._mapped(lambda x: x.to(device, non_blocking=True))

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            latents=change(self.latents),
            cond={name: change(value) for name, value in self.cond.items()},
            sizes=change(self.sizes),
            weights=None if self.weights is None else change(self.weights),
            mask=None if self.mask is None else change(self.mask),
        )


@dataclass(frozen=True)
class Item:
    """One encoded picture: `views` (1 or 2,C,h,w) are it and, if asked for, its mirror image."""

    example: Example
    views: Tensor
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Dataset:
    """All that a training looks at, on the CPU. `groups` are indices of items of the same size, as
    often as they repeat; `texts` is empty when the text encoder learns, for then they change."""

    items: Sequence[Item]
    groups: tuple[tuple[int, ...], ...]
    texts: Mapping[str, Cond]
    settings: TrainSettings

    @property
    def captions(self) -> list[str]:
        """One per picture, in the order of the pictures."""
        return [item.example.caption for item in self.items]

    def summary(self) -> str:
        """How many pictures of which sizes."""
        sizes = sorted({(width, height) for *_, height, width in (i.sizes for i in self.items)})
        said = ", ".join(f"{width} x {height}" for width, height in sizes)
        return f"{len(self.items)} of {said} pixels"

    @property
    def steps_per_round(self) -> int:
        """Optimizer steps in which every picture is seen once per repeat."""
        size = self.settings.batch_size * self.settings.gradient_accumulation
        return sum(-(-len(group) // size) for group in self.groups)

    def largest_step(self) -> int:
        """The step of the first round that needs the most memory: the most latent cells."""
        settings = self.settings
        size = settings.batch_size * settings.gradient_accumulation
        rows = _order(self.groups, size, settings.seed, 0)
        cells = [len(row) * self.items[row[0]].views[0].numel() for row in rows]
        return cells.index(max(cells)) + 1

    def batch(self, step: int) -> Batch:
        """The pictures of optimizer step `step` = 1, 2, ...: of one size, the last few of a round
        included, `batch_size * gradient_accumulation` at most."""
        settings = self.settings
        size = settings.batch_size * settings.gradient_accumulation
        rounds, place = divmod(step - 1, self.steps_per_round)
        chosen = _order(self.groups, size, settings.seed, rounds)[place]
        items = [self.items[index] for index in chosen]

        luck = torch.rand(2, len(items), generator=generator_for(settings.seed, step, "choice"))
        dropped, mirrored = luck[0] < settings.caption_dropout, luck[1] < 0.5
        captions = [
            "" if drop else item.example.caption for drop, item in zip(dropped, items, strict=True)
        ]
        views = [
            item.views[int(turn) % len(item.views)]
            for turn, item in zip(mirrored, items, strict=True)
        ]
        return Batch(
            latents=torch.stack(views),
            cond=_joined([self.texts[caption] for caption in captions if self.texts]),
            sizes=torch.tensor([item.sizes for item in items]),
            captions=tuple(captions),
            names=tuple(item.example.image.name for item in items),
        )


@lru_cache(maxsize=4)
def _order(
    groups: tuple[tuple[int, ...], ...], size: int, seed: int, rounds: int
) -> list[tuple[int, ...]]:
    """The batches of one round through the pictures, each picture once per repeat."""
    rng = generator_for(seed, rounds, "order")
    batches: list[tuple[int, ...]] = []
    for group in groups:
        shuffled = [group[i] for i in torch.randperm(len(group), generator=rng).tolist()]
        batches += [tuple(shuffled[i : i + size]) for i in range(0, len(shuffled), size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=rng).tolist()]


def encode_dataset(
    family: Family, examples: Sequence[Example], settings: TrainSettings
) -> Generator[Event, None, Dataset]:
    """Encode every picture and caption, saying how far it is; returns what batches are made of.
    DataError: a picture vanished since it was found, or the VAE overflows on it."""
    assigned, problems = assign_buckets(examples, settings.resolution or family.resolution)
    yield from (problem.warned() for problem in problems)
    items: list[Item] = []
    groups: list[tuple[int, ...]] = []
    for bucket, some in assigned.items():
        group: list[int] = []
        for example in some:
            group += [len(items)] * example.repeats
            items.append(_encode_picture(family, example, bucket, settings.flip))
            yield Progress("encoding pictures", len(items), len(examples))
        groups.append(tuple(group))

    for example in examples:
        if unread := family.cut_text(example.caption):
            what = f"has a caption of more than 77 tokens; {unread!r} at its end is not read"
            yield Problem(example.image, what, "shorten it").warned()
    texts: dict[str, Cond] = {}
    captions = sorted({"", *(example.caption for example in examples)})
    for caption in captions if not settings.train_text_encoder else ():
        texts[caption] = _encode_caption(family, caption)
        yield Progress("encoding captions", len(texts), len(captions))
    return Dataset(items, tuple(groups), texts, settings)


@torch.no_grad()
def _encode_picture(family: Family, example: Example, bucket: Bucket, flip: bool) -> Item:
    try:
        pixels = load_pixels(example.image, bucket)
    except BROKEN as error:
        raise DataError(f"{example.image} changed while it was read: {error}") from None
    views = torch.stack([pixels, pixels.flip(-1)] if flip else [pixels])
    latents = family.encode_images(views.to(family.device)).float().cpu()
    if not latents.isfinite().all():
        raise DataError(
            f"{example.image.name} cannot be encoded: the model's picture encoder overflows in "
            f"{family.dtype}. Train with precision fp32 or bf16"
        )
    return Item(example, latents, crop_sizes(example.size, bucket))


@torch.no_grad()
def _encode_caption(family: Family, caption: str) -> Cond:
    return {name: value.cpu() for name, value in family.encode_prompts([caption]).items()}


def _joined(conds: Sequence[Cond]) -> Cond:
    """Conds of one prompt each, as the cond of a batch."""
    names: Iterable[str] = conds[0] if conds else ()
    return {name: torch.cat([cond[name] for cond in conds]) for name in names}
