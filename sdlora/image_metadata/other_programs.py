"""Readers of other programs' JSON in pictures, recognised by its keys and mapped by tables.

InvokeAI: chunk invokeai_metadata (invokeai/app/invocations/metadata.py, CoreMetadata); before 3.0
sd-metadata. SwarmUI: chunk parameters (docs/Image Metadata Format.md). Fooocus: chunk parameters
(modules/meta_parser.py, FooocusMetadataParser). NovelAI: chunk Comment. ComfyUI has a page of its
own. What a table does not name is a problem with its name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from sdlora.image_metadata.a1111 import ImageMetadata, with_loras
from sdlora.messages import Message
from sdlora.prompt.languages import from_compel, from_novelai
from sdlora.prompt.scanner import number

_Json = Mapping[str, Any]
_Lora = tuple[str, float, float]  # name, unet, text encoder
_Translate = Callable[[str], tuple[str, list[Message]]]
_NOTHING: tuple[Any, ...] = (None, "", "None", "none", "0", "false", "[]", 0, [], {})
_SHORTENED, _MOST_NAMED = 80, 30


def _unchanged_text(text: str) -> tuple[str, list[Message]]:
    return text, []


def _no_loras(record: _Json) -> Iterator[_Lora]:
    return iter(())


def _unchanged_record(record: _Json) -> _Json:
    return record


@dataclass(frozen=True)
class Program:
    """Format of a program's JSON: keys of which it has at least one, the object that holds the
    settings, and the paths of each field, of which the first with a value counts. `harmless` keys
    do not affect the picture."""

    name: str
    signs: tuple[str, ...]
    within: str
    prompt: str
    negative: str
    fields: Mapping[str, str]
    harmless: str = ""
    loras: Callable[[_Json], Iterator[_Lora]] = _no_loras
    prepared: Callable[[_Json], _Json] = _unchanged_record
    translated: _Translate = _unchanged_text

    def read(self, record: _Json) -> ImageMetadata | None:
        """Read the JSON object; None when another program wrote it."""
        if not any(sign in record for sign in self.signs):
            return None
        inner = record.get(self.within) if self.within else record
        values = self.prepared(inner if isinstance(inner, Mapping) else {})
        fields = {name: text_at(values, places) for name, places in self.fields.items()}
        sides = re.findall("[0-9]+", fields.pop("Size", ""))
        size = {"Size": "x".join(sides[:2])} if len(sides) >= 2 else {}
        fields = {name: value for name, value in fields.items() if value} | size
        prompt, problems = self.translated(text_at(values, self.prompt))
        negative, others = self.translated(text_at(values, self.negative))
        prompt, differing = with_loras(prompt, self.loras(values))
        problems = [*problems, *others, *differing, *self._not_taken_over(values, fields)]
        return ImageMetadata(prompt, negative, fields, self.name, problems=tuple(problems))

    def _not_taken_over(self, values: _Json, fields: Mapping[str, str]) -> Iterator[Message]:
        """Yield a message that names the values not taken over."""
        taken = {*self.harmless.split(), "loras", "loraweights", "loratencweights"}
        for name, places in {**self.fields, "prompt": self.prompt, "": self.negative}.items():
            keys = {part.split(".")[0] for part in re.split(r"[ *]", places)}
            plain = all(isinstance(values.get(key, ""), str | int | float) for key in keys)
            readable = name in fields or plain or (name != "Size" and text_at(values, places))
            taken |= keys if readable else set()
        left = [
            f"{key}: {json.dumps(value, ensure_ascii=False, default=str)}"[:_SHORTENED]
            for key, value in values.items()
            if key not in taken and not key.startswith("lora_combined_") and value not in _NOTHING
        ]
        if left:
            more = len(left) - _MOST_NAMED
            text = "not taken over from what {program} wrote: {fields}"
            text += " and {more} more" if more > 0 else ""
            yield Message(text, program=self.name, fields=left[:_MOST_NAMED], more=more)


def text_at(record: Any, places: str) -> str:
    """Return the text or number at the first of several paths that has one, such as
    'model.name model.model_name'; for 'width*height' both, as WxH."""
    for place in places.split():
        values = [_value_at_path(record, path) for path in place.split("*")]
        if all(isinstance(value, str | int | float) and value != "" for value in values):
            return "x".join(str(value) for value in values)
    return ""


def _value_at_path(record: Any, path: str) -> Any:
    for key in path.split("."):
        record = record.get(key) if isinstance(record, Mapping) else None
    return record


def file_stem(name: str) -> str:
    """Return a model's name without its file ending; folders stay, with '/' between them."""
    path = PurePosixPath(name.replace("\\", "/"))
    is_file = path.suffix.lower() in (".safetensors", ".ckpt", ".pt", ".bin", ".gguf")
    return str(path.with_suffix("")) if is_file else str(path)


def _invoke_loras(record: _Json) -> Iterator[_Lora]:
    for lora in _as_list(record.get("loras")):
        weight = number(text_at(lora, "weight") or "1") or 0.0
        yield text_at(lora, "model.name lora.model_name"), weight, weight


def _swarm_loras(record: _Json) -> Iterator[_Lora]:
    names, weights, encoders = (
        [str(part).strip() for part in _as_list(record.get(key))]
        for key in ("loras", "loraweights", "loratencweights")
    )
    for index, name in enumerate(names):
        weight = _number_at(weights, index, 1.0)
        yield file_stem(name), weight, _number_at(encoders, index, weight)


