"""Checks of a piece of work before it is queued: what cannot work is refused at once, and not after
the queue, the model and some minutes. Reads folders and headers; no torch, no picture is decoded.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sdlora.assets.download_sources import HubSource, parse_source
from sdlora.assets.sites import check_online, civitai, hugging_face
from sdlora.data.folder import list_captions, list_pictures
from sdlora.errors import DataError, ModelError
from sdlora.jobs.kinds import Kind, kind_of
from sdlora.jobs.review import lora_of_step, loras_by_step, prompts_of
from sdlora.jobs.run_folder import find_run, read
from sdlora.messages import PerSurface, Setting
from sdlora.models.options import model_options
from sdlora.models.registry import check_packages, detect_family
from sdlora.settings.base import Settings
from sdlora.settings.captioning import NEEDS_ONNX, DescribeSettings
from sdlora.settings.download import DownloadSettings
from sdlora.settings.grid import GridSettings
from sdlora.settings.image_request import ImageRequest
from sdlora.settings.model import ModelSettings
from sdlora.settings.train import TrainSettings
from sdlora.workspace import HUB_ID, Workspace

_TIMES = re.compile(r"\d+\*")  # 3*FOLDER counts thrice


def check_startable(settings: Settings, workspace: Workspace) -> None:
    """Raise what the work would end with, as far as that can be told in a moment. SdloraError."""
    _CHECKS[kind_of(settings)](settings, workspace)


def _training(settings: TrainSettings, workspace: Workspace) -> None:
    _model(settings, workspace)
    others = (*settings.more_data, *settings.regularisation)
    for source in (settings.data, *others, settings.masks, settings.validation_data):
        if source:
            _pictures(Path(_TIMES.sub("", source, count=1)).expanduser())


def _pictures(source: Path) -> None:
    """DataError: neither a folder with pictures nor a file, such as a zip, that may hold some."""
    if source.is_file():
        return
    if not source.is_dir():
        raise DataError(
            "there is no folder {folder}; {advice}", folder=source,
            advice=PerSurface("give a folder with pictures and captions", "choose another set"),
        )  # fmt: skip
    if not list_pictures(source):
        raise DataError("there is no picture in {folder}; put some there first", folder=source)


def _model(settings: ModelSettings, workspace: Workspace) -> None:
    """ModelError: neither here nor the name of one on the Hugging Face hub, or not one of ours; or
    a part that it is to be used with is not here, or a package that reads it."""
    source = Path(workspace.checked_model(settings.model)).expanduser()
    if source.exists():
        detect_family(source)
        check_packages(source)
    model_options(settings, workspace)


def _images(request: ImageRequest, workspace: Workspace) -> None:
    _model(request, workspace)


def _comparison(settings: GridSettings, workspace: Workspace) -> None:
    run = find_run(workspace.runs, settings.run)
    state = read(run)
    files = loras_by_step(run, state)
    for step in settings.checkpoints:
        lora_of_step(files, step)
    prompts_of(settings, state)
    _model(TrainSettings.load(run / "settings.json"), workspace)


def _captions(settings: DescribeSettings, workspace: Workspace) -> None:
    folder = workspace.picture_folder(settings.data)
    _pictures(folder)
    if not settings.every and all(list_captions(folder).values()):
        raise DataError(
            "every picture in {folder} has a caption; {advice}", folder=folder,
            advice=PerSurface(
                "add --every to describe them as well",
                "tick Also for pictures that have a caption to describe them as well",
            ),
        )  # fmt: skip
    source = Path(settings.model).expanduser()
    if settings.model and not source.is_dir() and not HUB_ID.fullmatch(settings.model):
        raise ModelError(
            "{setting}: {model!r} is neither a folder here nor a hub id such as {example}",
            setting=Setting("model"), model=settings.model[:80], example="owner/name",
        )  # fmt: skip
    if settings.by == "wd14" and find_spec("onnxruntime") is None:
        raise ModelError(NEEDS_ONNX)


def _download(settings: DownloadSettings, workspace: Workspace) -> None:
    """DownloadError: the source is neither a name of a site nor an address of a model."""
    source = parse_source(settings.source, (site := hugging_face(), civitai()))
    if isinstance(source, HubSource):
        check_online(site)


_CHECKS: dict[Kind, Callable[[Any, Workspace], None]] = {
    "train": _training,
    "measure": _training,
    "generate": _images,
    "grid": _comparison,
    "describe": _captions,
    "download": _download,
}
