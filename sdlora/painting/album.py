"""Pictures on the disk, each with what it remembers of its making."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from PIL import Image

from sdlora import __version__
from sdlora.errors import RunError, SettingsError
from sdlora.painting.sheet import Sheet
from sdlora.prompt.infotext import infotext, lora_hashes, write_exif, write_png
from sdlora.prompt.samplers import FROM_NOISE, NOISE_SCHEDULE, SAMPLER_TITLES
from sdlora.prompt.tags import RULES
from sdlora.settings import ImageRequest
from sdlora.workspace import publish_new

_ENDINGS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
_UPSCALERS = {"latent": "Latent", "lanczos": "Lanczos"}  # A1111's names


def keep(image: Image.Image, folder: Path, request: ImageRequest, sheet: Sheet, index: int) -> Path:
    """Write image `index` of a request into folder/<day>/, in the format asked for, under a name
    that no other file has. The day is that of the request's beginning.

    Where that cannot hold its text it becomes a PNG, and the sheet says so. RunError: the disk does
    not take it.
    """
    now = time.localtime()
    seed = sheet.wishes[index].seed
    day = folder / time.strftime("%Y-%m-%d", time.localtime(sheet.prepared_at))
    path = day / f"{time.strftime('%H%M%S', now)}-{seed}{_ENDINGS[request.image_format]}"
    text, rest = parameters(request, sheet, index, image.size), details(request, sheet, index)
    try:
        if request.image_format != "png":
            try:
                return write_exif(image, path, text, rest, publish=publish_new)
            except SettingsError as error:
                sheet.tell([f"{error}; it is one"], [index])
        return write_png(image, path.with_suffix(".png"), text, rest, publish=publish_new)
    except OSError as error:
        raise RunError(
            "the picture {file} of {folder} could not be saved: {why}; make room there or give "
            "write access, then ask for seed {seed} again",
            file=path,
            folder=str(day),
            why=error.strerror or str(error),
            seed=seed,
        ) from None


def parameters(request: ImageRequest, sheet: Sheet, index: int, size: tuple[int, int]) -> str:
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


def details(request: ImageRequest, sheet: Sheet, index: int) -> dict[str, Any]:
    """What that text cannot hold: the request as it was asked, and what became of this image."""
    image = {"index": index, "seed": sheet.wishes[index].seed, **sheet.report(index)}
    asked = request.model_dump(mode="json")
    return {"version": __version__, "prompt_rules": RULES, "request": asked, "image": image}


def shown_model(model: str) -> str:
    """A model's name without the folders that lead to it."""
    return model.replace("\\", "/").rstrip("/").rpartition("/")[2]
