"""LoRA in memory; reading and writing of safetensors files.

A file is checked by `header`, `keys` and `identify` before a tensor is allocated, then its
tensors for numbers that are not finite. Writing uses kohya's names, which A1111, ComfyUI, diffusers
and others read (kohya-ss/sd-scripts, networks/lora.py), or PEFT's.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from sdlora.architectures import base_of
from sdlora.errors import LoraFileError
from sdlora.files import write_atomically, write_if_absent
from sdlora.lora.format.adapter_types import ADAPTER_TYPES
from sdlora.lora.format.errors import refusal
from sdlora.lora.format.header import Header, read_header, without_metadata
from sdlora.lora.format.identify import Layer, identify_layers, unread_keys
from sdlora.lora.format.keys import embedding_key, embeddings_of
from sdlora.lora.format.layer import Adapter
from sdlora.lora.format.writer import (
    ADAPTER_METADATA,
    kohya_tensors,
    peft_alphas,
    peft_metadata,
    peft_tensors,
)
from sdlora.messages import Setting


@dataclass(frozen=True, eq=False)
class LoraFile:
    """Content of a LoRA file: layers by name, metadata, and textual inversions by name.

    An embedding is (n,width) for each text encoder: "clip_l" and "clip_g", or "" for the only one.
    `unread` are unknown keys of the file, which are not used. Compared by identity.
    """

    layers: dict[str, Adapter]
    metadata: dict[str, str] = field(default_factory=dict)
    embeddings: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    unread: tuple[str, ...] = ()

    @property
    def base(self) -> str:
        """Name of the base model it is for, by shapes, else metadata; empty when unknown."""
        return base_of({name: layer.shape for name, layer in self.layers.items()}, self.metadata)

    @property
    def kinds(self) -> dict[str, int]:
        """Number of layers of each adapter type, the most frequent first."""
        return dict(Counter(adapter.kind for adapter in self.layers.values()).most_common())


def read_lora(path: Path) -> LoraFile:
    """Read the LoRA in `path`: on the CPU, in its own dtype. LoraFileError when it is refused."""
    header = read_header(path)
    try:
        layers = identify_layers(header.shapes)
        unread = unread_keys(header.shapes, layers)
        with _open_tensors(path) as file:
            adapters = _read_adapters(file, layers, header)
            return LoraFile(adapters, header.metadata, _read_embeddings(file), unread)
    except LoraFileError as error:
        raise LoraFileError("{file}: {why}", error.code, file=path.name, why=error) from None
    except (OSError, SafetensorError) as error:
        raise refusal("unreadable", file=path.name, why=error) from None


class _InMemoryTensors(dict[str, Tensor]):
    """Tensors of a file, all in memory, with the interface of an open safetensors file."""

    get_tensor = dict.__getitem__

    def __enter__(self) -> _InMemoryTensors:
        return self

    def __exit__(self, *_: object) -> None: ...


def _open_tensors(path: Path) -> Any:
    """Open `path` for reading tensors. safetensors refuses metadata that is not text; such a file
    is read as if it had none."""
    try:
        return safe_open(path, framework="pt")
    except SafetensorError:
        return _InMemoryTensors(load(without_metadata(path)))


def _read_adapters(file: Any, layers: Mapping[str, Layer], header: Header) -> dict[str, Adapter]:
    ranks = {layer.keys["down"]: layer.rank for layer in layers.values() if "down" in layer.keys}
    alphas = peft_alphas(header.metadata, ranks)
    adapters: dict[str, Adapter] = {}
    for name, layer in layers.items():
        tensors = {
            role: _require_finite(file.get_tensor(key), name) for role, key in layer.keys.items()
        }
        tensors = dict(ADAPTER_TYPES[layer.kind].read(tensors))
        if "alpha" not in tensors and (alpha := alphas.get(layer.keys.get("down", ""))) is not None:
            tensors["alpha"] = _require_finite(torch.tensor(alpha), name)
        adapters[name] = Adapter(layer.kind, tensors)
    return adapters


def _read_embeddings(file: Any) -> dict[str, dict[str, Tensor]]:
    embeddings: dict[str, dict[str, Tensor]] = {}
    for key, (name, encoder) in embeddings_of(file.keys()).items():
        embeddings.setdefault(name, {})[encoder] = _require_finite(file.get_tensor(key), key)
    return embeddings


def _require_finite(tensor: Tensor, name: str) -> Tensor:
    if not _is_finite(tensor):
        raise refusal("not_finite", name=name)
    return tensor


def _is_finite(tensor: Tensor) -> bool:
    return bool(tensor.float().isfinite().all())  # 8-bit floats have no isfinite


def write_lora(
    file: LoraFile,
    path: Path,
    dtype: torch.dtype = torch.float16,
    names: Literal["kohya", "peft"] = "kohya",
    *,
    overwrite: bool = True,
) -> Path:
    """Write `file` in `dtype` atomically, with kohya's or PEFT's names and its hashes.

    Layers keep their paths. The same tensors and metadata give the same bytes. LoraFileError when
    the numbers do not fit into `dtype`, such as after a diverged training, or PEFT's names cannot
    hold a layer: its format has LoRA and DoRA only, in diffusers' naming. FileExistsError when the
    file exists and `overwrite` is False.
    """
    by_key = (peft_tensors if names == "peft" else kohya_tensors)(file.layers)
    for name, parts in file.embeddings.items():
        by_key |= {embedding_key(name, encoder): rows for encoder, rows in parts.items()}
    tensors = {key: _to_dtype(tensor, dtype) for key, tensor in by_key.items()}
    if bad := [key for key, tensor in tensors.items() if not _is_finite(tensor)]:
        raise LoraFileError(
            "{file} is not written: {count} tensors are not finite, {key!r} first; a lower "
            "{setting} helps",
            file=path,
            count=len(bad),
            key=bad[0],
            setting=Setting("learning_rate"),
        )
    metadata = {key: text for key, text in file.metadata.items() if key != ADAPTER_METADATA}
    metadata |= peft_metadata(file.layers) if names == "peft" else {}
    blob = serialise(tensors, {**metadata, **_kohya_hashes(tensors, metadata)})

    def write(temporary: Path) -> None:
        temporary.write_bytes(blob)

    return (write_atomically if overwrite else write_if_absent)(path, write)


def _to_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a copy in `dtype`; scalars, such as alpha, and integers keep their dtype.

    A copy, because layers may share a tensor, which safetensors refuses to write.
    """
    keeps_dtype = tensor.dim() == 0 or not tensor.is_floating_point()
    return tensor.detach().to("cpu", tensor.dtype if keeps_dtype else dtype, copy=True).contiguous()


def serialise(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Return safetensors bytes with sorted metadata: the library writes it in a random order."""
    blob = save(tensors, metadata)
    (length,) = struct.unpack("<Q", blob[:8])
    entries = json.loads(blob[8 : 8 + length])
    entries["__metadata__"] = dict(sorted(metadata.items()))
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + blob[8 + length :]


def _kohya_hashes(tensors: dict[str, Tensor], metadata: dict[str, str]) -> dict[str, str]:
    """Return kohya's two hashes, of the file with `ss_` metadata only (sd-scripts,
    library/train_util.py, precalculate_safetensors_hashes)."""
    kohya_metadata = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    blob = serialise(tensors, kohya_metadata)
    body = 8 + struct.unpack("<Q", blob[:8])[0]
    return {
        "sshs_model_hash": hashlib.sha256(memoryview(blob)[body:]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(blob[0x100000:0x110000]).hexdigest()[:8],
    }
