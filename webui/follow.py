"""A run on a tab: started, kept on screen while it goes on, stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from sdlora import runs
from sdlora.checked import Settings
from sdlora.errors import SdloraError
from webui import markup
from webui.studio import Run, Studio

Updates = dict[Component, Any]


@dataclass(frozen=True)
class Follower:
    """What is done with every run on a tab; `find` knows it by name, `view` brings it on screen,
    `marks` makes what marks the fields that an error names."""

    studio: Studio
    notice: Component
    find: Callable[[str], Run | None]
    view: Callable[[Run | None], Updates]
    marks: Callable[[SdloraError], str] = lambda error: ""

    def start(self, settings: Callable[[], Settings]) -> Updates:
        """Put work into the queue; what is wrong with the settings is said on the tab."""
        try:
            run = self.studio.start(settings())
        except SdloraError as error:
            return {self.notice: markup.problem(error.message) + self.marks(error)}
        return self.view(run)

    def tick(self, name: str, seen: str = "") -> Any:
        """The run as it is now, unless the screen has `seen` just that."""
        run = self.find(name)
        return gr.skip() if run and run.version == seen else self.view(run)

    def stop(self, name: str) -> Any:
        """Ask a run to end after its step; when that was asked already, end it at once."""
        run = self.find(name)
        if run and run.stopping:
            runs.stop(run.folder, now=True)
        elif run and run.live:
            runs.cancel(run.folder, self.studio.queue)
        return self.tick(name)
