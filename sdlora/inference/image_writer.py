"""Image files, each with the metadata of its making."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdlora import __version__
from sdlora.disk_room import written_when_room
from sdlora.errors import SettingsError
from sdlora.events import Event
from sdlora.files import write_to_free_path
from sdlora.image_metadata.infotext import infotext, lora_hashes, write_exif, write_png
from sdlora.image_metadata.sampler_names import FROM_NOISE, NOISE_SCHEDULE, SAMPLER_TITLES
from sdlora.inference.image_pipeline import ImageDone
from sdlora.inference.plan import GenerationPlan, ImageProblem, image_problem
from sdlora.messages import Message
from sdlora.prompt.tags import RULES
from sdlora.workspace import CHECKPOINT_SUFFIX

_ENDINGS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
_UPSCALERS = {"latent": "Latent", "lanczos": "Lanczos"}  # A1111's names


@dataclass(frozen=True)
class SavedImage:
    """An image on the disk, and what is other than it was asked for."""

    path: Path
    problems: tuple[ImageProblem, ...] = ()


def saved_when_room(
    write: Callable[[], SavedImage], folder: Path, seed: int, should_stop: Callable[[], bool]
) -> Generator[Event, None, SavedImage]:
    """Save the picture of a seed by `write`, in `folder`. A full disk is waited for, with the
    picture kept in memory. RunError: it cannot be saved, or somebody stopped waiting."""

    def problem(error: OSError) -> Message:
        return Message(
            "the picture of seed {seed} could not be saved in {folder}: {why}",
            seed=seed, folder=folder, why=error.strerror or error,
        )  # fmt: skip

    advice = "make room on that disk, and it goes on by itself"
    return (yield from written_when_room(write, problem, advice, gives_up=should_stop))


def save_image(done: ImageDone, plan: GenerationPlan, folder: Path) -> SavedImage:
    """Write an image of a plan into folder/<day>/, in the format asked for, under a name that no
    other file has. The day is that of the plan.

    Where the format cannot hold its text it becomes a PNG, which is a problem of the result.
    OSError: the disk does not take it.
    """
    now, number, image = time.localtime(), done.number, done.image
    seed, image_format = plan.images[number].seed, plan.request.image_format
    day = folder / time.strftime("%Y-%m-%d", time.localtime(plan.created_at))
    path = day / f"{time.strftime('%H%M%S', now)}-{seed}{_ENDINGS[image_format]}"
    text, record = parameters(plan, number, image.size), details(plan, done)
    problems: tuple[ImageProblem, ...] = ()
    if image_format != "png":
        try:
            return SavedImage(write_exif(image, path, text, record, publish=write_to_free_path))
        except SettingsError as error:
            problems = (image_problem(Message("{why}; it is one", why=error), [number]),)
    saved = write_png(image, path.with_suffix(".png"), text, record, publish=write_to_free_path)
    return SavedImage(saved, problems)


def parameters(plan: GenerationPlan, number: int, size: tuple[int, int]) -> str:
    """Return A1111's text for image `number`, of `size` pixels: the prompts as expanded, tags
    included."""
    image, request = plan.images[number], plan.request
    title, schedule = SAMPLER_TITLES[plan.sampler]
    is_hires, upscaler = len(plan.passes) > 1, plan.upscaler
    scale = request.hires_scale
    whole = scale * (upscaler.scale if upscaler else 1)
    first = (request.width, request.height)
    if not all(first):
        first = (round(size[0] / whole), round(size[1] / whole))
    hashes = {use.tag: use.hash for use in plan.lora_uses(number)}
    fields = {
        "Steps": request.steps,
        "Sampler": title,
        "Schedule type": schedule,
        "CFG scale": f"{request.guidance:g}",
        "Seed": image.seed,
        "Size": f"{first[0]}x{first[1]}",
        "Model hash": plan.model_hash,
        "Model": shown_model(request.model),
        "VAE": shown_model(request.vae).removesuffix(CHECKPOINT_SUFFIX) or None,
        "Denoising strength": f"{request.hires_strength:g}" if is_hires else None,
        "Clip skip": request.clip_skip if request.clip_skip > 1 else None,
        "RNG": "CPU",
        "Hires upscale": f"{scale:g}" if is_hires else None,
        "Hires steps": request.hires_steps or None if is_hires else None,
        "Hires upscaler": _UPSCALERS[request.hires_upscaler] if is_hires else None,
        # A1111 1.10, scripts/postprocessing_upscale.py
        "Postprocess upscale by": upscaler.scale if upscaler else None,
        "Postprocess upscaler": upscaler.name if upscaler else None,
        "Lora hashes": lora_hashes(hashes),
        "TI hashes": lora_hashes(plan.inversion_hashes(number)),
        "Emphasis": "No norm" if request.emphasis == "no_norm" else None,
        NOISE_SCHEDULE: FROM_NOISE if plan.zero_terminal_snr else None,
        "Version": f"sdlora {__version__}",
    }
    return infotext(image.prompt, image.negative_prompt, fields)


def details(plan: GenerationPlan, done: ImageDone) -> dict[str, Any]:
    """Return what that text cannot hold: the request as it was asked, and the image's report."""
    number = done.number
    report = plan.report(number, done.problems)
    image = {"index": number, "seed": plan.images[number].seed, **report}
    asked = plan.request.model_dump(mode="json")
    return {"version": __version__, "prompt_rules": RULES, "request": asked, "image": image}


def shown_model(model: str) -> str:
    """Return a model's name without the folders that lead to it."""
    return model.replace("\\", "/").rstrip("/").rpartition("/")[2]
