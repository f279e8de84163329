"""Job kinds: the settings of each kind of job, and the place of its folder; no torch.

Each job has a run folder, whatever its kind. `sdlora.worker.worker` holds the worker's part of a
job, `sdlora.worker.tasks` that of the job's process.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sdlora.settings.base import Settings
from sdlora.settings.captioning import DescribeSettings
from sdlora.settings.download import DownloadSettings
from sdlora.settings.grid import GridSettings
from sdlora.settings.image_request import ImageRequest
from sdlora.settings.train import TrainSettings
from sdlora.workspace import Workspace

Kind = Literal["train", "generate", "measure", "grid", "describe", "download"]
# The worker takes work for the device, the downloader what only waits for the network: neither
# waits for the other
WorkerRole = Literal["worker", "downloader"]
DOWNLOADS: tuple[Kind, ...] = ("download",)


class MeasureSettings(TrainSettings):
    """A training of which a few steps are taken, to tell its time and memory."""


@dataclass(frozen=True)
class JobKind:
    """A kind of job: its settings, and its folder if that name is free."""

    settings: type[Settings]
    default_folder: Callable[[Any, Workspace], Path]


def _dated_folder(settings: Settings, workspace: Workspace) -> Path:
    return workspace.jobs / time.strftime("%Y-%m-%d_%H-%M-%S")


def _grid_folder(settings: GridSettings, workspace: Workspace) -> Path:
    return workspace.runs / settings.run / "grids" / time.strftime("%Y-%m-%d_%H-%M-%S")


KINDS: dict[Kind, JobKind] = {
    "train": JobKind(TrainSettings, lambda settings, workspace: workspace.runs / settings.name),
    "generate": JobKind(ImageRequest, _dated_folder),
    "measure": JobKind(MeasureSettings, _dated_folder),
    "grid": JobKind(GridSettings, _grid_folder),
    "describe": JobKind(DescribeSettings, _dated_folder),
    "download": JobKind(DownloadSettings, _dated_folder),
}


def role_of(kind: str) -> WorkerRole:
    """Return the role of the process that takes jobs of a kind, also one of another version."""
    return "downloader" if kind in DOWNLOADS else "worker"


def kind_of(settings: Settings) -> Kind:
    """Return the job kind that these settings belong to."""
    return next(kind for kind, row in KINDS.items() if type(settings) is row.settings)
