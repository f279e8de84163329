"""From a request to pictures on the disk, said as events.

`Engine` keeps one model open between requests. `render` is for a family that somebody else has
open, such as a training that wants to see what it has learnt.
"""

from __future__ import annotations

import gc
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
from PIL import Image

from sdlora import __version__
from sdlora.events import Done, Event, Progress, SampleReady, Started, Step, Stopped, Warned
from sdlora.families import open_family
from sdlora.families.base import Family
from sdlora.lora.library import Library
from sdlora.pace import Pace
from sdlora.paint import SAMPLERS, Painter, Sheet
from sdlora.prompt.infotext import infotext, lora_hashes, write_png
from sdlora.settings import ImageRequest
from sdlora.workspace import Workspace, free_path


class _StopAsked(Exception):
    """Ends a pipeline's call from within its callback: nothing is computed after the step."""


def never() -> bool:
    """Nobody asks to stop."""
    return False


def render(
    family: Family,
    request: ImageRequest,
    library: Library | None = None,
    should_stop: Callable[[], bool] = never,
) -> tuple[list[Image.Image], dict[str, Any]]:
    """The images of a request on a family that is open, such as one in training, and the report.

    Afterwards the family is as it was before. Fewer images when `should_stop` said so.
    """
    painter = Painter(family, library or Library(()))
    request = with_seed(request)
    images: list[Image.Image] = []

    def on_step() -> None:
        if should_stop():
            raise _StopAsked

    try:
        sheet = painter.prepare(request)
        with suppress(_StopAsked):
            for image in painter.paint(request, sheet, on_step):
                images.append(image)
    finally:
        painter.blend.clear()
    return images, sheet.report


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
        self._painter: Painter | None = None

    def generate(
        self, request: ImageRequest, should_stop: Callable[[], bool] = never
    ) -> Iterator[Event]:
        """Make the request's images, each a PNG in outputs/<day>/.

        ModelError: the model cannot be opened. Closing the iterator ends the work after the step.
        """
        began = time.monotonic()
        request = with_seed(request)
        source = self.workspace.model_source(request.model)
        if source != self._source:
            yield Progress(f"loading the model {shown_model(request.model)}")
        painter = self._opened(source)
        yield from _in_a_thread(partial(self._work, painter, request, began), should_stop)

    def close(self) -> None:
        """Let go of the model and the device's memory."""
        self._painter, self._source = None, ""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _opened(self, source: str) -> Painter:
        if self._painter is None or source != self._source:
            self.close()  # two models at once may not fit
            family = open_family(source, self.dtype, self.device)
            painter = Painter(family, Library.of(self.workspace))
            self._painter, self._source = painter, source
        return self._painter

    def _work(
        self,
        painter: Painter,
        request: ImageRequest,
        began: float,
        say: Callable[[Event], None],
        stopping: Callable[[], bool],
    ) -> None:
        """The thread's part of `generate`."""
        pace = Pace(request.steps * -(-request.count // request.batch_size), sample_every=0)
        details = {"model": painter.family.title, "seed": str(request.seed)}
        say(Started("generating", pace.steps, {**details, "device": str(self.device)}))
        sheet = painter.prepare(request)
        known = len(sheet.problems)
        for problem in sheet.problems:
            say(Warned(problem))
        steps = count(1)
        paths: list[str] = []

        def on_step() -> None:
            step = next(steps)
            pace.stepped(step)
            say(Step(step, pace.steps, seconds_left=pace.seconds_left(step)))
            if stopping():
                raise _StopAsked(step)

        try:
            for index, image in enumerate(painter.paint(request, sheet, on_step)):
                seed = request.seed + index
                paths.append(str(self._save(image, request, sheet, seed)))
                say(SampleReady(paths[-1], index, request.prompt, seed, sheet.report))
        except _StopAsked as asked:
            say(Stopped(paths[0] if paths else "", asked.args[0]))
            return
        for problem in sheet.problems[known:]:
            say(Warned(problem))
        say(Done(paths[0], time.monotonic() - began))

    def _save(self, image: Image.Image, request: ImageRequest, sheet: Sheet, seed: int) -> Path:
        now = time.localtime()
        folder = self.workspace.outputs / time.strftime("%Y-%m-%d", now)
        path = free_path(folder / f"{time.strftime('%H%M%S', now)}-{seed}.png")
        return write_png(image, path, parameters(request, sheet, seed, image.size))


def parameters(request: ImageRequest, sheet: Sheet, seed: int, size: tuple[int, int]) -> str:
    """A1111's text for one image of a request, the prompt with its tags as it was written."""
    sampler = SAMPLERS[request.sampler]
    fields = {
        "Steps": request.steps,
        "Sampler": sampler.title,
        "Schedule type": sampler.schedule,
        "CFG scale": f"{request.guidance:g}",
        "Seed": seed,
        "Size": f"{size[0]}x{size[1]}",
        "Model": shown_model(request.model),
        "Lora hashes": lora_hashes({use.name: use.hash for use in sheet.loras}),
        "Version": f"sdlora {__version__}",
    }
    return infotext(request.prompt, request.negative_prompt, fields)


def shown_model(model: str) -> str:
    """A model's name without the folders that lead to it."""
    return model.replace("\\", "/").rstrip("/").rpartition("/")[2]


def _in_a_thread(
    work: Callable[[Callable[[Event], None], Callable[[], bool]], None],
    should_stop: Callable[[], bool],
) -> Iterator[Event]:
    """What `work(say, stopping)` says, when it says it: a pipeline does not pause in its call.

    Its errors are raised here. When the iterator is closed, `stopping` becomes true.
    """
    said: SimpleQueue[Event | None] = SimpleQueue()
    closed = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work, said.put, lambda: closed.is_set() or should_stop())
        future.add_done_callback(lambda _: said.put(None))
        try:
            while (event := said.get()) is not None:
                yield event
        finally:
            closed.set()
        future.result()
