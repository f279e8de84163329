"""From a request to pictures on the disk, said as events.

`Engine` keeps one model open between requests. `render` is for a family that somebody else has
open, such as a training that wants to see what it has learnt.
"""

from __future__ import annotations

import gc
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import Any

import torch
from PIL import Image

from sdlora.eta import Pace
from sdlora.events import Done, Event, Progress, SampleReady, Started, Step, Stopped, Warned
from sdlora.inference.image_pipeline import ImagePipeline
from sdlora.inference.image_writer import keep, shown_model, written_when_room
from sdlora.inference.plan import GenerationPlan
from sdlora.lora.library.library import Library
from sdlora.models.base import Family
from sdlora.models.registry import open_family
from sdlora.prompt.resources import PromptResources
from sdlora.settings.image_request import ImageRequest
from sdlora.workspace import Workspace


def never() -> bool:
    """Nobody asks to stop."""
    return False


def render(
    family: Family,
    request: ImageRequest,
    library: Library | None = None,
    should_stop: Callable[[], bool] = never,
) -> tuple[list[Image.Image], dict[str, Any]]:
    """The images of a request on a family that is open, such as one in training, and the report
    of the first with the problems of all.

    Afterwards the family is as it was before. Fewer images when `should_stop` said so.
    """
    painter = ImagePipeline(family, library or Library(()))
    request = with_seed(request)
    images: list[Image.Image] = []
    try:
        sheet = painter.prepare(request)
        with closing(painter.paint(request, sheet)) as painting:
            for image in painting:
                if image is not None:
                    images.append(image)
                elif should_stop():
                    break
    finally:
        painter.blend.clear()
    return images, {**sheet.report(0), "problems": sheet.problems}


def with_seed(request: ImageRequest) -> ImageRequest:
    """The request with a seed of its own where it left that open."""
    if request.seed >= 0:
        return request
    return request.model_copy(update={"seed": secrets.randbelow(2**32 - request.count)})


class Engine:
    """Keeps one model open between requests; one request at a time."""

    def __init__(self, workspace: Workspace, device: torch.device, dtype: torch.dtype) -> None:
        self.workspace, self.device, self.dtype = workspace, device, dtype
        self._source = ""
        self._painter: ImagePipeline | None = None

    def generate(
        self, request: ImageRequest, should_stop: Callable[[], bool] = never
    ) -> Iterator[Event]:
        """Make the request's images, each a file in outputs/<day>/.

        ModelError: the model cannot be opened. Closing the iterator ends the work after the step.
        """
        began = time.monotonic()
        request = with_seed(request)
        source = self.workspace.model_source(request.model)
        if source != self._source:
            yield Progress(f"loading the model {shown_model(request.model)}")
        painter = self._opened(source)
        pace = Pace(painter.steps(request), sample_every=0)
        details = {"model": painter.family.title, "seed": str(request.seed)}
        yield Started("generating", pace.steps, {**details, "device": str(self.device)})
        sheet = painter.prepare(request)
        yield from map(Warned, sheet.problems)
        paths: list[str] = []
        known, step = len(sheet.problems), 0
        with closing(painter.paint(request, sheet)) as painting:
            for image in painting:
                if image is not None:
                    outputs, index = self.workspace.outputs, len(paths)
                    write = partial(keep, image, outputs, request, sheet, index)
                    seed = sheet.wishes[index].seed
                    path = yield from written_when_room(write, outputs, seed, should_stop)
                    paths.append(str(path))
                    yield _ready(paths, request, sheet)
                    continue
                step += 1
                pace.stepped(step)
                yield Step(step, pace.steps, seconds_left=pace.seconds_left(step))
                if should_stop():
                    yield Stopped(paths[0] if paths else "", step)
                    return
        yield from map(Warned, sheet.problems[known:])
        yield Done(paths[0], time.monotonic() - began)

    def close(self) -> None:
        """Let go of the model and the device's memory."""
        self._painter, self._source = None, ""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _opened(self, source: str) -> ImagePipeline:
        if self._painter is None or source != self._source:
            self.close()  # two models at once may not fit
            family = open_family(source, self.dtype, self.device)
            library, book = (
                Library.for_workspace(self.workspace),
                PromptResources.for_workspace(self.workspace),
            )
            self._painter, self._source = ImagePipeline(family, library, book), source
        return self._painter


def _ready(paths: list[str], request: ImageRequest, sheet: GenerationPlan) -> SampleReady:
    index = len(paths) - 1
    seed = sheet.wishes[index].seed
    return SampleReady(paths[-1], index, request.prompt, seed, sheet.report(index))
