"""Files of a diffusers repository that are needed: components, their configurations, one set of
weights each, safetensors alone.

The weights are written under the plain names, without `.fp16`, so that the folder opens as any
other. Source of the names: diffusers, `pipelines/pipeline_loading_utils.py`, and transformers'
sharded checkpoints.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdlora.errors import DownloadError
from sdlora.files import write_atomically

INDEX = "model_index.json"
UPSCALER = "upscaler"  # the folder of a model's own, which diffusers does not know
# judge or read pictures; a Stable Diffusion opens and works without them
LEFT_OUT = ("safety_checker", "image_encoder")
_CONFIGURATION = (".json", ".txt", ".model")
_OTHER_WEIGHTS = (".bin", ".ckpt", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".pb")
_NAME = re.compile(r"(\w+)/(\w[\w.-]*)", re.ASCII)
_SHARD = re.compile(r"-\d{5}-of-\d{5}")
_SHARD_INDEX = re.compile(r"(.+)\.safetensors\.index(?:\.(\w+))?\.json")
_USUAL_STEMS = ("diffusion_pytorch_model", "model")


@dataclass(frozen=True)
class WeightsName:
    """Name of a weights file or of an index of shards, in its parts: `model.fp16.safetensors`."""

    stem: str
    variant: str

    @classmethod
    def from_file(cls, name: str) -> WeightsName | None:
        """Return the parts of a name; None: it is of no weights in safetensors."""
        if match := _SHARD_INDEX.fullmatch(name):
            return cls(match[1].partition(".")[0], match[2] or match[1].partition(".")[2])
        if not name.endswith(".safetensors"):
            return None
        stem, *variants = _SHARD.sub("", name).removesuffix(".safetensors").split(".")
        return cls(stem, ".".join(variants))


def component_names(index: Any, repository: str) -> list[str]:
    """Return the components that a model's index names, but those that are left out."""
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
        raise DownloadError(
            "{name} is no diffusers model: its {file} does not name a pipeline",
            name=repository, file=INDEX,
        )  # fmt: skip
    parts = [name for name, value in index.items() if _is_component(value)]
    return [name for name in parts if name not in LEFT_OUT]


def _is_component(value: Any) -> bool:
    return (
        isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value)
    )


def needed_files(paths: Iterable[str], components: list[str], variant: str) -> dict[str, str]:
    """Return path in the repository -> path in the folder of all that is needed. `variant`: `fp16`
    or `full`, where there is a choice. DownloadError: a component has no safetensors."""
    by_component: dict[str, list[str]] = {name: [] for name in components}
    needed = {INDEX: INDEX}
    for path in paths:
        match = _NAME.fullmatch(path)
        if match and match[1] in by_component:
            by_component[match[1]].append(match[2])
        elif match and match[1] == UPSCALER and path.endswith(".safetensors"):
            needed[path] = path
    for component, names in by_component.items():
        for name in _files_of(component, names, variant):
            needed[f"{component}/{name}"] = f"{component}/{plain_name(name)}"
    return needed


def _files_of(component: str, names: list[str], variant: str) -> list[str]:
    """Return the configurations of a component, and its weights of one variant."""
    weights = {name: parts for name in names if (parts := WeightsName.from_file(name))}
    others = [n for n in names if n not in weights and n.lower().endswith(_CONFIGURATION)]
    if not weights:
        pickles = [name for name in names if name.lower().endswith(_OTHER_WEIGHTS)]
        if pickles:
            raise DownloadError(
                "{component} is there as {files} only, not as safetensors; files that can hold a "
                "program are not downloaded: look for another revision or repository",
                component=component, files=pickles[:3],
            )  # fmt: skip
        return others
    order = ("fp16", "") if variant == "fp16" else ("", "fp16")
    stems = {parts.stem for parts in weights.values()}
    stem = next((name for name in _USUAL_STEMS if name in stems), min(stems))
    for choice in order:
        chosen = [n for n, parts in weights.items() if parts == WeightsName(stem, choice)]
        if any(name.endswith(".safetensors") for name in chosen):
            return others + chosen
    raise DownloadError(
        "{component} has weights of unusual names only: {files}; download one of them by its name",
        component=component, files=sorted(weights)[:5],
    )  # fmt: skip


def plain_name(name: str) -> str:
    """Return the name of a weights file without its variant."""
    return name.replace(".fp16", "") if WeightsName.from_file(name) else name


def finish_folder(folder: Path) -> None:
    """Make the folder whole in itself: its index without the components left out, indexes of shards
    with the plain names."""
    _rewrite(folder / INDEX, _index_without)
    for path in folder.glob("*/*.safetensors.index.json"):
        _rewrite(path, _plain_shards)


def _rewrite(path: Path, change: Any) -> None:
    text = json.dumps(change(json.loads(path.read_text("utf-8"))), indent=2) + "\n"
    write_atomically(path, lambda to: to.write_text(text, encoding="utf-8"))


def _index_without(index: Mapping[str, Any]) -> dict[str, Any]:
    return {name: [None, None] if name in LEFT_OUT else value for name, value in index.items()}


def _plain_shards(index: Mapping[str, Any]) -> dict[str, Any]:
    shards = {name: plain_name(str(file)) for name, file in index["weight_map"].items()}
    return {**index, "weight_map": shards}
