"""What a request's images are made of, and what of it could not be used: what is told of them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sdlora.adapters import LoraMatch
from sdlora.lora.format.file import LoraFile
from sdlora.lora.library.library import LoraEntry
from sdlora.messages import RECORD, Message, as_message
from sdlora.prompt.tags import LoraTag, Prompt


@dataclass(frozen=True)
class LoraUse:
    """A LoRA in one image: `tag` is its name in the prompt, `name` that of its file.

    The weights are the sum of its tags, at their strongest where they change: then `steps` has
    (step, weight, text_encoder_weight) wherever they do, the first step being 1. `negative`: it
    acts on what the negative prompt says only.
    """

    tag: str
    name: str
    file: str
    hash: str
    weight: float
    text_encoder_weight: float
    layers: int
    negative: bool = False
    steps: tuple[tuple[int, float, float], ...] = ()


@dataclass(frozen=True)
class ImagePlan:
    """One image's prompts: as expanded, LoRA tags included, and as read."""

    seed: int
    prompt: str
    negative_prompt: str
    positive: Prompt
    negative: Prompt


@dataclass
class SelectedLora:
    """A LoRA that prompts named, found and fitting, with its tags by (image, in the negative)."""

    entry: LoraEntry
    file: LoraFile
    hash: str
    tags: dict[tuple[int, bool], list[LoraTag]] = field(default_factory=dict)
    layers: int = 0

    def is_still(self, images: int, hires: bool) -> bool:
        """Whether it is in all images alike, at every step, and so can be merged."""
        sides = [self.tags.get((image, False)) for image in range(images)]
        if any(negative for _, negative in self.tags) or not all(sides):
            return False
        first = sides[0] or []
        same = all(side == first for side in sides)
        return same and all(t.is_constant and (t.hires is None or not hires) for t in first)

    def at(self, image: int, negative: bool, when: tuple[int, int, int]) -> tuple[float, float]:
        """Its weights (UNet, text encoder) on an image's text at a moment, as `LoraTag.at` takes
        it; the tags of the prompt act on the negative text too, its own on nothing else."""
        sides = (False, True) if negative else (False,)
        pairs = [tag.at(*when) for side in sides for tag in self.tags.get((image, side), ())]
        return sum(unet for unet, _ in pairs), sum(text for _, text in pairs)

    def strongest(self, image: int, negative: bool) -> tuple[float, float]:
        """The sums of one side's tags, at their strongest."""
        tags = self.tags.get((image, negative), [])
        return sum(tag.unet for tag in tags), sum(tag.text_encoder for tag in tags)

    def uses(self, image: int, its: LoraMatch, passes: Iterable[tuple[int, int]]) -> list[LoraUse]:
        """What is told of it in one image; `passes` are (steps, steps before) of each."""
        uses = []
        for negative in (False, True):
            tags = self.tags.get((image, negative))
            if not tags:
                continue
            changes: list[tuple[int, float, float]] = []
            for steps, before in passes:
                for step in range(steps):
                    pairs = [tag.at(step, steps, before) for tag in tags]
                    now = sum(unet for unet, _ in pairs), sum(text for _, text in pairs)
                    if not changes or changes[-1][1:] != now:
                        changes.append((before + step + 1, *now))
            entry = self.entry
            uses.append(
                LoraUse(
                    tags[0].name, entry.name, entry.path.name, self.hash,
                    *self.strongest(image, negative), its.layers, negative,
                    tuple(changes) if len(changes) > 1 else (),
                )
            )  # fmt: skip
        return uses


@dataclass
class GenerationPlan:
    """What is painted. Problems grow when something goes wrong while painting."""

    wishes: tuple[ImagePlan, ...]
    passes: tuple[tuple[int, int], ...] = ()  # (steps, steps before) of each
    from_noise: bool = False  # whether it begins from noise alone
    still: list[SelectedLora] = field(default_factory=list)
    moving: list[SelectedLora] = field(default_factory=list)
    fits: list[LoraMatch] = field(
        default_factory=list
    )  # of the still ones, then of the moving ones
    embeddings: dict[str, str] = field(default_factory=dict)  # name -> hash, of those in use
    unused: dict[str, Message] = field(default_factory=dict)  # tag -> why it is not used
    _problems: dict[Message, set[int]] = field(default_factory=dict)
    prepared_at: float = field(default_factory=time.time)  # its pictures lie under this day

    @property
    def problems(self) -> list[Message]:
        """All that is not used as it was meant, of any image, each once."""
        return list(self._problems)

    def tell(self, problems: Iterable[str], images: Iterable[int] | None = None) -> None:
        """Note problems of some images, or of all."""
        which = range(len(self.wishes)) if images is None else set(images)
        for problem in problems:
            self._problems.setdefault(as_message(problem), set()).update(which)

    def loras(self, image: int) -> list[LoraUse]:
        """The LoRAs that stand in an image."""
        pairs = zip([*self.still, *self.moving], self.fits, strict=True)
        return [use for one, its in pairs for use in one.uses(image, its, self.passes)]

    def words(self, image: int) -> dict[str, str]:
        """The textual inversions that an image's prompts name, and their hashes."""
        wish = self.wishes[image]
        text = f"{wish.prompt}\n{wish.negative_prompt}".lower()
        return {name: its for name, its in self.embeddings.items() if name in text}

    def report(self, image: int) -> dict[str, Any]:
        """For SampleReady and the picture's own record: plain values only."""
        wish = self.wishes[image]
        named = {tag.name for tag in (*wish.positive.loras, *wish.negative.loras)}
        return {
            "prompt": wish.prompt,
            "negative_prompt": wish.negative_prompt,
            "loras": [asdict(use) for use in self.loras(image)],
            "unused": {n: why.on(RECORD) for n, why in self.unused.items() if n in named},
            "embeddings": self.words(image),
            "problems": [p.on(RECORD) for p, which in self._problems.items() if image in which],
        }


def listed(names: list[str] | tuple[str, ...], most: int = 12) -> str:
    """Names in a sentence, of many only the first."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(name[:80] for name in names[:most]) + rest


def also_named(paths: Iterable[Path]) -> str:
    """Files in a sentence, by folder and name."""
    return ", ".join(path.parent.name + "/" + path.name for path in paths)
