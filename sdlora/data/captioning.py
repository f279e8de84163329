"""Captions written by a model that looks at the pictures, for their owner to correct.

Each kind of model is a row of KINDS. Models come from a folder or the Hugging Face hub, their
weights from safetensors or ONNX files; code that lies beside weights is never run.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError
from torch import Tensor

from sdlora.data.caption_editing import Change, write
from sdlora.data.caption_files import EMPTY
from sdlora.data.folder import open_captions
from sdlora.data.image_stats import look_at
from sdlora.data.images import load_rgb
from sdlora.data.problems import Problem
from sdlora.device import pick_device
from sdlora.errors import ModelError
from sdlora.events import Event, Progress
from sdlora.messages import Message, Setting
from sdlora.settings.captioning import NEEDS_ONNX, DescribeSettings
from sdlora.text_files import json_value

_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
# Of a picture that a chatting model sees, which costs a token per 28 x 28
_MOST_PIXELS = 1024 * 1024
_MOST_ASPECT = 100  # its processor refuses 200
# classes, and kernels of the hub; anywhere in a config, since configs hold configs
_CODE = re.compile(r'"auto_map"\s*:|"_?attn_implementation\w*"\s*:\s*"[^"]*/')
_SENTENCES = re.compile(r".*[.!?](?=\s)", re.DOTALL)  # all that are whole, when another follows
Describe = Callable[[Sequence[Image.Image]], list[str]]


@dataclass(frozen=True)
class CaptionModelType:
    """A kind of model that describes pictures: where its weights usually come from, the types that
    its config may name, and how it is opened."""

    usual: str
    types: tuple[str, ...]
    open: Callable[[Path, DescribeSettings], Describe]


def describe(settings: DescribeSettings, folder: Path) -> Iterator[Event | Change]:
    """A caption for every picture of the folder that has none, or for all; written, if that was
    asked for, when the last is there or the job is ended before, so that one undo takes all back.
    ModelError: the model cannot be used."""
    files = open_captions(folder)
    told = {picture: files.read(picture) for picture in files.pictures}
    unread = [c.fault for c in told.values() if c.fault and c.fault.what != EMPTY]
    if not settings.every:
        for fault in unread:
            what = Message("{what}; it stays as it is", what=fault.what)
            yield Problem(fault.path, what).warned()
    waiting = [
        picture
        for picture, caption in told.items()
        if settings.every or not (caption.lines or caption.fault in unread)
    ]
    kind = KINDS[settings.by]
    yield Progress("loading the model that describes")
    say = kind.open(_folder(settings.model or kind.usual, kind), settings)
    done: list[Change] = []
    try:
        for first in range(0, len(waiting), settings.batch_size):
            few = waiting[first : first + settings.batch_size]
            seen = {picture: load_rgb(picture) for picture in few if look_at(picture).digest}
            yield from (Problem(p, look_at(p).what).warned() for p in few if p not in seen)
            for picture, text in zip(seen, _said(say, list(seen.values())), strict=True):
                path, before = told[picture].file, told[picture].text
                said = " ".join(f"{settings.prefix}{text}".split())
                done.append(Change(path, before, said, path.is_file(), told[picture].source))
                yield done[-1]
            yield Progress("describing pictures", first + len(few), len(waiting))
    finally:
        if settings.write and done:
            write(folder, done)


def _said(say: Describe, images: Sequence[Image.Image]) -> list[str]:
    try:
        return say(images)
    except torch.OutOfMemoryError:
        raise ModelError(
            "the memory is too small to describe {count} pictures together; give a smaller "
            "{setting}, or a smaller model",
            count=len(images), setting=Setting("batch_size"),
        ) from None  # fmt: skip


def _folder(model: str, kind: CaptionModelType) -> Path:
    """The model's folder, fetched from the hub unless it is one; what it says it is, is checked."""
    folder = Path(model).expanduser()
    shown: Any = folder if folder.is_dir() else model
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
        )

        wanted = ["*.json", "*.txt", "*.csv", "*.safetensors", "model.onnx", "*.jinja"]
        try:
            folder = Path(snapshot_download(model, allow_patterns=wanted))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            raise ModelError(
                "{model} is no folder, and the hub does not give it: {why}",
                model=model, why=str(error)[:300],
            ) from None  # fmt: skip
    if kind.types:
        try:
            said = json_value((folder / "config.json").read_text("utf-8")).get("model_type")
        except (OSError, ValueError, AttributeError):
            raise ModelError(
                "{model} holds no model that can be read: no config.json", model=shown
            ) from None
        if said not in kind.types:
            known = ", ".join(kind.types)
            raise ModelError(
                "{model} is a {kind!r} model; this kind takes {known}",
                model=shown, kind=str(said)[:40], known=known,
            )  # fmt: skip
    if bringing := sorted(file.name for file in folder.glob("*config.json") if _names_code(file)):
        raise ModelError(
            "{model} wants to run code of its own ({files} names it), which is never done; take "
            "one that transformers knows, such as {usual}",
            model=shown, files=bringing, usual=kind.usual,
        )  # fmt: skip
    return folder


