"""Examples encoded once, batches ever after.

A picture's views pass the VAE once and its captions the text encoder once; both are kept in main
memory, and on disk for the next training. Which of them a step sees depends on (seed, step,
picture) alone, so a run can begin at any step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from torch import Tensor

from sdlora import __version__
from sdlora.cache import Cache
from sdlora.data.buckets import Bucket, assign_buckets, crop_sizes
from sdlora.data.caption_augmentation import CaptionAugmenter, WordLists
from sdlora.data.folder import Example, to_warnings
from sdlora.data.image_augmentation import ImageView, image_views, seeded_random
from sdlora.data.image_files import BROKEN
from sdlora.data.images import load_alpha, load_mask, load_pixels, load_weights
from sdlora.device import generator_for
from sdlora.errors import DataError
from sdlora.events import Event, Progress, Warned
from sdlora.messages import Message, Setting
from sdlora.models.base import Conditioning, ModelFamily
from sdlora.settings.train import TrainSettings


@dataclass(frozen=True)
class LatentBatch:
    """Pictures of one size, for a training step.

    latents (B,C,h,w); conditioning: of their captions, None where they are encoded in each step;
    sizes (B,6): original height and width, top and left of the cut, height and width.
    weights (B,): of each picture's loss; None: all 1. mask (B,1,h,w), 0..1: the weight of the loss
    at each latent cell; None: 1 everywhere.
    """

    latents: Tensor
    conditioning: Conditioning | None
    sizes: Tensor
    captions: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    weights: Tensor | None = None
    mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, rows: slice) -> LatentBatch:
        """Return some of the rows."""
        part = self._mapped(lambda x: x[rows])
        return replace(part, captions=self.captions[rows], names=self.names[rows])

    def to(self, device: torch.device) -> LatentBatch:
        """The same on `device`, copied without waiting for it."""
        return self._mapped(lambda x: x.to(device, non_blocking=True))

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> LatentBatch:
        return replace(
            self,
            latents=change(self.latents),
            conditioning=self.conditioning and self.conditioning.mapped(change),
            sizes=change(self.sizes),
            weights=None if self.weights is None else change(self.weights),
            mask=None if self.mask is None else change(self.mask),
        )


@dataclass(frozen=True)
class EncodedImage:
    """One encoded picture. `views` (V,C,h,w) are its latents, cut, mirrored and coloured as asked;
    `sizes` of each as in a batch; `masks` (V,1,h,w), None when it has none; `wordings` are those of
    its caption that are kept ready."""

    example: Example
    views: Tensor
    sizes: tuple[tuple[int, ...], ...]
    masks: Tensor | None
    wordings: tuple[str, ...]


@dataclass(frozen=True)
class LatentDataset:
    """All that a training looks at, on the CPU. `groups` are indices of items of the same size, as
    often as they repeat; `texts` is empty when captions are encoded in each step, because the text
    encoder learns or because they are worded anew."""

    items: Sequence[EncodedImage]
    groups: tuple[tuple[int, ...], ...]
    texts: Mapping[str, Conditioning]
    family: ModelFamily
    settings: TrainSettings
    lists: WordLists = field(default_factory=dict)

    @cached_property
    def wording(self) -> CaptionAugmenter:
        """The augmenter of its captions."""
        return CaptionAugmenter(self.settings, self.lists)

    @property
    def captions(self) -> list[str]:
        """Captions, one per picture to be learnt, in the order of the pictures, worded plainly."""
        own = (item.example for item in self.items if not item.example.regularisation)
        return [self.wording.plain(example.caption) for example in own]

    def summary(self) -> str:
        """Return the number and the sizes of the pictures, in words."""
        sizes = sorted({(width, height) for *_, height, width in (i.sizes[0] for i in self.items)})
        pixels = ", ".join(f"{width} x {height}" for width, height in sizes)
        return f"{len(self.items)} of {pixels} pixels"

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

    def batch(self, step: int) -> LatentBatch:
        """The pictures of optimizer step `step` = 1, 2, ...: of one size, the last few of a round
        included, `batch_size * gradient_accumulation` at most."""
        settings = self.settings
        size = settings.batch_size * settings.gradient_accumulation
        rounds, place = divmod(step - 1, self.steps_per_round)
        chosen = _order(self.groups, size, settings.seed, rounds)[place]
        items = [self.items[index] for index in chosen]
        rows = [self._drawn(item, step, row) for row, item in enumerate(items)]
        captions, views = zip(*rows, strict=True)
        pairs = list(zip(items, views, strict=True))
        return LatentBatch(
            latents=torch.stack([item.views[view] for item, view in pairs]),
            conditioning=self._conditioning(captions) if self.texts else None,
            sizes=torch.tensor([item.sizes[view] for item, view in pairs]),
            captions=captions,
            names=tuple(item.example.image.name for item in items),
            weights=_weights(items, settings.regularisation_weight),
            mask=_masks(pairs),
        )

    def _conditioning(self, captions: Sequence[str]) -> Conditioning:
        """Collate captions, those of fewer tokens padded by the empty one."""
        texts = [self.texts[caption] for caption in captions]
        length = max(text.length for text in texts)
        padded = [self.family.pad(text, length, lambda: self.texts[""]) for text in texts]
        return self.family.collate(padded)

    def _drawn(self, item: EncodedImage, step: int, row: int) -> tuple[str, int]:
        """(caption, view) of an item in a row of a step's batch."""
        rng = seeded_random(
            self.settings.seed, step, row, item.example.digest or item.example.image.name
        )
        view, dropped = int(rng.random() * len(item.views)), rng.random()
        if dropped < self.settings.caption_dropout:
            return "", view
        if self.texts:
            return rng.choice(item.wordings), view
        own = not item.example.regularisation
        return self.wording.drawn(item.example.caption, rng, own), view


