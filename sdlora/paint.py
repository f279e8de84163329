"""Pictures from an open family: the LoRAs that the prompt names, a sampler, the stock pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from PIL import Image

from sdlora.adapters import Blend, Fit
from sdlora.errors import LoraFileError
from sdlora.families.base import Family
from sdlora.lora.file import LoraFile, read_lora
from sdlora.lora.library import Library, LoraEntry, stamp
from sdlora.prompt.schedules import schedule
from sdlora.prompt.tags import LoraTag, parse_prompt
from sdlora.settings import ImageRequest


@dataclass(frozen=True)
class Sampler:
    """One way to take the noise away: its names in A1111, and diffusers' class and options."""

    title: str
    schedule: str
    kind: Any
    options: dict[str, Any] = field(default_factory=dict)


OVERFLOW = "the numbers overflowed, and the picture is black; lower the weights of the LoRAs"
SAMPLERS = {
    "ddim": Sampler("DDIM", "Automatic", DDIMScheduler),
    "euler": Sampler("Euler", "Automatic", EulerDiscreteScheduler),
    "euler_a": Sampler("Euler a", "Automatic", EulerAncestralDiscreteScheduler),
    "dpm++_2m": Sampler("DPM++ 2M", "Automatic", DPMSolverMultistepScheduler),
    "dpm++_2m_karras": Sampler(
        "DPM++ 2M", "Karras", DPMSolverMultistepScheduler, {"use_karras_sigmas": True}
    ),
    "dpm++_2m_sde": Sampler(
        "DPM++ 2M SDE", "Automatic", DPMSolverMultistepScheduler,
        {"algorithm_type": "sde-dpmsolver++"},
    ),
    "unipc": Sampler("UniPC", "Automatic", UniPCMultistepScheduler),
}  # fmt: skip


@dataclass(frozen=True)
class LoraUse:
    """A LoRA that stands in the picture."""

    name: str
    file: str
    hash: str
    weight: float
    text_encoder_weight: float
    layers: int


@dataclass
class Sheet:
    """What is painted: the texts without their tags, the LoRAs used, all that went otherwise.

    `problems` grows when something goes wrong while painting. `moving` are the LoRAs whose weights
    change over the steps.
    """

    prompt: str
    negative_prompt: str
    loras: tuple[LoraUse, ...]
    problems: list[str]
    moving: tuple[Chosen, ...] = ()

    @property
    def report(self) -> dict[str, Any]:
        """For SampleReady: plain values only."""
        return {"loras": [asdict(use) for use in self.loras], "problems": list(self.problems)}


@dataclass
class Chosen:
    """A LoRA that prompts named, found and fitting, with its tags."""

    entry: LoraEntry
    file: LoraFile
    hash: str
    tags: list[LoraTag]

    @property
    def is_constant(self) -> bool:
        """Whether it holds at every step alike, and so can be merged."""
        return all(tag.is_constant for tag in self.tags)

    @property
    def weighted(self) -> tuple[LoraFile, float, float]:
        """The file and its summed weights on denoiser and text encoders, at their strongest."""
        tags = self.tags
        return self.file, sum(tag.unet for tag in tags), sum(tag.text_encoder for tag in tags)

    def at(self, step: int, steps: int) -> tuple[LoraFile, tuple[float], tuple[float]]:
        """The file and its summed weights, as rows, at `step` of `steps`, the first being 0."""
        denoiser, text = zip(*(tag.at(step, steps) for tag in self.tags), strict=True)
        return self.file, (sum(denoiser),), (sum(text),)

    @property
    def sum_told(self) -> str:
        """How the weights of several tags add up."""
        given = [f"{tag.unet:g}" for tag in self.tags]
        times = "twice" if len(given) == 2 else f"{len(given)} times"
        return (
            f"{self.entry.name!r} stands {times}, and its weights add up: "
            f"{' + '.join(given)} = {self.weighted[1]:g}"
        )

    def use(self, its: Fit) -> LoraUse:
        """What the sheet says of it."""
        entry, (_, denoiser, text_encoders) = self.entry, self.weighted
        return LoraUse(entry.name, entry.path.name, self.hash, denoiser, text_encoders, its.layers)


