"""Pictures by the model as it is in the middle of its training, in the model's own size.

An upscaler would take time and show nothing of what is learnt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from sdlora.data.captions import evenly_spaced
from sdlora.errors import SdloraError
from sdlora.events import Event, Progress, SampleReady, Warned
from sdlora.files import write_atomically
from sdlora.inference.engine import never_stop, render
from sdlora.messages import Message
from sdlora.models.base import ModelFamily
from sdlora.prompt.escaping import escape_prompt
from sdlora.settings.image_request import ImageRequest

# What memory, disk or model may do to a sample without ending the training.
SAMPLE_FAILURES = (SdloraError, RuntimeError, ValueError, TypeError, LookupError, OSError)


def prompts_from(chosen: Sequence[str], captions: Sequence[str]) -> list[str]:
    """Prompts to sample with: the `chosen` ones, else some captions, escaped so that each is drawn
    as it is learnt, as text."""
    return [*chosen] or [escape_prompt(caption) for caption in evenly_spaced(captions)]


def draw_samples(
    family: ModelFamily,
    prompts: list[str],
    seed: int,
    step: int,
    folder: Path,
    *,
    should_stop: Callable[[], bool] = never_stop,
) -> Iterator[Event]:
    """Draw what has been learnt, each prompt from the same noise every time, into `folder`."""
    drawn = 0
    for index, prompt in enumerate(prompts):
        if should_stop():
            break
        yield Progress("drawing samples", index, len(prompts))
        own = (seed + index) % 2**32
        try:
            layer = family.caption_clip_skip
            asked = {"prompt": prompt, "seed": own, "clip_skip": layer, "upscaler": "none"}
            request = ImageRequest.from_values(asked)
            with family.on_device():
                images, report = render(family, request, should_stop=should_stop)
            for image in images:
                path = folder / f"step-{step:06}-{index}.png"
                write_atomically(path, partial(image.save, format="png"))
                yield SampleReady(str(path), step, prompt, own, report)
            drawn += len(images)
        except SAMPLE_FAILURES as error:
            yield Warned(
                Message(
                    "no sample of {prompt!r} at step {step}: {why}",
                    prompt=prompt, step=step, why=error,
                ),
                "training goes on",
            )  # fmt: skip
            drawn += 1
    if drawn < len(prompts):
        yield _undrawn(len(prompts) - drawn, len(prompts), step)


def _undrawn(count: int, total: int, step: int) -> Warned:
    template = (
        "{count} of {total} samples of step {step} are not drawn: the training was asked to end or "
        "to pause"
    )
    return Warned(Message(template, count=count, total=total, step=step))


def draw_plain(family: ModelFamily, prompt: str, seed: int) -> Image.Image:
    """A quick picture, to be compared with others of its kind. Raises what rendering raises."""
    layer = family.caption_clip_skip
    request = ImageRequest.from_values(
        {"prompt": prompt, "seed": seed, "steps": 8, "clip_skip": layer, "upscaler": "none"}
    )
    with family.on_device():
        return render(family, request)[0][0]
