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
from sdlora.lora.header import body_hash
from sdlora.lora.library import Library, LoraEntry, stamp
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

    `problems` grows when something goes wrong while painting.
    """

    prompt: str
    negative_prompt: str
    loras: tuple[LoraUse, ...]
    problems: list[str]

    @property
    def report(self) -> dict[str, Any]:
        """For SampleReady: plain values only."""
        return {"loras": [asdict(use) for use in self.loras], "problems": list(self.problems)}


@dataclass
class _Chosen:
    """A LoRA that prompts named, found and fitting, with the weights it was given."""

    entry: LoraEntry
    file: LoraFile
    hash: str
    weights: list[tuple[float, float]]  # on the denoiser, on the text encoders

    @property
    def weighted(self) -> tuple[LoraFile, float, float]:
        denoiser, text_encoders = (sum(side) for side in zip(*self.weights, strict=True))
        return self.file, denoiser, text_encoders

    @property
    def sum_told(self) -> str:
        given = [f"{denoiser:g}" for denoiser, _ in self.weights]
        times = "twice" if len(given) == 2 else f"{len(given)} times"
        return (
            f"{self.entry.name!r} stands {times}, and its weights add up: "
            f"{' + '.join(given)} = {self.weighted[1]:g}"
        )

    def use(self, its: Fit) -> LoraUse:
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
        try:
            fits = self.blend.apply([one.weighted for one in chosen])
            problems += self.blend.notes
        except LoraFileError as error:
            problems.append(f"no LoRA is used: {error}")
            chosen, fits = [], []
        for name, text in (("prompt", prompt.text), ("negative prompt", negative.text)):
            if cut := self.family.cut_text(text):
                problems.append(f"the {name} is too long for the text encoder; left out: {cut!r}")
        uses = tuple(one.use(its) for one, its in zip(chosen, fits, strict=True))
        return Sheet(prompt.text, negative.text, uses, problems)

    def paint(
        self, request: ImageRequest, sheet: Sheet, on_step: Callable[[], None]
    ) -> Iterator[Image.Image]:
        """The request's images in order; `on_step` is called after every step of every batch.

        Image i begins from the noise of seed + i, whichever batch it is in.
        """
        pipeline, sampler = self.family.pipeline, SAMPLERS[request.sampler]
        width = request.width or self.family.resolution
        height = request.height or self.family.resolution

        def after_step(_: Any, step: int, _t: Any, values: dict[str, Any]) -> dict[str, Any]:
            on_step()
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

    def _choose(self, tags: tuple[LoraTag, ...], problems: list[str]) -> list[_Chosen]:
        """The LoRAs that can be used, each once; what is wrong with the others is a problem."""
        chosen: dict[Path, _Chosen] = {}
        for tag in tags:
            try:
                entry = self.library.find(tag.name)
                file, its_hash = self._opened(entry.path)
                unmatched = self.blend.fit(file).unmatched
            except LoraFileError as error:
                problems.append(f"{tag.name!r} is not used: {error}")
                continue
            weights = (tag.unet, tag.text_encoder)
            if one := chosen.get(entry.path):
                one.weights.append(weights)
                continue
            chosen[entry.path] = _Chosen(entry, file, its_hash, [weights])
            if unmatched:
                problems.append(
                    f"{len(unmatched)} layers of {tag.name!r} are not in this model and are not "
                    f"used: {_listed(unmatched)}"
                )
            if entry.also:
                names = ", ".join(path.parent.name + "/" + path.name for path in entry.also)
                problems.append(f"{tag.name!r} is the name of other files too, not used: {names}")
        problems += [one.sum_told for one in chosen.values() if len(one.weights) > 1]
        in_use = set(chosen)
        self._files = {key: value for key, value in self._files.items() if key[0] in in_use}
        return list(chosen.values())

    def _opened(self, path: Path) -> tuple[LoraFile, str]:
        """A LoRA and its hash; the same objects while the file is the same and in use."""
        key = path, stamp(path)
        if key not in self._files:
            self._files[key] = read_lora(path), body_hash(path)[:12]
        return self._files[key]


def _listed(names: Sequence[str], most: int = 12) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(name[:80] for name in names[:most]) + rest
