"""Plan of a request: what each of its images is made of, and what of it could not be used."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sdlora.adapters import LoraMatch
from sdlora.lora.format.file import LoraFile
from sdlora.lora.library.library import LoraEntry
from sdlora.messages import RECORD, Message, as_message
from sdlora.prompt.tags import LoraTag, Prompt
from sdlora.settings.image_request import ImageRequest
from sdlora.upscalers.upscale import Upscaler

# step, the first being 0; steps of the pass; steps before the pass
Moment = tuple[int, int, int]


@dataclass(frozen=True)
class SamplingPass:
    """One pass over an image: its steps, and those of the pass before it."""

    steps: int
    before: int = 0


def passes_of(request: ImageRequest) -> tuple[SamplingPass, ...]:
    """Return the passes of a request, two with hires fix."""
    first = SamplingPass(request.steps)
    if request.hires_scale <= 1:
        return (first,)
    return (first, SamplingPass(request.hires_steps or request.steps, request.steps))


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
class ImageProblem:
    """Something that is not used as it was meant, and the images, by number, that it is about."""

    message: Message
    images: frozenset[int]


@dataclass(frozen=True)
class ImagePlan:
    """One image's prompts: as expanded, LoRA tags included, and as parsed."""

    seed: int
    prompt: str
    negative_prompt: str
    positive: Prompt
    negative: Prompt


@dataclass(frozen=True, eq=False)
class SelectedLora:
    """A LoRA that prompts name: its file, the layers that it matches, and its tags by (image,
    whether in the negative prompt)."""

    entry: LoraEntry
    file: LoraFile
    hash: str
    match: LoraMatch
    tags: Mapping[tuple[int, bool], Sequence[LoraTag]]

    def is_constant(self, images: int, hires: bool) -> bool:
        """Return True when all images have it alike, at every step, so that it can be merged."""
        sides = [self.tags.get((image, False)) for image in range(images)]
        if any(negative for _, negative in self.tags) or not all(sides):
            return False
        first = sides[0] or []
        same = all(side == first for side in sides)
        return same and all(t.is_constant and (t.hires is None or not hires) for t in first)

    def weights_at(self, image: int, negative: bool, moment: Moment) -> tuple[float, float]:
        """Return its weights (denoiser, text encoder) on an image's text at a moment, as
        `LoraTag.at` takes it; the tags of the prompt act on the negative text too, its own on
        nothing else."""
        sides = (False, True) if negative else (False,)
        pairs = [tag.at(*moment) for side in sides for tag in self.tags.get((image, side), ())]
        return sum(denoiser for denoiser, _ in pairs), sum(text for _, text in pairs)

    def strongest(self, image: int, negative: bool) -> tuple[float, float]:
        """Return the sums of one side's tags, at their strongest."""
        tags = self.tags.get((image, negative), [])
        return sum(tag.unet for tag in tags), sum(tag.text_encoder for tag in tags)

    def uses(self, image: int, passes: Iterable[SamplingPass]) -> list[LoraUse]:
        """Return what a picture's record says of it, one row for each side that names it."""
        uses = []
        for negative in (False, True):
            tags = self.tags.get((image, negative))
            if not tags:
                continue
            changes: list[tuple[int, float, float]] = []
            for its_pass in passes:
                for step in range(its_pass.steps):
                    pairs = [tag.at(step, its_pass.steps, its_pass.before) for tag in tags]
                    now = sum(unet for unet, _ in pairs), sum(text for _, text in pairs)
                    if not changes or changes[-1][1:] != now:
                        changes.append((its_pass.before + step + 1, *now))
            weight, text_encoder_weight = self.strongest(image, negative)
            uses.append(
                LoraUse(
                    tag=tags[0].name, name=self.entry.name, file=self.entry.path.name,
                    hash=self.hash, weight=weight, text_encoder_weight=text_encoder_weight,
                    layers=self.match.layers, negative=negative,
                    steps=tuple(changes) if len(changes) > 1 else (),
                )
            )  # fmt: skip
        return uses


