"""Base model files in folders: listed, never opened, each with a name of its own; no torch.

A model is a file (.safetensors, .gguf, or of a kind that is refused with its reason), or a
diffusers folder. Its name is the file's stem; of several files of one stem the first keeps it, and
the others are named with their folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from sdlora.folder_walk import SubFolder, walk_folders
from sdlora.messages import Message, readable

SAFETENSORS = (".safetensors", ".sft")
READABLE = (*SAFETENSORS, ".gguf")
OTHER_KINDS = (".ckpt", ".pt", ".pth", ".bin")  # listed with the reason they are not read
# A1111's notes, the Civitai extensions' page, StabilityMatrix's and LoRA-Manager's
MODEL_SIDECARS = (".json", ".civitai.info", ".cm-info.json", ".metadata.json")
MODEL_PREVIEWS = tuple(
    before + ending for ending in (".png", ".jpg", ".jpeg", ".webp") for before in (".preview", "")
)
PARTS_FOLDER = "vae"  # in models/: VAEs, which are no models
# where A1111, Forge, SD.Next, SwarmUI; ComfyUI, Fooocus; StabilityMatrix; InvokeAI keep them, below
# the folder of the program. ComfyUI's last two and StabilityMatrix's hold denoisers alone
MODEL_PLACES = (
    *("models/Stable-diffusion", "models/checkpoints", "models/StableDiffusion"),
    *("models/diffusers", "models/diffusion_models", "models/unet", "models/DiffusionModels"),
    *("models/sd-1/main", "models/sd-2/main", "models/sdxl/main"),
)
INDEX_FILE = "model_index.json"
EMPTY = "0 0"  # the stamp of a link to nowhere, and of an empty folder


class ModelFile(NamedTuple):
    """A base model as listed. A stamp is `size mtime_ns`: the same stamp, the same content."""

    path: str
    name: str  # unique in a listing
    folder: str  # below the root, with '/'; empty in the root itself
    stamp: str
    is_folder: bool = False
    sidecars: tuple[str, ...] = ()  # the path of each of MODEL_SIDECARS; empty: it does not exist
    beside: str = ""  # the stamps of the sidecars
    preview: str = ""  # the path of a picture of the same name; empty: none

    @property
    def size_bytes(self) -> int:
        """Bytes of the file, or of all files of the folder."""
        return int(self.stamp.partition(" ")[0])


def program_places(folder: Path, places: Iterable[str]) -> list[Path]:
    """Return the `places` of a program's folder, of its `Data` or of its `models`, in whichever
    case they are written: programs that run on Windows write `Models/Lora`."""
    paths: list[Path] = []
    starts = [folder, *_folders_called(folder, "data")]
    for place in places:
        top, *rest = place.lower().split("/")
        parents = [folder] if folder.name.lower() == top else []
        parents = parents or [path for start in starts for path in _folders_called(start, top)]
        for part in rest:
            parents = [path for parent in parents for path in _folders_called(parent, part)]
        paths += parents
    return list(dict.fromkeys(paths))


def _folders_called(parent: Path, name: str) -> list[Path]:
    """The folders in `parent` of a name, whatever its case."""
    try:
        return sorted(p for p in parent.iterdir() if p.name.lower() == name and p.is_dir())
    except OSError:
        return []


def list_models(roots: Iterable[Path]) -> tuple[list[ModelFile], list[Message]]:
    """Return (models of each root, those nearest to it first; messages about folders that could
    not be listed), see `walk_folders`."""
    models: list[ModelFile] = []

    def visit(folder: SubFolder) -> list[SubFolder]:
        here, folders = _models_in(_entries(folder.path), folder.below)
        models.extend(here)
        return folders

    problems = walk_folders(roots, visit, "folder of models", "models")
    return _named(models), problems


def model_key(name: str) -> str:
    """Return the form in which names are compared: case, '.', '_', '-' and space are alike."""
    same = name.casefold().replace("\\", "/")
    return same.replace(".", " ").replace("_", " ").replace("-", " ")


def model_called(name: str, models: Iterable[ModelFile]) -> ModelFile | None:
    """Return the model that a name means, with or without its file's ending; None: there is
    none."""
    models = list(models)
    stem, dot, ending = name.rpartition(".")
    spellings = [name, stem] if (dot + ending).lower() in (*READABLE, *OTHER_KINDS) else [name]
    for key in (str, model_key):
        for spelling in spellings:
            wanted_key = key(spelling)
            for model in models:
                if wanted_key in (key(model.name), key(_full_name(model)), key(_file(model))):
                    return model
    return None


def _full_name(model: ModelFile) -> str:
    stem = _stem(model)
    return f"{model.folder}/{stem}" if model.folder else stem


def _file(model: ModelFile) -> str:
    return os.path.basename(model.path)


def _entries(path: str) -> dict[str, os.DirEntry[str]]:
    with os.scandir(path) as listing:
        names = {entry.name: entry for entry in listing if entry.name[0] != "."}
    return dict(sorted(names.items(), key=lambda row: (row[0].lower(), row[0])))


def _models_in(
    entries: dict[str, os.DirEntry[str]], below: str
) -> tuple[list[ModelFile], list[SubFolder]]:
    """Return (models of a folder, the folders in it to be searched)."""
    by_name = {name.lower(): entry for name, entry in entries.items()}
    models: list[ModelFile] = []
    folders: list[SubFolder] = []
    for name, entry in entries.items():
        ending = os.path.splitext(name)[1].lower()
        if _is_folder(entry):
            stamp = _folder_stamp(entry.path)
            if stamp and (stamp != EMPTY or not below):
                models.append(_beside(entry, name, stamp, below, by_name))
            elif below or name.lower() != PARTS_FOLDER:
                folders.append(SubFolder(entry.path, f"{below}/{name}".strip("/")))
        elif ending in READABLE or ending in OTHER_KINDS:
            models.append(_beside(entry, name[: -len(ending)], _stamp(entry), below, by_name))
    return sorted(models, key=_rank), folders


def _rank(model: ModelFile) -> int:
    """Return the order in which models of one name are given it: the most exact first."""
    path = model.path.lower()
    return 0 if path.endswith(SAFETENSORS) else 2 if path.endswith(OTHER_KINDS) else 1


def _beside(
    entry: os.DirEntry[str], stem: str, stamp: str, below: str,
    by_name: dict[str, os.DirEntry[str]],
) -> ModelFile:  # fmt: skip
    """Return a model with what lies beside it."""
    low = stem.lower()
    sidecars = [by_name.get(low + ending) for ending in MODEL_SIDECARS]
    preview = next((by_name[low + e].path for e in MODEL_PREVIEWS if low + e in by_name), "")
    return ModelFile(
        entry.path, stem, below, stamp, _is_folder(entry),
        tuple(sidecar.path if sidecar else "" for sidecar in sidecars),
        ",".join(_stamp(sidecar) if sidecar else "" for sidecar in sidecars), preview,
    )  # fmt: skip


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _folder_stamp(path: str) -> str:
    """Return the stamp of a diffusers folder, of its files' sizes and times; '' for another one,
    unless it is empty, and so no place of models either."""
    try:
        entries = _entries(path)
        config = next((p for p in ("unet", "transformer") if p in entries), "")
        if INDEX_FILE in entries or (config and os.path.exists(f"{path}/{config}/config.json")):
            files = list(entries.values())
            for entry in list(files):
                files += _entries(entry.path).values() if _is_folder(entry) else []
            stats = [entry.stat() for entry in files if not _is_folder(entry)]
            return f"{sum(s.st_size for s in stats)} {max(s.st_mtime_ns for s in stats)}"
        return "" if entries else EMPTY
    except (OSError, ValueError):
        return ""


def _stamp(entry: os.DirEntry[str]) -> str:
    try:
        stat = entry.stat()
    except OSError:  # a link to nowhere, or gone since it was listed
        return EMPTY
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _stem(model: ModelFile) -> str:
    file = _file(model)
    ending = os.path.splitext(file)[1].lower()
    known = not model.is_folder and (ending in READABLE or ending in OTHER_KINDS)
    return file[: -len(ending)] if known else file


def _named(models: list[ModelFile]) -> list[ModelFile]:
    """Return the models, each with a name that no other has. 'starter' is the shipped model's."""
    taken = {"starter"}
    named = []
    for model in models:
        name = next((n for n in _possible_names(model) if n.casefold() not in taken), model.path)
        taken.add(name.casefold())
        named.append(model._replace(name=name))
    return named


def _possible_names(model: ModelFile) -> Iterator[str]:
    stem, file = _stem(model), _file(model)
    yield stem
    folders = Path(model.path).parent.parts
    for depth in range(1, min(len(folders), 5)):
        yield "/".join([*folders[-depth:], stem])
        yield "/".join([*folders[-depth:], file])


def readable_names(models: Iterable[ModelFile]) -> list[str]:
    """Return the names on offer: of models that may be opened, and that are UTF-8."""
    return [
        model.name for model in models
        if readable(model.name) == model.name
        and (model.is_folder or model.path.lower().endswith(READABLE))
    ]  # fmt: skip