def _names_code(file: Path) -> bool:
    try:
        return bool(_CODE.search(file.read_text("utf-8")))
    except (OSError, ValueError):
        return False  # said where it is read


class _Told:
    """A transformers model that writes what it sees."""

    repeats_prompt = False

    def __init__(self, folder: Path, settings: DescribeSettings) -> None:
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self.settings, (self.device, _) = settings, pick_device()
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        here: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            self.processor: Any = self.reader(transformers, folder).from_pretrained(folder, **here)
            self.model, told = transformers.AutoModelForImageTextToText.from_pretrained(
                folder, use_safetensors=True, dtype=dtype, output_loading_info=True, **here
            )
        except (OSError, ValueError, ImportError, LookupError, RuntimeError, TypeError,
                AttributeError, SafetensorError) as error:  # fmt: skip
            raise ModelError(
                "the model in {folder} cannot be opened: {why}", folder=folder, why=error
            ) from None
        if lacking := sorted(told["missing_keys"]):
            raise ModelError(
                "the model in {folder} lacks {count} of its weights, such as {name}; its files are "
                "of another kind, or not all there",
                folder=folder, count=len(lacking), name=lacking[0],
            )  # fmt: skip
        self.model.to(self.device).eval()

    def reader(self, transformers: Any, folder: Path) -> Any:
        """The class of what turns pictures and words into numbers."""
        return transformers.AutoProcessor

    def asked(self, images: Sequence[Image.Image]) -> dict[str, Any]:
        """What the processor is given beside `return_tensors`."""
        return {"images": list(images)}

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> list[str]:
        if not images:
            return []
        given = self.processor(**self.asked(images), return_tensors="pt").to(self.device)
        given = {
            name: value.to(self.model.dtype) if value.is_floating_point() else value
            for name, value in given.items()
        }
        written = self.model.generate(
            **given, max_new_tokens=self.settings.most_tokens, do_sample=False
        )
        if self.repeats_prompt:
            written = written[:, given["input_ids"].shape[1] :]
        return [self._text(row) for row in written]

    def _text(self, row: Tensor) -> str:
        """One row of tokens as text: whole sentences, where the length ended it within another."""
        tokenizer = self.processor.tokenizer
        text = str(tokenizer.decode(row, skip_special_tokens=True)).strip()
        said = [token not in tokenizer.all_special_ids for token in row.tolist()]
        # the very last may be an end that the model was made to write there
        broken_off = len(said) >= self.settings.most_tokens and any(said[-2:])
        whole = _SENTENCES.match(text) if broken_off and text[-1:] not in ".!?" else None
        return whole[0] if whole else text


class _Florence(_Told):
    """Florence-2 (arXiv:2311.06242), which is told its task by a word."""

    def asked(self, images: Sequence[Image.Image]) -> dict[str, Any]:
        return {"images": list(images), "text": ["<MORE_DETAILED_CAPTION>"] * len(images)}


