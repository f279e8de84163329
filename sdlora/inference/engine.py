"""Engine of generation: from a request to pictures on the disk, as events.

`Engine` keeps one model open between requests. `render` is for a family that somebody else has
open, such as a training that wants to see what it has learnt.
"""

from __future__ import annotations

import gc
import secrets
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from sdlora.assets.checkpoints import CheckpointLibrary
from sdlora.eta import Pace
from sdlora.events import Done, Event, Progress, SampleReady, Started, Step, Stopped, Warned
from sdlora.inference.image_pipeline import ImageDone, ImagePipeline
from sdlora.inference.image_writer import SavedImage, save_image, saved_when_room, shown_model
from sdlora.inference.plan import GenerationPlan, ImageProblem, merged_problems
from sdlora.lora.library.library import Library
from sdlora.models.base import ModelFamily
from sdlora.models.options import DEFAULT_OPTIONS, ModelOptions, model_options
from sdlora.models.registry import open_family
from sdlora.prompt.resources import PromptResources
from sdlora.settings.image_request import ImageRequest
from sdlora.workspace import Workspace


def never_stop() -> bool:
    """Return False: nobody asks to stop."""
    return False


def render(
    family: ModelFamily,
    request: ImageRequest,
    library: Library | None = None,
    should_stop: Callable[[], bool] = never_stop,
) -> tuple[list[Image.Image], dict[str, Any]]:
    """Return the images of a request on a family that is open, such as one in training, and the
    report of the first with the problems of all.

    Afterwards the family is as it was before. Fewer images when `should_stop` said so.
    """
    pipeline = ImagePipeline(family, library or Library(()))
    images: list[Image.Image] = []
    later: list[ImageProblem] = []
    try:
        plan = pipeline.plan(with_seed(request))
        with closing(pipeline.generate(plan)) as events:
            for event in events:
                if isinstance(event, ImageDone):
                    images.append(event.image)
                    later += event.problems
                elif should_stop():
                    break
    finally:
        pipeline.blend.clear()
    problems = merged_problems([*plan.problems, *later])
    return images, {**plan.report(0, later), "problems": [p.message for p in problems]}


def with_seed(request: ImageRequest) -> ImageRequest:
    """The request with a seed of its own where it left that open."""
    if request.seed >= 0:
        return request
    return request.model_copy(update={"seed": secrets.randbelow(2**32 - request.count)})


class Engine:
    """Keeps one model open between requests; one request at a time."""

    def __init__(self, workspace: Workspace, device: torch.device, dtype: torch.dtype) -> None:
        self.workspace, self.device, self.dtype = workspace, device, dtype
        self._opened_as = ("", DEFAULT_OPTIONS)
        self._pipeline: ImagePipeline | None = None

    def generate(
        self, request: ImageRequest, should_stop: Callable[[], bool] = never_stop
    ) -> Iterator[Event]:
        """Make the request's images, each a file in outputs/<day>/.

        ModelError: the model cannot be opened. Closing the iterator ends the work after the step.
        """
        began = time.monotonic()
        request = with_seed(request)
        source = self.workspace.checked_model(request.model)
        chosen = source, model_options(request, self.workspace)
        if chosen != self._opened_as:
            yield Progress(f"loading the model {shown_model(request.model)}")
        pipeline = self._opened(*chosen)
        model_hash = CheckpointLibrary(self.workspace).known_hash(source)
        plan = replace(pipeline.plan(request), model_hash=model_hash)
        pace = Pace(plan.total_steps, sample_every=0)
        details = {**pipeline.family.details, "seed": str(request.seed)}
        yield Started("generating", pace.steps, {**details, "device": str(self.device)})
        yield from (Warned(problem.message) for problem in plan.problems)
        paths: list[str] = []
        later: list[ImageProblem] = []
        step = 0
        with closing(pipeline.generate(plan)) as events:
            for event in events:
                if isinstance(event, ImageDone):
                    saved = yield from self._save(event, plan, should_stop)
                    paths.append(str(saved.path))
                    later += [*event.problems, *saved.problems]
                    yield _ready(saved.path, plan, event.number, later)
                    continue
                step += 1
                pace.stepped(step)
                yield Step(step, pace.steps, seconds_left=pace.seconds_left(step))
                if should_stop():
                    yield Stopped(paths[0] if paths else "", step)
                    return
        yield from (Warned(problem.message) for problem in merged_problems(later))
        yield Done(paths[0], time.monotonic() - began)

    def _save(
        self, done: ImageDone, plan: GenerationPlan, should_stop: Callable[[], bool]
    ) -> Generator[Event, None, SavedImage]:
        outputs, seed = self.workspace.outputs, plan.images[done.number].seed
        write = partial(save_image, done, plan, outputs)
        return (yield from saved_when_room(write, outputs, seed, should_stop))

    def close(self) -> None:
        """Let go of the model and the device's memory."""
        self._pipeline, self._opened_as = None, ("", DEFAULT_OPTIONS)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _opened(self, source: str, options: ModelOptions) -> ImagePipeline:
        if self._pipeline is None or (source, options) != self._opened_as:
            self.close()  # two models at once may not fit
            family = open_family(source, self.dtype, self.device, options)
            library, book = (
                Library.for_workspace(self.workspace),
                PromptResources.for_workspace(self.workspace),
            )
            self._pipeline = ImagePipeline(family, library, book)
            self._opened_as = source, options
        return self._pipeline


def _ready(
    path: Path, plan: GenerationPlan, number: int, later: Sequence[ImageProblem]
) -> SampleReady:
    seed = plan.images[number].seed
    return SampleReady(str(path), number, plan.request.prompt, seed, plan.report(number, later))
