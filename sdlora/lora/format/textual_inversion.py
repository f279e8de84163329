"""Textual inversion files (arXiv:2208.01618): a word and its vectors.

A1111 writes `emb_params` (n,width), for SDXL `clip_l` and `clip_g`; diffusers a single tensor under
the word it was trained for. In prompts the word is the file's stem, as in A1111
(modules/textual_inversion/textual_inversion.py).
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sdlora.architectures import FAMILIES
from sdlora.errors import LoraFileError
from sdlora.lora.format.errors import refusal
from sdlora.lora.format.file import LoraFile
from sdlora.lora.format.header import read_header
from sdlora.messages import Message

MAX_VECTORS = 75  # tokens in a chunk
_SDXL = {"clip_l", "clip_g"}
_BY_WIDTH = {FAMILIES[name].width: name for name in ("starter", "sd1", "sd2")}


def read_inversion(path: Path) -> LoraFile:
    """Read the file at `path` as a LoRA with one embedding and no layers.

    LoraFileError when it is refused.
    """
    shapes = read_header(path).shapes
    if not (len(shapes) == 1 or shapes.keys() == _SDXL):
        raise LoraFileError(
            "{file} holds {count} tensors and is no textual inversion",
            file=path.name, count=len(shapes),
        )  # fmt: skip
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in shapes}
    except (OSError, SafetensorError) as error:
        raise refusal("unreadable", file=path.name, why=error) from None
    encoders = {
        key if key in _SDXL else "": _vectors(key, tensor) for key, tensor in tensors.items()
    }
    return LoraFile({}, {}, {path.stem.lower(): encoders})


def inversion_base(file: LoraFile) -> str:
    """Title of the base model that has its width; the width itself when none has."""
    [encoders] = file.embeddings.values()
    if encoders.keys() & _SDXL:
        return FAMILIES["sdxl"].title
    width = encoders[""].shape[1]
    name = _BY_WIDTH.get(width)
    return FAMILIES[name].title if name else Message("a text encoder of width {width}", width=width)


def _vectors(key: str, tensor: Tensor) -> Tensor:
    rows = tensor[None] if tensor.dim() == 1 else tensor
    if rows.dim() != 2 or not 1 <= len(rows) <= MAX_VECTORS:
        raise refusal("embedding", name=key, shape=tuple(tensor.shape))
    if not rows.float().isfinite().all():
        raise refusal("not_finite", name=key)
    return rows