class _Chatting(_Told):
    """A model that is asked in words, such as Qwen-VL (arXiv:2502.13923)."""

    repeats_prompt = True

    def reader(self, transformers: Any, folder: Path) -> Any:
        """The model's own processor without its part for films, which needs torchvision."""
        kind = json_value((folder / "config.json").read_text("utf-8"))["model_type"]
        its: Any = getattr(transformers, _PROCESSORS[kind])

        class OfPictures(its):
            def __init__(
                self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None
            ) -> None:
                super().__init__(image_processor, tokenizer, chat_template=chat_template)

        return OfPictures

    def asked(self, images: Sequence[Image.Image]) -> dict[str, Any]:
        self.processor.tokenizer.padding_side = "left"  # so that all answers begin side by side
        parts = [{"type": "image"}, {"type": "text", "text": self.settings.question}]
        talk = [{"role": "user", "content": parts}]
        text = self.processor.apply_chat_template(talk, add_generation_prompt=True)
        seen = [_no_larger(image) for image in images]
        return {"images": seen, "text": [text] * len(images), "padding": True}


def _no_larger(image: Image.Image) -> Image.Image:
    """The picture with _MOST_PIXELS and a side _MOST_ASPECT times the other at most."""
    width, height = image.size
    width, height = min(width, _MOST_ASPECT * height), min(height, _MOST_ASPECT * width)
    scale = min(1.0, (_MOST_PIXELS / (width * height)) ** 0.5)
    size = max(1, int(width * scale)), max(1, int(height * scale))
    return image if size == image.size else image.resize(size)


class _Tagger:
    """A WD14 tagger of SmilingWolf's: pictures in, the probability of every tag out (ONNX)."""

    def __init__(self, folder: Path, settings: DescribeSettings) -> None:
        try:
            onnxruntime: Any = import_module("onnxruntime")
            said: Any = import_module("onnxruntime.capi.onnxruntime_pybind11_state")
        except ImportError:
            raise ModelError(NEEDS_ONNX) from None
        self.least = settings.threshold
        try:
            self.session: Any = onnxruntime.InferenceSession(
                str(folder / "model.onnx"),
                providers=[p for p in _PROVIDERS if p in onnxruntime.get_available_providers()],
            )
            with (folder / "selected_tags.csv").open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            # categories: 0 is general, 4 a character, 9 a rating
            self.tags = [(row["name"], row["category"] in ("0", "4")) for row in rows]
        except (said.Fail, said.InvalidProtobuf, said.NoSuchFile, OSError, KeyError) as error:
            raise ModelError(
                "the tagger in {folder} cannot be opened: {why}", folder=folder, why=error
            ) from None
        self.input = self.session.get_inputs()[0]

    def __call__(self, images: Sequence[Image.Image]) -> list[str]:
        return [self._tag(image) for image in images]

    def _tag(self, image: Image.Image) -> str:
        side = int(self.input.shape[1])
        square = ImageOps.pad(image, (side, side), Image.Resampling.BICUBIC, color="white")
        pixels = np.asarray(square, np.float32)[None, :, :, ::-1]  # BGR, 0..255
        given = {self.input.name: np.ascontiguousarray(pixels)}
        chances = self.session.run(None, given)[0][0]
        likely = [
            (float(chance), name)
            for chance, (name, says) in zip(chances, self.tags, strict=True)
            if says and chance >= self.least
        ]
        return ", ".join(
            name.replace("_", " ") for _, name in sorted(likely, key=lambda row: -row[0])
        )


_PROCESSORS = {
    "qwen2_vl": "Qwen2VLProcessor",
    "qwen2_5_vl": "Qwen2_5_VLProcessor",
    "qwen3_vl": "Qwen3VLProcessor",
}
KINDS = {
    "blip": CaptionModelType("Salesforce/blip-image-captioning-large", ("blip",), _Told),
    "florence2": CaptionModelType("florence-community/Florence-2-large", ("florence2",), _Florence),
    "qwen_vl": CaptionModelType("Qwen/Qwen2.5-VL-3B-Instruct", tuple(_PROCESSORS), _Chatting),
    "wd14": CaptionModelType("SmilingWolf/wd-vit-tagger-v3", (), _Tagger),
}
