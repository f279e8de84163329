"""A LoRA in memory, and its way from and to a safetensors file.

Reading passes the gate of `header`, `keys` and `identify` before a tensor is allocated, then a
scan for numbers that are not finite. Writing uses kohya's names, which A1111, ComfyUI, diffusers
and the others read (kohya-ss/sd-scripts, networks/lora.py), or PEFT's.
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
from sdlora.files import publish, publish_exactly
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
    """What a file holds: layers by name, free text, and textual inversions by the word for them.

    An embedding is (n,width) for each text encoder: "clip_l" and "clip_g", or "" for the only one.
    `unread` are keys of the file that nobody knows. Compared by identity.
    """

    layers: dict[str, Adapter]
    metadata: dict[str, str] = field(default_factory=dict)
    embeddings: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    unread: tuple[str, ...] = ()

    @property
    def base(self) -> str:
        """The name of the base model it is for, by its shapes; empty when nothing tells."""
        return base_of({name: it.shape for name, it in self.layers.items()}, self.metadata)

    @property
    def kinds(self) -> dict[str, int]:
        """How many layers there are of each kind, the most frequent first."""
        return dict(Counter(adapter.kind for adapter in self.layers.values()).most_common())


def read_lora(path: Path) -> LoraFile:
    """The LoRA in `path`, on the CPU, in its own number format. LoraFileError: what is wrong."""
    header = read_header(path)
    try:
        layers = identify_layers(header.shapes)
        unread = unread_keys(header.shapes, layers)
        with _opened(path) as file:
            adapters = _adapters(file, layers, header)
            return LoraFile(adapters, header.metadata, _bundled(file), unread)
    except LoraFileError as error:
        raise LoraFileError("{file}: {why}", error.code, file=path.name, why=error) from None
    except (OSError, SafetensorError) as error:
        raise refusal("unreadable", file=path.name, why=error) from None


class _Whole(dict[str, Tensor]):
    """A file's tensors, all in memory, asked for as an open file's are."""

    get_tensor = dict.__getitem__

    def __enter__(self) -> _Whole:
        return self

    def __exit__(self, *_: object) -> None: ...


def _opened(path: Path) -> Any:
    """`path` with its tensors to be asked for. The library refuses metadata that is not text, which
    decides nothing here; such a file is read as if it had none."""
    try:
        return safe_open(path, framework="pt")
    except SafetensorError:
        return _Whole(load(without_metadata(path)))


def _adapters(file: Any, layers: Mapping[str, Layer], header: Header) -> dict[str, Adapter]:
    ranks = {it.keys["down"]: it.rank for it in layers.values() if "down" in it.keys}
    alphas = peft_alphas(header.metadata, ranks)
    adapters: dict[str, Adapter] = {}
    for name, layer in layers.items():
        tensors = {role: _finite(file.get_tensor(key), name) for role, key in layer.keys.items()}
        tensors = dict(ADAPTER_TYPES[layer.kind].read(tensors))
        if "alpha" not in tensors and (said := alphas.get(layer.keys.get("down", ""))) is not None:
            tensors["alpha"] = _finite(torch.tensor(said), name)
        adapters[name] = Adapter(layer.kind, tensors)
    return adapters


def _bundled(file: Any) -> dict[str, dict[str, Tensor]]:
    embeddings: dict[str, dict[str, Tensor]] = {}
    for key, (name, encoder) in embeddings_of(file.keys()).items():
        embeddings.setdefault(name, {})[encoder] = _finite(file.get_tensor(key), key)
    return embeddings


def _finite(tensor: Tensor, name: str) -> Tensor:
    if not _is_finite(tensor):
        raise refusal("not_finite", name=name)
    return tensor


def _is_finite(tensor: Tensor) -> bool:
    return bool(tensor.float().isfinite().all())  # 8-bit numbers cannot be asked


def write_lora(
    file: LoraFile,
    path: Path,
    dtype: torch.dtype = torch.float16,
    names: Literal["kohya", "peft"] = "kohya",
    *,
    overwrite: bool = True,
) -> Path:
    """Write `file` in `dtype`, with kohya's or PEFT's names and its hashes; whole or not at all.

    Layers keep the path they have. The same tensors and metadata give the same bytes. LoraFileError
    when the numbers do not fit into `dtype`, such as a training that ran away, or PEFT's names
    cannot hold a layer: its format has LoRA and DoRA only, in diffusers' naming. FileExistsError:
    there is a file of that name, and it is not to be overwritten.
    """
    by_key = (peft_tensors if names == "peft" else kohya_tensors)(file.layers)
    for name, parts in file.embeddings.items():
        by_key |= {embedding_key(name, encoder): rows for encoder, rows in parts.items()}
    tensors = {key: _stored(tensor, dtype) for key, tensor in by_key.items()}
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
    blob = serialise(tensors, {**metadata, **_hashes(tensors, metadata)})

    def write(temporary: Path) -> None:
        temporary.write_bytes(blob)

    return (publish if overwrite else publish_exactly)(path, write)


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy in `dtype`; a lone number, such as alpha, costs nothing and stays as precise as it is.

    A copy, because layers may share a tensor and safetensors writes none that is shared.
    """
    kept = tensor.dim() == 0 or not tensor.is_floating_point()
    return tensor.detach().to("cpu", tensor.dtype if kept else dtype, copy=True).contiguous()


def serialise(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """safetensors bytes with a sorted header: the library writes metadata in a random order."""
    blob = save(tensors, metadata)
    (length,) = struct.unpack("<Q", blob[:8])
    entries = json.loads(blob[8 : 8 + length])
    entries["__metadata__"] = dict(sorted(metadata.items()))
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + blob[8 + length :]


def _hashes(tensors: dict[str, Tensor], metadata: dict[str, str]) -> dict[str, str]:
    """kohya's two hashes, over the file as it is with `ss_` metadata only (sd-scripts,
    library/train_util.py, precalculate_safetensors_hashes)."""
    kept = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    blob = serialise(tensors, kept)
    body = 8 + struct.unpack("<Q", blob[:8])[0]
    return {
        "sshs_model_hash": hashlib.sha256(memoryview(blob)[body:]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(blob[0x100000:0x110000]).hexdigest()[:8],
    }