def _fooocus_loras(record: _Json) -> Iterator[_Lora]:
    listed = [lora for lora in _as_list(record.get("loras")) if isinstance(lora, list)]
    combined = [str(value) for key, value in record.items() if key.startswith("lora_combined_")]
    for lora in listed or [value.rsplit(" : ", 1) for value in combined]:
        name, weight, *_ = (*map(str, lora), "", "")
        value = number(weight)
        yield file_stem(name), 1.0 if value is None else value, 1.0 if value is None else value


def _as_list(value: Any) -> list[Any]:
    """A list, or the parts of 'a,b'."""
    if isinstance(value, str):
        return value.split(",") if value else []
    return value if isinstance(value, list) else []


def _number_at(values: list[str], index: int, otherwise: float) -> float:
    value = number(values[index]) if index < len(values) else None
    return otherwise if value is None else value


def _invoke_record(record: _Json) -> _Json:
    """Return InvokeAI's record in the format of 3.0. Before, the negative prompt was in the prompt,
    in square brackets."""
    image = record.get("image")
    if not isinstance(image, Mapping):
        skip = record.get("clip_skip")
        mode = str(record.get("generation_mode") or "")
        made_from_text = {"generation_mode": None} if mode.endswith("txt2img") else {}
        counted = {"clip_skip": skip + 1 if skip else None} if isinstance(skip, int) else {}
        return {**record, **counted, **made_from_text}
    parts = image.get("prompt")
    rows = parts if isinstance(parts, list) else [parts]
    texts = [text_at(row, "prompt") if isinstance(row, Mapping) else row for row in rows]
    text = ", ".join(part for part in texts if isinstance(part, str))
    kind = image.get("type")
    return {
        **{key: value for key, value in image.items() if key not in ("prompt", "type", "sampler")},
        "positive_prompt": _SQUARE.sub("", text).strip(" ,"),
        "negative_prompt": ", ".join(_SQUARE.findall(text)),
        "scheduler": image.get("sampler"),
        "model": {"name": record.get("model_weights")},
        "generation_mode": None if kind == "txt2img" else kind,
    }


_SQUARE = re.compile(r"(?<!\\)\[([^\[\]]*)\]")


def read_dream(text: str) -> ImageMetadata | None:
    """Read the command that InvokeAI 1 and 2 wrote into the chunk `Dream`."""
    command = _DREAM.match(text.strip())
    if not command:
        return None
    flags = dict(re.findall(r"(?:^|\s)-([A-Za-z])\s?([^\s-]\S*)", command[2]))
    image = {name: flags.pop(flag) for flag, name in _DREAM_FLAGS.items() if flag in flags}
    rest = {f"-{flag}": value for flag, value in flags.items()}
    return PROGRAMS[0].read({"app_id": "", "image": {"prompt": command[1], **image, **rest}})


_DREAM = re.compile(r'"((?:[^"\\]|\\.)*)"((?:\s+-.*)?)\Z', re.DOTALL)
_DREAM_FLAGS = {
    "s": "steps", "S": "seed", "W": "width", "H": "height", "C": "cfg_scale", "A": "sampler",
    "f": "strength",
}  # fmt: skip


def _novelai_record(record: _Json) -> _Json:
    """Return NovelAI's record; the strength is kept only for img2img and inpainting."""
    kind = str(record.get("request_type") or "")
    drawn_over = "Img2Img" in kind or "Inpaint" in kind or "image" in record
    captions = _value_at_path(record, "v4_prompt.caption.char_captions")
    dropped = {*(() if drawn_over else ("strength", "noise")), "image"}
    values = {key: value for key, value in record.items() if key not in dropped}
    values["uc"] = record.get(
        "uc", _value_at_path(record, "v4_negative_prompt.caption.base_caption")
    )
    return {**values, "characters": captions}


PROGRAMS = (
    Program(
        "InvokeAI", ("positive_prompt", "generation_mode", "app_id"), "",
        "positive_prompt", "negative_prompt",
        {
            "Steps": "steps", "Sampler": "scheduler", "CFG scale": "cfg_scale", "Seed": "seed",
            "Size": "width*height", "Model": "model.name model.model_name",
            "Denoising strength": "strength", "VAE": "vae.name vae.model_name",
            "Clip skip": "clip_skip",
        },
        "app_version rand_device app_id model_hash hrf_strength hrf_method",
        _invoke_loras, _invoke_record, from_compel,
    ),
    Program(
        "SwarmUI", ("sui_image_params",), "sui_image_params", "prompt", "negativeprompt",
        {
            "Steps": "steps", "Sampler": "sampler comfyuisampler autowebuisampler",
            "Schedule type": "scheduler comfyuischeduler", "CFG scale": "cfgscale",
            "Seed": "seed", "Size": "width*height", "Model": "model", "VAE": "vae",
        },
        "aspectratio automaticvae swarm_version images batchsize date generation_time",
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
        "metadata_scheme version created_by performance full_prompt full_negative_prompt",
        _fooocus_loras,
    ),
    Program(
        "NovelAI", ("uc", "v4_prompt"), "", "prompt v4_prompt.caption.base_caption", "uc",
        {
            "Steps": "steps", "Sampler": "sampler", "Schedule type": "noise_schedule",
            "CFG scale": "scale", "Seed": "seed", "Size": "width*height", "Model": "Source",
            "Denoising strength": "strength",
        },
        "n_samples version hide_debug_overlay signed_hash request_type uncond_scale v4_prompt "
        "v4_negative_prompt legacy_v3_extend extra_noise_seed stream",
        prepared=_novelai_record, translated=from_novelai,
    ),
)  # fmt: skip