@dataclass(frozen=True)
class LoraSelection:
    """The LoRAs and textual inversions that prompts name. `constant` LoRAs are merged, the weights
    of `changing` ones differ over the steps or between the images."""

    constant: tuple[SelectedLora, ...] = ()
    changing: tuple[SelectedLora, ...] = ()
    inversions: tuple[LoraFile, ...] = ()
    inversion_hashes: Mapping[str, str] = field(default_factory=dict)  # name -> hash
    unused: Mapping[str, Message] = field(default_factory=dict)  # tag's name -> the reason
    problems: tuple[ImageProblem, ...] = ()


@dataclass(frozen=True)
class GenerationPlan:
    """All that is decided of a request before the first step; nothing changes it afterwards."""

    request: ImageRequest
    images: tuple[ImagePlan, ...]
    passes: tuple[SamplingPass, ...]
    sampler: str  # a key of SAMPLERS
    zero_terminal_snr: bool = False  # pictures begin from noise alone
    loras: LoraSelection = LoraSelection()
    upscaler: Upscaler | None = None  # enlarges the finished images
    other_problems: tuple[ImageProblem, ...] = ()
    model_hash: str = ""  # the first ten digits of the model file's SHA-256, where it is known
    created_at: float = field(default_factory=time.time)  # its pictures lie under this day

    @property
    def problems(self) -> list[ImageProblem]:
        """Everything that is not used as it was meant, each once."""
        return merged_problems([*self.other_problems, *self.loras.problems])

    @property
    def total_steps(self) -> int:
        """Steps of all batches and passes."""
        batches = -(-self.request.count // self.request.batch_size)
        return batches * sum(one_pass.steps for one_pass in self.passes)

    def lora_uses(self, image: int) -> list[LoraUse]:
        """Return the LoRAs of an image."""
        selected = (*self.loras.constant, *self.loras.changing)
        return [use for lora in selected for use in lora.uses(image, self.passes)]

    def inversion_hashes(self, image: int) -> dict[str, str]:
        """Return the textual inversions that an image's prompts name, and their hashes."""
        plan = self.images[image]
        text = f"{plan.prompt}\n{plan.negative_prompt}".lower()
        return {name: h for name, h in self.loras.inversion_hashes.items() if name in text}

    def report(self, image: int, later: Iterable[ImageProblem] = ()) -> dict[str, Any]:
        """Return what SampleReady and the picture's own record say, plain values only; `later`
        problems came up while the image was made."""
        plan = self.images[image]
        named = {tag.name for tag in (*plan.positive.loras, *plan.negative.loras)}
        problems = merged_problems([*self.problems, *later])
        return {
            "prompt": plan.prompt,
            "negative_prompt": plan.negative_prompt,
            "loras": [asdict(use) for use in self.lora_uses(image)],
            "unused": {n: why.on(RECORD) for n, why in self.loras.unused.items() if n in named},
            "embeddings": self.inversion_hashes(image),
            "problems": [p.message.on(RECORD) for p in problems if image in p.images],
        }


def merged_problems(problems: Iterable[ImageProblem]) -> list[ImageProblem]:
    """Return problems with each message once, in the order in which they came up."""
    images: dict[Message, frozenset[int]] = {}
    for problem in problems:
        known = images.get(problem.message, frozenset())
        images[problem.message] = known | problem.images
    return [ImageProblem(message, numbers) for message, numbers in images.items()]


def image_problem(message: str, images: Iterable[int]) -> ImageProblem:
    """Return a problem of some images; `message` may be a sentence or a template."""
    return ImageProblem(as_message(message), frozenset(images))


def listed(names: Sequence[str], limit: int = 12) -> str:
    """Return names in a sentence, of many only the first."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(name[:80] for name in names[:limit]) + rest


def also_named(paths: Iterable[Path]) -> str:
    """Return files in a sentence, by folder and name."""
    return ", ".join(path.parent.name + "/" + path.name for path in paths)
