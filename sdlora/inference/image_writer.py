"""Pictures on the disk, each with what it remembers of its making."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from PIL import Image

from sdlora import __version__
from sdlora.errors import RunError, SettingsError
from sdlora.events import Event, Progress, Warned
from sdlora.files import DISK_FULL, publish_new
from sdlora.image_metadata.infotext import infotext, lora_hashes, write_exif, write_png
from sdlora.image_metadata.sampler_names import FROM_NOISE, NOISE_SCHEDULE, SAMPLER_TITLES
from sdlora.inference.plan import GenerationPlan
from sdlora.messages import Message
from sdlora.prompt.tags import RULES
from sdlora.settings.image_request import ImageRequest

_ENDINGS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
LOOK_EVERY_S = 2.0
_UPSCALERS = {"latent": "Latent", "lanczos": "Lanczos"}  # A1111's names


def written_when_room(
    write: Callable[[], Path], folder: Path, seed: int, should_stop: Callable[[], bool]
) -> Generator[Event, None, Path]:
    """The picture of a seed that `write` saves in `folder`. A full disk is waited for, with the
    picture kept in memory. RunError: it cannot be saved, or somebody stopped waiting."""
    waits = False
    while True:
        try:
            return write()
        except OSError as error:
            why = error.strerror or error
            message = Message(
                "the picture of seed {seed} could not be saved in {folder}: {why}",
                seed=seed, folder=folder, why=why,
            )  # fmt: skip
            if error.errno not in DISK_FULL or should_stop():
                raise RunError(message) from None
        if not waits:
            waits = True
            yield Warned(message, "make room on that disk, and it goes on by itself")
            yield Progress("waiting for room on the disk")
        time.sleep(LOOK_EVERY_S)


def keep(
    image: Image.Image, folder: Path, request: ImageRequest, sheet: GenerationPlan, index: int
) -> Path:
    """Write image `index` of a request into folder/<day>/, in the format asked for, under a name
    that no other file has. The day is that of the request's beginning.

    Where that cannot hold its text it becomes a PNG, and the sheet says so. OSError: the disk does
    not take it.
    """
    now = time.localtime()
    seed = sheet.wishes[index].seed
    day = folder / time.strftime("%Y-%m-%d", time.localtime(sheet.prepared_at))
    path = day / f"{time.strftime('%H%M%S', now)}-{seed}{_ENDINGS[request.image_format]}"
    text, rest = parameters(request, sheet, index, image.size), details(request, sheet, index)
    if request.image_format != "png":
        try:
            return write_exif(image, path, text, rest, publish=publish_new)
        except SettingsError as error:
            sheet.tell([Message("{why}; it is one", why=error)], [index])
    return write_png(image, path.with_suffix(".png"), text, rest, publish=publish_new)


def parameters(
    request: ImageRequest, sheet: GenerationPlan, index: int, size: tuple[int, int]
) -> str:
    """A1111's text for image `index`, of `size` pixels: the prompts as expanded, tags included."""
    wish, (title, schedule) = sheet.wishes[index], SAMPLER_TITLES[request.sampler]
    is_hires = len(sheet.passes) > 1
    scale = request.hires_scale
    first = (request.width, request.height)
    if not all(first):
        first = (round(size[0] / scale), round(size[1] / scale))
    uses = {use.tag: use.hash for use in sheet.loras(index)}
    fields = {
        "Steps": request.steps,
        "Sampler": title,
        "Schedule type": schedule,
        "CFG scale": f"{request.guidance:g}",
        "Seed": wish.seed,
        "Size": f"{first[0]}x{first[1]}",
        "Model": shown_model(request.model),
        "Denoising strength": f"{request.hires_strength:g}" if is_hires else None,
        "Clip skip": request.clip_skip if request.clip_skip > 1 else None,
        "RNG": "CPU",
        "Hires upscale": f"{scale:g}" if is_hires else None,
        "Hires steps": request.hires_steps or None if is_hires else None,
        "Hires upscaler": _UPSCALERS[request.hires_upscaler] if is_hires else None,
        "Lora hashes": lora_hashes(uses),
        "TI hashes": lora_hashes(sheet.words(index)),
        "Emphasis": "No norm" if request.emphasis == "no_norm" else None,
        NOISE_SCHEDULE: FROM_NOISE if sheet.from_noise else None,
        "Version": f"sdlora {__version__}",
    }
    return infotext(wish.prompt, wish.negative_prompt, fields)


def details(request: ImageRequest, sheet: GenerationPlan, index: int) -> dict[str, Any]:
    """What that text cannot hold: the request as it was asked, and what became of this image."""
    image = {"index": index, "seed": sheet.wishes[index].seed, **sheet.report(index)}
    asked = request.model_dump(mode="json")
    return {"version": __version__, "prompt_rules": RULES, "request": asked, "image": image}


def shown_model(model: str) -> str:
    """A model's name without the folders that lead to it."""
    return model.replace("\\", "/").rstrip("/").rpartition("/")[2]