def _weights(items: Sequence[EncodedImage], regularisation: float) -> Tensor | None:
    if not any(item.example.regularisation for item in items):
        return None
    return torch.tensor([regularisation if i.example.regularisation else 1.0 for i in items])


def _masks(pairs: Sequence[tuple[EncodedImage, int]]) -> Tensor | None:
    if all(item.masks is None for item, _ in pairs):
        return None
    everywhere = torch.ones_like(pairs[0][0].views[0, :1])
    return torch.stack([everywhere if i.masks is None else i.masks[view] for i, view in pairs])


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
    family: ModelFamily,
    examples: Sequence[Example],
    settings: TrainSettings,
    cache_folder: Path | None = None,
    lists: WordLists | None = None,
) -> Generator[Event, None, LatentDataset]:
    """Encode every picture and caption, saying how far it is; returns what batches are made of.
    Wildcards in captions are drawn from `lists`. What `cache_folder` keeps of an earlier time is
    not encoded again.
    DataError: a picture changed since it was found, or the VAE overflows on it."""
    resolution = settings.resolution or family.resolution
    assigned, problems = assign_buckets(examples, resolution, settings.upscale)
    yield from to_warnings(problems)
    family.reload()
    wording = CaptionAugmenter(settings, lists or {})
    encoder = _Encoder(family, settings, Cache(cache_folder, settings.cache_gib), wording)
    items: list[EncodedImage] = []
    groups: list[tuple[int, ...]] = []
    for bucket, of_bucket in assigned.items():
        group: list[int] = []
        for example in of_bucket:
            group += [len(items)] * example.repeats
            items.append(encoder.item(example, bucket))
            yield Progress("encoding pictures", len(items), len(examples))
        groups.append(tuple(group))

    texts: dict[str, Conditioning] = {}
    captions = sorted({"", *(wording for item in items for wording in item.wordings)})
    for caption in captions if encoder.keeps_texts(examples) else ():
        texts[caption] = encoder.text(caption)
        yield Progress("encoding captions", len(texts), len(captions))
    encoder.cache.trim()
    if encoder.cache.problem:
        template = "what was encoded is not kept for the next training: {why}"
        message = Message(template, why=encoder.cache.problem)
        yield Warned(message, "this training goes on from memory")
    return LatentDataset(items, tuple(groups), texts, family, settings, wording.lists)


