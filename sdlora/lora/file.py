"""A LoRA in memory, and its way from and to a safetensors file.

Reading passes the gate of `header` and `formats` before a tensor is allocated, then a scan for
numbers that are not finite. Writing uses kohya's names, which A1111, ComfyUI, diffusers and the
others read (kohya-ss/sd-scripts, networks/lora.py).
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sdlora.errors import LoraFileError
from sdlora.lora.bases import base_of
from sdlora.lora.formats import Keys, pairs_of
from sdlora.lora.header import Header, read_header
from sdlora.workspace import publish


@dataclass(frozen=True, eq=False)
class LoraPair:
    """What one layer learnt: down (r,in[,k,k]), up (out,r[,1,1]); its scale is alpha / r."""

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """r."""
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """(out,in[,k,k]): that of the weight it changes."""
        return (self.up.shape[0], *self.down.shape[1:])

    def delta(self, device: torch.device | None = None) -> Tensor:
        """(out,in[,k,k]) float32: alpha / r · up · down, to be added to the layer's weight."""
        down, up = self.down.to(device, torch.float32), self.up.to(device, torch.float32)
        product = up.flatten(1) @ down.flatten(1) * (self.alpha / self.rank)
        return product.view(self.shape)


@dataclass(frozen=True, eq=False)
class LoraFile:
    """Canonical layer name -> pair, and the file's free text. Compared by identity."""

    pairs: dict[str, LoraPair]
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def base(self) -> str:
        """The name of the base model it is for, by its shapes; empty when nothing tells."""
        return base_of({name: tuple(p.down.shape) for name, p in self.pairs.items()}, self.metadata)


def read_lora(path: Path) -> LoraFile:
    """The LoRA in `path`, on the CPU, in its own number format. LoraFileError: what is wrong."""
    header = read_header(path)
    try:
        keys = pairs_of(header.shapes)
        with safe_open(path, framework="pt") as file:
            pairs = {name: _pair(file, key, name, header) for name, key in keys.items()}
    except LoraFileError as error:
        raise LoraFileError(f"{path.name}: {error}") from None
    except (OSError, SafetensorError) as error:
        raise LoraFileError(f"{path.name} cannot be read: {error}") from None
    return LoraFile(pairs, header.metadata)


def _pair(file: safe_open, keys: Keys, name: str, header: Header) -> LoraPair:
    down, up = file.get_tensor(keys.down), file.get_tensor(keys.up)
    alpha = _said_alpha(keys.down, header.metadata)
    if keys.alpha:
        alpha = file.get_tensor(keys.alpha).item()
    # without any alpha the scale is 1, as everywhere
    alpha = float(down.shape[0]) if alpha is None else alpha
    finite = all(bool(half.float().isfinite().all()) for half in (down, up))
    if not finite or not math.isfinite(alpha):
        raise LoraFileError(f"layer {name[:80]!r} holds numbers that are not finite")
    return LoraPair(down, up, alpha)


def _said_alpha(key: str, metadata: dict[str, str]) -> float | None:
    """The alpha that diffusers keeps in the header: `unet.lora_alpha`, `unet.alpha_pattern`."""
    try:
        said = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        model, _, path = key.partition(".")
        pattern = said.get(f"{model}.alpha_pattern") or {}
        exact = (alpha for layer, alpha in pattern.items() if path.startswith(f"{layer}."))
        alpha = next(exact, said.get(f"{model}.lora_alpha"))
        return None if alpha is None else float(alpha)
    except (AttributeError, TypeError, ValueError):
        return None


def write_lora(file: LoraFile, path: Path, dtype: torch.dtype = torch.float16) -> Path:
    """Write `file` with kohya's names, in `dtype`, with its hashes; complete or not at all.

    The same tensors and metadata give the same bytes. LoraFileError when the numbers do not fit
    into `dtype`, such as a training that ran away.
    """
    tensors: dict[str, Tensor] = {}
    for name, pair in file.pairs.items():
        tensors[f"{name}.lora_down.weight"] = _stored(pair.down, dtype)
        tensors[f"{name}.lora_up.weight"] = _stored(pair.up, dtype)
        tensors[f"{name}.alpha"] = torch.tensor(pair.alpha)
    if bad := [key for key, tensor in tensors.items() if not bool(tensor.isfinite().all())]:
        raise LoraFileError(
            f"{path.name} is not written: {len(bad)} tensors are not finite, {bad[0]!r} first; "
            "a lower learning_rate helps"
        )
    blob = serialise(tensors, {**file.metadata, **_hashes(tensors, file.metadata)})

    def write(temporary: Path) -> None:
        temporary.write_bytes(blob)

    return publish(path, write)


def _stored(half: Tensor, dtype: torch.dtype) -> Tensor:
    return half.detach().to("cpu", dtype).contiguous()


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
