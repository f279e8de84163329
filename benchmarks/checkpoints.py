"""Time to list a library of base models, cold and warm: sparse files with headers of real SDXL.

    python -m benchmarks.checkpoints --count 2000 [--folder DIR]

Each listing runs in a process of its own. Cold: no index, every header is read, from files that the
system may have in memory, as they were written a moment ago. Warm: the index of the first listing.
Goals: 10 s cold, 2 s warm, for 2,000 files.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from sdlora.workspace import Workspace

BYTES = {"F16": 2, "BF16": 2, "F32": 4}
LISTING = """
import json, sys, time
began = time.perf_counter()
from sdlora.assets.checkpoints import CheckpointLibrary
from sdlora.workspace import Workspace
imported = time.perf_counter()
entries = CheckpointLibrary(Workspace.open(sys.argv[1])).list()
usable = sum(not entry.problem for entry in entries)
print(json.dumps({
    "models": len(entries), "usable": usable, "import_s": round(imported - began, 2),
    "list_s": round(time.perf_counter() - imported, 2),
}))
"""
SDXL_UNET = {
    "sample_size": 128, "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10), "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip


def sdxl_shapes() -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a whole SDXL checkpoint, 2,515 tensors."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from sdlora.models.checkpoint_layout import checkpoint_layout, to_file

    with torch.device("meta"):
        parts = {
            "unet": UNet2DConditionModel(**SDXL_UNET),
            "vae": AutoencoderKL(
                block_out_channels=(128, 256, 512, 512), layers_per_block=2,
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
            ),
            "text_encoder": CLIPTextModel(CLIPTextConfig(hidden_size=768, num_hidden_layers=12)),
            "text_encoder_2": CLIPTextModelWithProjection(
                CLIPTextConfig(
                    hidden_size=1280, num_hidden_layers=32, num_attention_heads=20,
                    intermediate_size=5120, projection_dim=1280,
                )
            ),
        }  # fmt: skip
    states = {part: module.state_dict() for part, module in parts.items()}
    layout = checkpoint_layout("sdxl", parts)
    return {name: tuple(to_file(places, states).shape) for name, places in layout.items()}


def headers(shapes: dict[str, tuple[int, ...]]) -> Iterator[tuple[bytes, int]]:
    """Yield (table without metadata, bytes of tensors) of eight kinds of file, over and over."""
    kinds = []
    for dtype in ("F16", "BF16", "F32"):
        kinds.append((dtype, dict(shapes)))
    kinds.append(("F16", {n: s for n, s in shapes.items() if not n.startswith("first_stage")}))
    kinds.append(("F16", {**shapes, "v_pred": (0,)}))
    kinds.append(("F16", {**shapes, "v_pred": (0,), "ztsnr": (0,)}))
    kinds.append(("F16", dict(sorted(shapes.items()))))
    kinds.append(("F16", dict(sorted(shapes.items(), key=lambda row: -math.prod(row[1])))))
    tables = []
    for dtype, rows in kinds:
        table, end = {}, 0
        for name, shape in rows.items():
            size = math.prod(shape) * BYTES[dtype]
            table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
            end += size
        tables.append((json.dumps(table, separators=(",", ":")).encode()[1:], end))
    while True:
        yield from tables


def write_files(folder: Path, count: int) -> None:
    """Write `count` sparse checkpoints, each with metadata of its own, a hundred in a folder."""
    tables = headers(sdxl_shapes())
    for number in range(count):
        table, size = next(tables)
        metadata = json.dumps({"modelspec.title": f"merge {number}", "format": "pt"})
        text = b'{"__metadata__":' + metadata.encode() + b"," + table
        text += b" " * (-len(text) % 8)
        path = folder / f"part{number // 100:02}" / f"sdxl_merge_{number:04}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + size)


def main() -> None:
    """Write the files and print a line of JSON for each listing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--folder", help="where the files are written; default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        workspace = Workspace.open(folder)
        began = time.perf_counter()
        write_files(workspace.models, options.count)
        print(json.dumps({"written": options.count, "s": round(time.perf_counter() - began, 1)}))
        for kind in ("cold", "warm", "warm"):
            ran = subprocess.run(
                [sys.executable, "-c", LISTING, folder], check=True, capture_output=True, text=True
            )
            print(json.dumps({"listing": kind, **json.loads(ran.stdout)}), flush=True)


if __name__ == "__main__":
    main()
