"""Settings, dataset hash and versions stored in a LoRA file, to train it again; no torch.

The dataset hash covers all pictures and captions; versions are those of the libraries that computed
it. Of paths only the last name is stored, because LoRA files are shared.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sdlora import __version__
from sdlora.errors import LoraFileError
from sdlora.events import Warned
from sdlora.lora.format.header import read_header
from sdlora.messages import Message
from sdlora.settings.train import TrainSettings
from sdlora.text_files import json_value

SETTINGS, PICTURES, VERSIONS = "sdlora_settings", "sdlora_pictures", "sdlora_versions"
LIKE_FILE = "like.json"  # in a run's folder: the LoRA file whose training it repeats
PACKAGES = ("torch", "diffusers", "transformers", "peft")
# Settings that may be a path on the user's computer
_PATH_SETTINGS = ("data", "model", "more_data", "regularisation", "masks", "validation_data")


@dataclass(frozen=True)
class TrainingMetadata:
    """Training data of a LoRA file: settings as given, hash of the dataset, library versions."""

    settings: dict[str, Any]
    pictures: str
    versions: dict[str, str]


def versions() -> dict[str, str]:
    """Return the versions of this program and of PACKAGES."""
    installed = {"sdlora": __version__}
    for package in PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return installed


def reproduction_metadata(settings: TrainSettings, pictures: str) -> dict[str, str]:
    """Return the metadata to store in the file. `pictures` is the hash of the dataset."""
    values = settings.model_dump(mode="json")
    for name in _PATH_SETTINGS:
        if name in values:
            values[name] = _without_folders(values[name], keep=name == "model")
    tables = {SETTINGS: values, VERSIONS: versions()}
    rows = {key: json.dumps(value, ensure_ascii=False) for key, value in tables.items()}
    return {**rows, PICTURES: pictures}


def read_training_metadata(path: Path) -> TrainingMetadata:
    """Read a LoRA file's training metadata. LoraFileError when it has none, or is no LoRA."""
    metadata: Mapping[str, str] = read_header(path).metadata
    try:
        settings, recorded_versions = json_value(metadata[SETTINGS]), json_value(metadata[VERSIONS])
        return TrainingMetadata(
            TrainSettings.from_record(settings), metadata[PICTURES], dict(recorded_versions)
        )
    except (AttributeError, KeyError, ValueError, TypeError):
        raise LoraFileError(
            "{file} does not say how it was trained; only LoRAs of this program do, and not those "
            "whose private metadata was taken out",
            file=path,
        ) from None


def reproduction_warnings(folder: Path, pictures: str) -> Iterator[Warned]:
    """Yield warnings of what differs from the LoRA whose training this run repeats, if any."""
    try:
        like = json_value((folder / LIKE_FILE).read_bytes())
    except (OSError, ValueError):
        return
    if like["pictures"] != pictures:
        template = "the pictures or captions are not those that {file} was trained on"
        yield Warned(Message(template, file=like["file"]), "it will be another LoRA")
    now = versions()
    then = like["versions"]
    differ = [f"{k} {v}, then {then.get(k, 'none')}" for k, v in now.items() if then.get(k) != v]
    if differ:
        template = "{file} was trained with other versions: now {versions}"
        message = Message(template, file=like["file"], versions="; ".join(differ))
        yield Warned(message, "the result may differ in its last digits")


def _without_folders(value: Any, keep: bool) -> Any:
    """Return the last name of each path. With `keep`, a hub id (owner/name) stays whole."""
    if isinstance(value, list):
        return [_without_folders(item, keep) for item in value]
    plain = str(value).replace("\\", "/").rstrip("/")
    if keep and plain.count("/") == 1 and not plain.startswith((".", "~", "/")):
        return value
    return plain.rpartition("/")[2]
