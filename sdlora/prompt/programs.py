"""What other programs write into pictures as JSON, told by its keys and taken over by tables.

InvokeAI: chunk invokeai_metadata (invokeai/app/invocations/metadata.py, CoreMetadata). SwarmUI:
chunk parameters (docs/Image Metadata Format.md). Fooocus: chunk parameters
(modules/meta_parser.py, FooocusMetadataParser). ComfyUI has a page of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from sdlora.prompt.recalled import Recalled, with_loras
from sdlora.prompt.scanner import number

_Json = Mapping[str, Any]
_Lora = tuple[str, float, float]  # name, unet, text encoder


@dataclass(frozen=True)
class Program:
    """A program's JSON: the keys of which it has one, the object that holds all the rest, and the
    places of what is taken over, each the first of several that has a value."""

    name: str
    signs: tuple[str, ...]
    within: str
    prompt: str
    negative: str
    fields: Mapping[str, str]
    loras: Callable[[_Json], Iterator[_Lora]]

    def read(self, record: _Json) -> Recalled | None:
        """What the JSON object says; None when another program wrote it."""
        if not any(sign in record for sign in self.signs):
            return None
        inner = record.get(self.within) if self.within else record
        values = inner if isinstance(inner, Mapping) else {}
        fields = {name: said(values, places) for name, places in self.fields.items()}
        sides = re.findall("[0-9]+", fields.pop("Size", ""))
        size = {"Size": "x".join(sides[:2])} if len(sides) >= 2 else {}
        return Recalled(
            with_loras(said(values, self.prompt), self.loras(values)),
            said(values, self.negative),
            {name: value for name, value in fields.items() if value} | size,
            self.name,
        )


def said(record: Any, places: str) -> str:
    """The text or number at the first of the places that has one: 'model.name model.model_name';
    of 'width*height' both, as WxH."""
    for place in places.split():
        values = [_at(record, path) for path in place.split("*")]
        if all(isinstance(value, str | int | float) and value != "" for value in values):
            return "x".join(str(value) for value in values)
    return ""


def _at(record: Any, path: str) -> Any:
    for key in path.split("."):
        record = record.get(key) if isinstance(record, Mapping) else None
    return record


def file_stem(name: str) -> str:
    """A model's name without its file ending; folders stay, with '/' between them."""
    path = PurePosixPath(name.replace("\\", "/"))
    is_file = path.suffix.lower() in (".safetensors", ".ckpt", ".pt", ".bin", ".gguf")
    return str(path.with_suffix("")) if is_file else str(path)


def _invoke_loras(record: _Json) -> Iterator[_Lora]:
    for lora in _listed(record.get("loras")):
        weight = number(said(lora, "weight") or "1") or 0.0
        yield said(lora, "model.name lora.model_name"), weight, weight


def _swarm_loras(record: _Json) -> Iterator[_Lora]:
    names, weights, encoders = (
        [str(part).strip() for part in _listed(record.get(key))]
        for key in ("loras", "loraweights", "loratencweights")
    )
    for index, name in enumerate(names):
        weight = _number_at(weights, index, 1.0)
        yield file_stem(name), weight, _number_at(encoders, index, weight)


def _fooocus_loras(record: _Json) -> Iterator[_Lora]:
    listed = [lora for lora in _listed(record.get("loras")) if isinstance(lora, list)]
    combined = [str(value) for key, value in record.items() if key.startswith("lora_combined_")]
    for lora in listed or [value.rsplit(" : ", 1) for value in combined]:
        name, weight, *_ = (*map(str, lora), "", "")
        value = number(weight)
        yield file_stem(name), 1.0 if value is None else value, 1.0 if value is None else value


def _listed(value: Any) -> list[Any]:
    """A list, or the parts of 'a,b'."""
    if isinstance(value, str):
        return value.split(",") if value else []
    return value if isinstance(value, list) else []


def _number_at(values: list[str], index: int, otherwise: float) -> float:
    value = number(values[index]) if index < len(values) else None
    return otherwise if value is None else value


PROGRAMS = (
    Program(
        "InvokeAI", ("positive_prompt", "generation_mode"), "",
        "positive_prompt", "negative_prompt",
        {
            "Steps": "steps", "Sampler": "scheduler", "CFG scale": "cfg_scale", "Seed": "seed",
            "Size": "width*height", "Model": "model.name model.model_name",
            "Denoising strength": "strength", "VAE": "vae.name vae.model_name",
        },
        _invoke_loras,
    ),
    Program(
        "SwarmUI", ("sui_image_params",), "sui_image_params", "prompt", "negativeprompt",
        {
            "Steps": "steps", "Sampler": "sampler comfyuisampler autowebuisampler",
            "Schedule type": "scheduler comfyuischeduler", "CFG scale": "cfgscale",
            "Seed": "seed", "Size": "width*height", "Model": "model", "VAE": "vae",
        },
        _swarm_loras,
    ),
    Program(
        "Fooocus", ("full_prompt", "base_model"), "", "prompt", "negative_prompt",
        {
            "Steps": "steps", "Sampler": "sampler", "Schedule type": "scheduler",
            "CFG scale": "guidance_scale", "Seed": "seed", "Size": "resolution",
            "Model": "base_model", "Model hash": "base_model_hash", "VAE": "vae",
            "Clip skip": "clip_skip",
        },
        _fooocus_loras,
    ),
)  # fmt: skip
