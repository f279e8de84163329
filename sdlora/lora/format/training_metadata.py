"""How a LoRA was made, said in its own file, so that it can be made again; no torch.

All settings, one hash of all pictures and captions, and the versions of what computed it. Of paths
only the last name stays, for a file is passed on.
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
LIKE_FILE = "like.json"  # in a run's folder: the file that it repeats
PACKAGES = ("torch", "diffusers", "transformers", "peft")
# Settings that may be a path on somebody's computer
_PLACES = ("data", "model", "more_data", "regularisation", "masks", "validation_data")


@dataclass(frozen=True)
class TrainingMetadata:
    """What a file says of its making: settings as they were given, the hash of its pictures."""

    settings: dict[str, Any]
    pictures: str
    versions: dict[str, str]


def versions() -> dict[str, str]:
    """Of this program and of what computes for it."""
    found = {"sdlora": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def recipe_metadata(settings: TrainSettings, pictures: str) -> dict[str, str]:
    """What goes into the file. `pictures` is their hash."""
    values = settings.model_dump(mode="json")
    for name in _PLACES:
        if name in values:
            values[name] = _without_folders(values[name], keep=name == "model")
    said = {SETTINGS: values, VERSIONS: versions()}
    rows = {key: json.dumps(value, ensure_ascii=False) for key, value in said.items()}
    return {**rows, PICTURES: pictures}


def read_recipe(path: Path) -> TrainingMetadata:
    """The recipe in a LoRA file. LoraFileError: it has none, or is no LoRA."""
    said: Mapping[str, str] = read_header(path).metadata
    try:
        settings, found = json_value(said[SETTINGS]), json_value(said[VERSIONS])
        return TrainingMetadata(TrainSettings.from_record(settings), said[PICTURES], dict(found))
    except (AttributeError, KeyError, ValueError, TypeError):
        raise LoraFileError(
            "{file} does not say how it was trained; only LoRAs of this program do, and not those "
            "whose private metadata was taken out",
            file=path,
        ) from None


def compared(folder: Path, pictures: str) -> Iterator[Warned]:
    """What differs from the LoRA that this run repeats, when its folder names one."""
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
    """The last name of a path. A hub id, owner/name, is none, where `keep` allows one."""
    if isinstance(value, list):
        return [_without_folders(one, keep) for one in value]
    plain = str(value).replace("\\", "/").rstrip("/")
    if keep and plain.count("/") == 1 and not plain.startswith((".", "~", "/")):
        return value
    return plain.rpartition("/")[2]
