"""Captioning: captions written by a model that sees the pictures, for their owner to correct.

Each type of model is a row of KINDS. Models come from a folder or the Hugging Face hub, their
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

from sdlora.data.caption_editing import Change, write_changes
from sdlora.data.caption_files import EMPTY
from sdlora.data.folder import open_captions
from sdlora.data.image_stats import read_image_stats
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


def caption_images(settings: DescribeSettings, folder: Path) -> Iterator[Event | Change]:
    """Caption every picture of the folder that has no caption, or all. Captions are written, if
    asked for, at the end, so that one undo restores all. ModelError: the model cannot be used."""
    files = open_captions(folder)
    captions = {picture: files.read(picture) for picture in files.pictures}
    unread = [c.fault for c in captions.values() if c.fault and c.fault.message != EMPTY]
    if not settings.every:
        for fault in unread:
            message = Message("{fault}; it stays as it is", fault=fault.message)
            yield Problem(fault.path, message).to_warning()
    pending = [
        picture
        for picture, caption in captions.items()
        if settings.every or not (caption.lines or caption.fault in unread)
    ]
    model_type = CAPTION_MODEL_TYPES[settings.by]
    yield Progress("loading the model that describes")
    caption_batch = model_type.open(
        _folder(settings.model or model_type.usual, model_type), settings
    )
    done: list[Change] = []
    try:
        for first in range(0, len(pending), settings.batch_size):
            batch = pending[first : first + settings.batch_size]
            stats = {picture: read_image_stats(picture) for picture in batch}
            images = {picture: load_rgb(picture) for picture in batch if stats[picture].digest}
            yield from (Problem(p, stats[p].problem).to_warning() for p in batch if p not in images)
            texts = _caption_batch(caption_batch, list(images.values()))
            for picture, text in zip(images, texts, strict=True):
                caption, after = captions[picture], " ".join(f"{settings.prefix}{text}".split())
                is_file = caption.file.is_file()
                done.append(Change(caption.file, caption.text, after, is_file, caption.source))
                yield done[-1]
            yield Progress("describing pictures", first + len(batch), len(pending))
    finally:
        if settings.write and done:
            write_changes(folder, done)


def _caption_batch(caption_batch: Describe, images: Sequence[Image.Image]) -> list[str]:
    try:
        return caption_batch(images)
    except torch.OutOfMemoryError:
        raise ModelError(
            "the memory is too small to describe {count} pictures together; give a smaller "
            "{setting}, or a smaller model",
            count=len(images), setting=Setting("batch_size"),
        ) from None  # fmt: skip


def _folder(model: str, kind: CaptionModelType) -> Path:
    """Return the model's folder, downloaded from the hub if need be; its config is checked."""
    folder = Path(model).expanduser()
    shown: Any = folder if folder.is_dir() else model
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
        )

        patterns = ["*.json", "*.txt", "*.csv", "*.safetensors", "model.onnx", "*.jinja"]
        try:
            folder = Path(snapshot_download(model, allow_patterns=patterns))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            raise ModelError(
                "{model} is no folder, and the hub does not give it: {why}",
                model=model, why=str(error)[:300],
            ) from None  # fmt: skip
    if kind.types:
        try:
            model_type = json_value((folder / "config.json").read_text("utf-8")).get("model_type")
        except (OSError, ValueError, AttributeError):
            raise ModelError(
                "{model} holds no model that can be read: no config.json", model=shown
            ) from None
        if model_type not in kind.types:
            known = ", ".join(kind.types)
            raise ModelError(
                "{model} is a {kind!r} model; this kind takes {known}",
                model=shown, kind=str(model_type)[:40], known=known,
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
        return False  # reported where it is read


class _TransformersCaptioner:
    """A transformers image-to-text model."""

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
            self.model, loading = transformers.AutoModelForImageTextToText.from_pretrained(
                folder, use_safetensors=True, dtype=dtype, output_loading_info=True, **here
            )
        except (OSError, ValueError, ImportError, LookupError, RuntimeError, TypeError,
                AttributeError, SafetensorError) as error:  # fmt: skip
            raise ModelError(
                "the model in {folder} cannot be opened: {why}", folder=folder, why=error
            ) from None
        if lacking := sorted(loading["missing_keys"]):
            raise ModelError(
                "the model in {folder} lacks {count} of its weights, such as {name}; its files are "
                "of another kind, or not all there",
                folder=folder, count=len(lacking), name=lacking[0],
            )  # fmt: skip
        self.model.to(self.device).eval()

    def reader(self, transformers: Any, folder: Path) -> Any:
        """Return the class of the processor, which turns pictures and text into tensors."""
        return transformers.AutoProcessor

    def asked(self, images: Sequence[Image.Image]) -> dict[str, Any]:
        """Return the processor's arguments besides `return_tensors`."""
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
        """Return one row of tokens as text; cut after its last whole sentence where the length
        limit ended it within another."""
        tokenizer = self.processor.tokenizer
        text = str(tokenizer.decode(row, skip_special_tokens=True)).strip()
        is_text = [token not in tokenizer.all_special_ids for token in row.tolist()]
        # the very last may be an end that the model was made to write there
        broken_off = len(is_text) >= self.settings.most_tokens and any(is_text[-2:])
        whole = _SENTENCES.match(text) if broken_off and text[-1:] not in ".!?" else None
        return whole[0] if whole else text


class _FlorenceCaptioner(_TransformersCaptioner):
    """Florence-2 (arXiv:2311.06242), whose task is a token in the prompt."""

    def asked(self, images: Sequence[Image.Image]) -> dict[str, Any]:
        return {"images": list(images), "text": ["<MORE_DETAILED_CAPTION>"] * len(images)}


class _ChatCaptioner(_TransformersCaptioner):
    """A chat model that is given a question, such as Qwen-VL (arXiv:2502.13923)."""

    repeats_prompt = True

    def reader(self, transformers: Any, folder: Path) -> Any:
        """The model's own processor without its part for films, which needs torchvision."""
        kind = json_value((folder / "config.json").read_text("utf-8"))["model_type"]
        processor_class: Any = getattr(transformers, _PROCESSORS[kind])

        class OfPictures(processor_class):  # type: ignore[misc]
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
    """Return the picture scaled to at most _MOST_PIXELS, its longer side at most _MOST_ASPECT times
    the shorter."""
    width, height = image.size
    width, height = min(width, _MOST_ASPECT * height), min(height, _MOST_ASPECT * width)
    scale = min(1.0, (_MOST_PIXELS / (width * height)) ** 0.5)
    size = max(1, int(width * scale)), max(1, int(height * scale))
    return image if size == image.size else image.resize(size)


class _Wd14Tagger:
    """A WD14 tagger of SmilingWolf's: pictures in, the probability of every tag out (ONNX)."""

    def __init__(self, folder: Path, settings: DescribeSettings) -> None:
        try:
            onnxruntime: Any = import_module("onnxruntime")
            onnx_errors: Any = import_module("onnxruntime.capi.onnxruntime_pybind11_state")
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
        except (
            onnx_errors.Fail,
            onnx_errors.InvalidProtobuf,
            onnx_errors.NoSuchFile,
            OSError,
            KeyError,
        ) as error:
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
            for chance, (name, is_tag) in zip(chances, self.tags, strict=True)
            if is_tag and chance >= self.least
        ]
        return ", ".join(
            name.replace("_", " ") for _, name in sorted(likely, key=lambda row: -row[0])
        )


_PROCESSORS = {
    "qwen2_vl": "Qwen2VLProcessor",
    "qwen2_5_vl": "Qwen2_5_VLProcessor",
    "qwen3_vl": "Qwen3VLProcessor",
}
CAPTION_MODEL_TYPES = {
    "blip": CaptionModelType(
        "Salesforce/blip-image-captioning-large", ("blip",), _TransformersCaptioner
    ),
    "florence2": CaptionModelType(
        "florence-community/Florence-2-large", ("florence2",), _FlorenceCaptioner
    ),
    "qwen_vl": CaptionModelType("Qwen/Qwen2.5-VL-3B-Instruct", tuple(_PROCESSORS), _ChatCaptioner),
    "wd14": CaptionModelType("SmilingWolf/wd-vit-tagger-v3", (), _Wd14Tagger),
}
