"""A model on the disk as tensors by their names in a single file, read and written one at a time.

So a file of any size is converted or merged in the memory of its largest tensor. A diffusers folder
is opened whole.
"""

from __future__ import annotations

import contextlib
import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sdlora.errors import ModelError
from sdlora.models.checkpoint_facts import CheckpointFacts, checkpoint_facts
from sdlora.models.checkpoint_header import Shape
from sdlora.models.folder_facts import folder_facts
from sdlora.models.registry import open_family
from sdlora.models.single_file import checked_names, single_file
from sdlora.models.tensor_source import open_tensors

WRITTEN_AS = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}
READ_AS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float32}
# read by no program that we know of as diffusers reads it, but others expect it to be there
_KEPT = "cond_stage_model.model."
_OF_THE_FILE = ("modelspec.hash_sha256", "modelspec.thumbnail", "format")


@dataclass(frozen=True)
class StoredModel:
    """A complete model: its tensors' shapes, and a way to read each in a number format."""

    path: Path
    facts: CheckpointFacts
    metadata: Mapping[str, str]
    shapes: Mapping[str, Shape]
    read: Callable[[str, torch.dtype], Tensor]

    @property
    def dtype(self) -> torch.dtype:
        """The number format to keep: that of the file, fp16 for an fp8 file."""
        return READ_AS.get(self.facts.dtype, torch.float16)


@contextlib.contextmanager
def open_stored(path: Path) -> Iterator[StoredModel]:
    """Open a file or a folder. ModelError: it is none, or not complete."""
    if path.is_dir():
        facts = folder_facts(path)
        dtype = READ_AS.get(facts.dtype, torch.float16)
        tensors = single_file(open_family(str(path), dtype, torch.device("cpu")))
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        yield StoredModel(path, facts, {}, shapes, lambda name, kind: tensors[name].to(kind))
        return
    with open_tensors(path) as source:
        header = source.header
        facts = checkpoint_facts(header)
        names = checked_names(source, facts)
        read_names = set(names.values())
        names |= {n: n for n in header.shapes if n.startswith(_KEPT) and n not in read_names}
        shapes = {name: header.shapes[spelling] for name, spelling in names.items()}
        metadata = {k: v for k, v in header.metadata.items() if k not in _OF_THE_FILE}

        def read(name: str, kind: torch.dtype) -> Tensor:
            return source.read(names[name], kind)

        yield StoredModel(path, facts, metadata, shapes, read)


def marks(facts: CheckpointFacts) -> dict[str, Shape]:
    """Return the empty tensors by which programs recognise a model that predicts v; where only the
    family tells it, nothing is marked."""
    names = ["v_pred"] if facts.prediction == "v_prediction" else []
    names += ["ztsnr"] if facts.zero_terminal_snr else []
    return {name: (0,) for name in names if facts.family == "sdxl" and facts.told_by != "family"}


def prediction_metadata(facts: CheckpointFacts) -> dict[str, str]:
    """Return the metadata of the same."""
    if facts.told_by == "family":
        return {}
    snr = {"ss_zero_terminal_snr": "True"} if facts.zero_terminal_snr else {}
    kind = "v" if facts.prediction == "v_prediction" else "epsilon"
    return {"modelspec.prediction_type": kind, **snr}


def tensor_bytes(shapes: Iterable[Shape], dtype: torch.dtype) -> int:
    """Return the bytes of tensors of these shapes in `dtype`."""
    return sum(map(math.prod, shapes)) * torch.empty((), dtype=dtype).element_size()


def write_tensors(
    path: Path, shapes: Mapping[str, Shape], dtype: torch.dtype,
    read: Callable[[str], Tensor], metadata: Mapping[str, str],
) -> None:  # fmt: skip
    """Write a safetensors file in `dtype`, tensor by tensor. ModelError: a number is too large for
    that format."""
    table: dict[str, object] = {"__metadata__": {**metadata, "format": "pt"}}
    size, end = torch.empty((), dtype=dtype).element_size(), 0
    for name, shape in shapes.items():
        first, end = end, end + math.prod(shape) * size
        row = {"dtype": WRITTEN_AS[dtype], "shape": list(shape), "data_offsets": [first, end]}
        table[name] = row
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            if not math.prod(shape):
                continue
            tensor = read(name)
            cast = tensor.to(dtype).reshape(shape).contiguous()
            if bool(torch.isinf(cast).any()) and not bool(torch.isinf(tensor).any()):
                raise ModelError(
                    "{key!r} holds numbers too large for {precision}; choose bf16 or fp32",
                    key=name, precision="fp16",
                )  # fmt: skip
            file.write(cast.view(torch.uint8).numpy().tobytes() if cast.dim() else _scalar(cast))


def _scalar(tensor: Tensor) -> bytes:
    return bytes(tensor.reshape(1).view(torch.uint8).numpy().tobytes())