@dataclass
class _Encoder:
    """Encoder of pictures and captions, with a cache of what was encoded before."""

    family: ModelFamily
    settings: TrainSettings
    cache: Cache
    wording: CaptionAugmenter

    @cached_property
    def latent_cache_key(self) -> dict[str, str]:
        """Everything that latents depend on beside the picture."""
        return {**self.family.latent_cache_key(), **self._machine}

    @cached_property
    def text_cache_key(self) -> dict[str, str]:
        """Everything that a conditioning depends on beside the caption."""
        return {**self.family.text_cache_key(), **self._machine}

    @property
    def _machine(self) -> dict[str, str]:
        family = self.family
        kind = f"{type(family).__name__} {family.dtype} {family.device.type}"
        return {"by": f"{kind}, torch {torch.__version__}, sdlora {__version__}"}

    def keeps_texts(self, examples: Iterable[Example]) -> bool:
        """Return True when all that captions can say is known beforehand."""
        anew = self.settings.caption_variants == 0
        return not self.settings.train_text_encoder and not (
            anew and any(self.wording.varies(example.caption) for example in examples)
        )

    def item(self, example: Example, bucket: Bucket) -> EncodedImage:
        """Return a picture encoded in all its views."""
        views = image_views(self.settings, example.digest or example.image.name)
        latents = torch.stack([self.view(example, bucket, view) for view in views])
        own = not example.regularisation
        return EncodedImage(
            example,
            latents,
            tuple(crop_sizes(example.size, bucket, view) for view in views),
            self.masks(example, bucket, views, latents.shape[-1]),
            self.wording.variants(example.caption, example.digest, own),
        )

    def view(self, example: Example, bucket: Bucket, view: ImageView) -> Tensor:
        """Return (C,h,w) of one view. One at a time, so that it is the same in any dataset."""
        if not (self.cache.folder and self.cache.most_gib and example.digest):
            return _encode_view(self.family, example, bucket, view)
        made_from = {"picture": example.digest, "bucket": bucket, "view": view.key}
        made_from |= self.latent_cache_key
        cached = self.cache.get(**made_from)
        if cached is None:
            cached = {"latents": _encode_view(self.family, example, bucket, view)}
            self.cache.put(cached, **made_from)
        return cached["latents"]

    def masks(
        self, example: Example, bucket: Bucket, views: Sequence[ImageView], cells: int
    ) -> Tensor | None:
        """Return (V,1,h,w) of the loss's weights at each cell; a latent is `cells` cells wide."""
        if example.mask is None:
            return None
        load = load_alpha if example.mask == example.image else load_mask
        try:
            mask = load(example.mask)
        except BROKEN as error:
            raise DataError(
                "{file} changed while it was read: {why}", file=example.mask, why=error
            ) from None
        pixels, least = bucket.width // cells, self.settings.unmasked_weight
        seen = torch.stack([load_weights(mask, bucket, view, pixels) for view in views])
        return least + (1 - least) * seen

    def text(self, caption: str) -> Conditioning:
        """Encode a caption, or read it from the cache."""
        if not (self.cache.folder and self.cache.most_gib):
            return _encode_caption(self.family, caption)
        cached = self.cache.get(caption=caption, **self.text_cache_key)
        if cached is not None:
            return Conditioning(cached)
        conditioning = _encode_caption(self.family, caption)
        self.cache.put(dict(conditioning.tensors), caption=caption, **self.text_cache_key)
        return conditioning


@torch.no_grad()
def _encode_view(family: ModelFamily, example: Example, bucket: Bucket, view: ImageView) -> Tensor:
    try:
        pixels = load_pixels(example.image, bucket, view)
        with example.image.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if example.digest not in ("", digest):
            raise ValueError("it is another picture now")
    except BROKEN as error:
        raise DataError(
            "{file} changed while it was read: {why}. Put it back as it was and resume",
            file=example.image, why=error,
        ) from None  # fmt: skip
    latents = family.encode_images(pixels[None].to(family.device))[0].float().cpu()
    if not latents.isfinite().all():
        raise DataError(
            "{file} cannot be encoded: the model's picture encoder overflows in {dtype}. Train "
            "with {setting} fp32 or bf16",
            file=example.image.name, dtype=family.dtype, setting=Setting("precision"),
        )  # fmt: skip
    return latents


@torch.no_grad()
def _encode_caption(family: ModelFamily, caption: str) -> Conditioning:
    return family.encode_captions([caption]).mapped(lambda tensor: tensor.cpu())
