"""The kinds of work that the queue knows: what each is told, and where its folder lies; no torch.

Each piece of work has a run folder, whatever its kind. What the worker does with them stands in
`sdlora.worker.worker`, what their process does in `sdlora.worker.tasks`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sdlora.settings.base import Settings
from sdlora.settings.captioning import DescribeSettings
from sdlora.settings.grid import GridSettings
from sdlora.settings.image_request import ImageRequest
from sdlora.settings.train import TrainSettings
from sdlora.workspace import Workspace

Kind = Literal["train", "generate", "measure", "grid", "describe"]


class MeasureSettings(TrainSettings):
    """A training of which a few steps are taken, to tell its time and memory."""


@dataclass(frozen=True)
class JobKind:
    """A kind of work: its settings, and the folder that it would like to have."""

    settings: type[Settings]
    wish: Callable[[Any, Workspace], Path]


def _dated(settings: Settings, workspace: Workspace) -> Path:
    return workspace.jobs / time.strftime("%Y-%m-%d_%H-%M-%S")


def _of_its_run(settings: GridSettings, workspace: Workspace) -> Path:
    return workspace.runs / settings.run / "grids" / time.strftime("%Y-%m-%d_%H-%M-%S")


KINDS: dict[Kind, JobKind] = {
    "train": JobKind(TrainSettings, lambda settings, workspace: workspace.runs / settings.name),
    "generate": JobKind(ImageRequest, _dated),
    "measure": JobKind(MeasureSettings, _dated),
    "grid": JobKind(GridSettings, _of_its_run),
    "describe": JobKind(DescribeSettings, _dated),
}


def kind_of(settings: Settings) -> Kind:
    """What these are the settings of."""
    return next(kind for kind, row in KINDS.items() if type(settings) is row.settings)
