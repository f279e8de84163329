"""LoRA files written byte by byte, so that what reads them is not what wrote them."""

import json
import struct
from pathlib import Path
from typing import Any

Shapes = dict[str, list[int]]


def shapes_of(width: int, rank: int = 4, layer: str = "lora_unet_x_attn2_to_k") -> Shapes:
    """A LoRA on one layer, of a base whose text is `width` wide."""
    return {f"{layer}.lora_down.weight": [rank, width], f"{layer}.lora_up.weight": [8, rank]}


def lora(
    path: Path, width: int = 768, shapes: Shapes | None = None, fill: int = 0, **metadata: Any
) -> Path:
    """A safetensors file of 16-bit numbers, every byte of them `fill`."""
    entries: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for key, (rows, columns) in (shapes or shapes_of(width)).items():
        end = at + 2 * rows * columns
        place = {"dtype": "F16", "shape": [rows, columns], "data_offsets": [at, end]}
        entries[key], at = place, end
    header = json.dumps(entries).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes([fill]) * at)
    return path


def beside(path: Path, ending: str, said: object) -> None:
    """A sidecar of `path`: text as it is, all else as JSON."""
    text = said if isinstance(said, str) else json.dumps(said)
    path.with_suffix(ending).write_text(text, "utf-8")