class Painter:
    """An open family, and the blend that stands in it."""

    def __init__(self, family: Family, library: Library) -> None:
        self.family, self.library, self.blend = family, library, Blend(family)
        self._files: dict[tuple[Path, tuple[int, int]], tuple[LoraFile, str]] = {}

    def prepare(self, request: ImageRequest) -> Sheet:
        """Take the tags out of the prompt and make their LoRAs stand in the model.

        What cannot be used is a problem on the sheet, never an error: the rest is used.
        """
        prompt, negative = parse_prompt(request.prompt), parse_prompt(request.negative_prompt)
        problems = list(prompt.problems)
        if negative.loras or negative.problems:
            problems.append("LoRA tags in the negative prompt are not used; they were taken out")
        chosen = self._choose(prompt.loras, problems)
        still = [one for one in chosen if one.is_constant]
        moving = [one for one in chosen if not one.is_constant]
        try:
            fits = self.blend.apply([one.weighted for one in still])
            fits += self.blend.vary([_strongest(one) for one in moving])
            problems += self.blend.notes
        except LoraFileError as error:
            self.blend.clear()
            problems.append(f"no LoRA is used: {error}")
            still, moving, fits = [], [], []
        problems += [problem for one in moving if (problem := _text_told(one))]
        texts: list[str] = []
        for name, written in (("prompt", prompt.text), ("negative prompt", negative.text)):
            stages = schedule(written, request.steps)
            texts.append(stages[-1][1])
            if len(stages) > 1:
                problems.append(f"the {name} changes over the steps; only its last text is used")
            if cut := self.family.cut_text(texts[-1]):
                problems.append(f"the {name} is too long for the text encoder; left out: {cut!r}")
        uses = tuple(one.use(its) for one, its in zip([*still, *moving], fits, strict=True))
        positive, unwanted = texts
        return Sheet(positive, unwanted, uses, problems, tuple(moving))

    def paint(
        self, request: ImageRequest, sheet: Sheet, on_step: Callable[[], None]
    ) -> Iterator[Image.Image]:
        """The request's images in order; `on_step` is called after every step of every batch.

        Image i begins from the noise of seed + i, whichever batch it is in.
        """
        pipeline, sampler = self.family.pipeline, SAMPLERS[request.sampler]
        width = request.width or self.family.resolution
        height = request.height or self.family.resolution

        def turn(step: int, steps: int) -> None:
            if sheet.moving:
                self.blend.vary([one.at(step, steps) for one in sheet.moving])

        def after_step(_: Any, step: int, _t: Any, values: dict[str, Any]) -> dict[str, Any]:
            on_step()
            turn(step + 1, pipeline.num_timesteps)
            is_last = step == pipeline.num_timesteps - 1  # asked once, for it waits for the device
            if is_last and not values["latents"].isfinite().all():
                sheet.problems += [OVERFLOW] * (OVERFLOW not in sheet.problems)
            return values

        with self._painting(sampler):
            with torch.no_grad():
                texts = self.family.prompt_embeds([sheet.prompt], [sheet.negative_prompt])
            for first in range(0, request.count, request.batch_size):
                count = min(request.batch_size, request.count - first)
                seeds = range(request.seed + first, request.seed + first + count)
                turn(0, request.steps)
                yield from pipeline(
                    **texts,
                    num_images_per_prompt=count,
                    generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                    num_inference_steps=request.steps,
                    guidance_scale=request.guidance,
                    width=width,
                    height=height,
                    callback_on_step_end=after_step,
                ).images

    @contextmanager
    def _painting(self, sampler: Sampler) -> Iterator[None]:
        """The pipeline with the sampler's scheduler and without dropout; then as it was, for a
        training may go on."""
        pipeline, parts = self.family.pipeline, list(self.family.parts.values())
        its_own, learning = pipeline.scheduler, [part.training for part in parts]
        pipeline.scheduler = sampler.kind.from_config(its_own.config, **sampler.options)
        for part in parts:
            part.eval()
        try:
            yield
        finally:
            pipeline.scheduler = its_own
            for part, was in zip(parts, learning, strict=True):
                part.train(was)

    def _choose(self, tags: tuple[LoraTag, ...], problems: list[str]) -> list[Chosen]:
        """The LoRAs that can be used, each once; what is wrong with the others is a problem."""
        chosen: dict[Path, Chosen] = {}
        for tag in tags:
            try:
                entry = self.library.find(tag.name)
                file, its_hash = self._opened(entry)
                unmatched = self.blend.fit(file).unmatched
            except LoraFileError as error:
                problems.append(f"{tag.name!r} is not used: {error}")
                continue
            if one := chosen.get(entry.path):
                one.tags.append(tag)
                continue
            chosen[entry.path] = Chosen(entry, file, its_hash, [tag])
            if unmatched:
                problems.append(
                    f"{len(unmatched)} layers of {tag.name!r} are not in this model and are not "
                    f"used: {_listed(unmatched)}"
                )
            if entry.also:
                names = ", ".join(path.parent.name + "/" + path.name for path in entry.also)
                problems.append(f"{tag.name!r} is the name of other files too, not used: {names}")
        problems += [one.sum_told for one in chosen.values() if len(one.tags) > 1]
        in_use = set(chosen)
        self._files = {key: value for key, value in self._files.items() if key[0] in in_use}
        return list(chosen.values())

    def _opened(self, entry: LoraEntry) -> tuple[LoraFile, str]:
        """A LoRA and its hash; the same objects while the file is the same and in use."""
        key = entry.path, stamp(entry.path)
        if key not in self._files:
            self._files[key] = read_lora(entry.path), self.library.hashes(entry).autov3
        return self._files[key]


def _strongest(one: Chosen) -> tuple[LoraFile, tuple[float], tuple[float]]:
    file, denoiser, text_encoders = one.weighted
    return file, (denoiser,), (text_encoders,)


def _text_told(one: Chosen) -> str:
    """The text is read once, before the first step."""
    reads = any(not name.startswith("lora_unet_") for name in one.file.layers)
    if not (reads and one.weighted[2]):
        return ""
    return (
        f"the weight of {one.entry.name!r} changes over the steps in the denoiser only; "
        f"in the text encoder it is {one.weighted[2]:g} throughout"
    )


def _listed(names: Sequence[str], most: int = 12) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(name[:80] for name in names[:most]) + rest
