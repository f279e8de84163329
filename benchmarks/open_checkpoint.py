"""Opening full-size checkpoints on a CPU: `python -m benchmarks.open_checkpoint [--steps 1]`.

Sparse files (zeros that take no room on the disk) with the names, shapes and half-precision numbers
of Stable Diffusion 1.5, 2.1 and XL: seconds and peak memory until the model is open, ours and by
diffusers' own `from_single_file`, each in a fresh process, in turn. With --steps, one training step
and one step of a picture on a Stable Diffusion 1.5 of full size, of random numbers.
"""

from __future__ import annotations

import json
import math
import resource
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from benchmarks.report import asked, show
from sdlora.models.checkpoint_layout import checkpoint_layout, to_file
from sdlora.models.registry import open_family

CPU = torch.device("cpu")
_UNET = {"sample_size": 64, "attention_head_dim": 8, "cross_attention_dim": 768}
_ATTENTION = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")
# The published configs: stable-diffusion-v1-5, stable-diffusion-2-1, stable-diffusion-xl-base-1.0
UNETS: dict[str, dict[str, Any]] = {
    "sd1": _UNET,
    "sd2": {
        "sample_size": 96, "attention_head_dim": (5, 10, 20, 20), "cross_attention_dim": 1024,
        "use_linear_projection": True,
    },
    "sdxl": {
        "sample_size": 128, "cross_attention_dim": 2048, "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", _ATTENTION[0], _ATTENTION[0]),
        "up_block_types": (_ATTENTION[1], _ATTENTION[1], "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10), "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True, "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
    },
}  # fmt: skip
# width, layers, heads and class of the text encoders; Stable Diffusion 2 reads 23 of 24 layers
TEXTS: dict[str, tuple[tuple[int, int, Any], ...]] = {
    "sd1": ((768, 12, CLIPTextModel),),
    "sd2": ((1024, 24, CLIPTextModel),),
    "sdxl": ((768, 12, CLIPTextModel), (1280, 32, CLIPTextModelWithProjection)),
}
_VAE = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip


def text_encoder(width: int, layers: int, kind: Any) -> nn.Module:
    """A text encoder of CLIP's build."""
    encoder: nn.Module = kind(
        CLIPTextConfig(
            hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
            num_attention_heads=width // 64, projection_dim=width, vocab_size=49408,
        )
    )  # fmt: skip
    return encoder


def parts_of(kind: str) -> dict[str, nn.Module]:
    """The modules of a model of full size; on the default device."""
    names = ("text_encoder", "text_encoder_2")
    texts = zip(names, (text_encoder(*row) for row in TEXTS[kind]), strict=False)
    return {
        "unet": UNet2DConditionModel(**UNETS[kind]), "vae": AutoencoderKL(**_VAE), **dict(texts),
    }  # fmt: skip


def write_sparse(kind: str, path: Path) -> None:
    """Write a safetensors file of zeros that takes no room but for its header."""
    with torch.device("meta"):
        parts = parts_of(kind)
    states = {part: module.state_dict() for part, module in parts.items()}
    table, end = {}, 0
    for name, places in checkpoint_layout(kind, parts).items():
        shape = list(to_file(places, states).shape)
        first, end = end, end + 2 * math.prod(shape)
        table[name] = {"dtype": "F16", "shape": shape, "data_offsets": [first, end]}
    header = json.dumps(table).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + end)


def open_ours(path: Path) -> Any:
    """Open a file as the program does."""
    return open_family(str(path), torch.float16, CPU).pipeline


def open_theirs(path: Path, configs: Path) -> Any:
    """Open a file by diffusers, which is given the configs, or it would ask the network."""
    import diffusers

    kind = json.loads((configs / "model_index.json").read_text())["_class_name"]
    return getattr(diffusers, kind).from_single_file(
        str(path), config=str(configs), torch_dtype=torch.float16, local_files_only=True
    )


def save_configs(path: Path, folder: Path) -> None:
    """Write what an open pipeline has besides weights."""
    pipeline = open_ours(path)
    pipeline.save_config(folder)
    for name, part in pipeline.components.items():
        if hasattr(part, "save_config"):
            part.save_config(folder / name)
        elif hasattr(part, "config"):
            part.config.save_pretrained(folder / name)
        elif part is not None:
            part.save_pretrained(folder / name)


def peak_gib() -> float:
    """This process's peak of resident memory; Linux counts what it was forked from in maxrss."""
    status = Path("/proc/self/status")
    if status.exists():
        row = next(r for r in status.read_text().splitlines() if r.startswith("VmHWM"))
        return round(int(row.split()[1]) / 2**20, 2)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30, 2)


def measure(how: str, path: Path, configs: Path) -> None:
    """Open once, in this process; print seconds and peak memory."""
    before = peak_gib()
    began = time.monotonic()
    pipeline = open_ours(path) if how == "ours" else open_theirs(path, configs)
    took = time.monotonic() - began
    peak = peak_gib()
    parts = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    meta = sum(p.is_meta for part in parts for p in (*part.parameters(), *part.buffers()))
    row = {"seconds": round(took, 2), "peak_gib": peak, "on_meta": meta}
    print(json.dumps({**row, "before_gib": before}))


def in_a_process(how: str, path: Path, configs: Path) -> dict[str, float]:
    """Measure in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.open_checkpoint", "--how", how]
    command += ["--file", str(path), "--configs", str(configs)]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode:
        return {"failed": 1.0}
    row: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return row


def one_step() -> dict[str, float]:
    """Seconds of a training step and of a picture's step, at 64 px, on random numbers."""
    from sdlora.adapters import attach
    from sdlora.models.sd import StableDiffusion
    from sdlora.models.single_file import single_file_pipeline
    from sdlora.settings.train import TrainSettings

    family = StableDiffusion(
        "sd1", single_file_pipeline("sd1", parts_of("sd1")), CPU, torch.float32
    )
    learning = attach(family, TrainSettings(data="x", name="x", rank=8))
    parameters = [p for group in learning for p in group.parameters]
    texts = family.encode_prompt("a cat")
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([500])
    began = time.monotonic()
    family.predict(x, t, texts).square().mean().backward()
    torch.optim.AdamW(parameters, 1e-4).step()
    trained = time.monotonic() - began
    began = time.monotonic()
    with torch.no_grad():
        family.predict(x, t, texts)
    return {"training": round(trained, 2), "picture": round(time.monotonic() - began, 2)}


def main() -> None:
    """Measure and print the table."""
    options = asked(__doc__, how="", file="", configs="", steps=0)
    if options.how:
        measure(options.how, Path(options.file), Path(options.configs))
        return
    table: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in UNETS:
            path, configs = Path(folder) / f"{kind}.safetensors", Path(folder) / kind
            write_sparse(kind, path)
            save_configs(path, configs)
            table[kind] = {how: in_a_process(how, path, configs) for how in ("ours", "diffusers")}
            table[kind]["file_gib"] = round(path.stat().st_size / 2**30, 2)
    if options.steps:
        table["seconds of a step, SD 1.5"] = one_step()
    show(table)


if __name__ == "__main__":
    main()
