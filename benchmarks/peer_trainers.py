"""Other trainers' own scripts beside ours: see `benchmarks.training --diffusers, --sd-scripts`.

All train the same model of SD 1.5's size with random weights on the same pictures: the same layers,
rank, batch, size and number format. Each runs by the interpreter of its own environment, and the
time of a step is that from one step of its optimizer to the next, whatever it does in between.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import PNDMScheduler, StableDiffusionPipeline
from PIL import Image
from transformers import CLIPTokenizer

from benchmarks.open_checkpoint import parts_of
from sdlora.assets.convert import converted
from sdlora.prompt.clip_vocabulary import clip_merges, clip_vocabulary

ROOT = Path(__file__).resolve().parent.parent
PICTURES = 8
UNCOUNTED = 2  # steps at the beginning


@dataclass(frozen=True)
class Materials:
    """What all of them train on: a diffusers folder, the same as one file, and two folders of the
    same pictures, as each wants them to lie."""

    folder: Path
    file: Path
    pictures: Path
    by_repeats: Path  # with sd-scripts' folder of repeats, and a tokenizer by the hub's name


def make_materials(scratch: Path, pixels: int) -> Materials:
    """Write a model of random weights, and pictures with captions."""
    made = Materials(
        scratch / "model", scratch / "model.safetensors", scratch / "pictures", scratch / "kohya"
    )
    torch.manual_seed(0)
    vocabulary, merges = clip_vocabulary(), clip_merges()
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)
    parts: dict[str, Any] = parts_of("sd1")
    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
    )
    pipeline = StableDiffusionPipeline(
        **parts, tokenizer=tokenizer, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(made.folder)
    for folder in (made.folder / "tokenizer", made.by_repeats / "openai_clip-vit-large-patch14"):
        _write_tokenizer(folder, vocabulary, merges)
    converted(made.folder, made.file, torch.float32)
    rows = []
    rng = np.random.default_rng(0)
    for folder in (made.pictures, made.by_repeats / "pictures" / "1_pictures"):
        folder.mkdir(parents=True)
        for number in range(PICTURES):
            name, caption = f"{number}.png", f"a picture of the number {number}"
            noise = rng.integers(0, 256, (pixels, pixels, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / name)
            (folder / f"{number}.txt").write_text(caption, encoding="utf-8")
            rows.append(json.dumps({"file_name": name, "text": caption}))
    listed = "\n".join(rows[:PICTURES])
    (made.pictures / "metadata.jsonl").write_text(listed, encoding="utf-8")
    return made


def _write_tokenizer(
    folder: Path, vocabulary: Mapping[str, int], merges: list[tuple[str, str]]
) -> None:
    """Write the files that every version of transformers reads."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "vocab.json": json.dumps(vocabulary),
        "merges.txt": "\n".join(["#version: 0.2", *map(" ".join, merges)]),
        "tokenizer_config.json": json.dumps(
            {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
        ),
        "special_tokens_map.json": json.dumps(
            {
                "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>",
                "pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>",
            }
        ),
    }  # fmt: skip
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


def ours(made: Materials, options: argparse.Namespace, targets: tuple[str, ...]) -> list[str]:
    """Our own command, on some groups of layers."""
    workspace = tempfile.mkdtemp(dir=made.folder.parent)
    return [
        "-m", "sdlora", "train", str(made.pictures), "--workspace", workspace,
        "--model", str(made.folder),
        "--name", "benchmark", "--targets", *targets,
        "--rank", str(options.rank), "--alpha", str(options.rank), "--precision", options.dtype,
        "--batch-size", str(options.batch), "--resolution", str(options.pixels),
        "--steps", str(options.steps + UNCOUNTED), "--sample-every", "0", "--save-every", "0",
        "--validate-every", "0", "--learning-rate", "1e-4",
    ]  # fmt: skip


def diffusers_script(made: Materials, options: argparse.Namespace) -> list[str]:
    """The command of diffusers' `train_text_to_image_lora.py`."""
    script = options.diffusers / "examples" / "text_to_image" / "train_text_to_image_lora.py"
    return [
        str(script if script.exists() else options.diffusers), "--pretrained_model_name_or_path",
        str(made.folder), "--train_data_dir", str(made.pictures), "--output_dir",
        str(made.folder.parent / "diffusers"), "--rank", str(options.rank),
        "--resolution", str(options.pixels), "--train_batch_size", str(options.batch),
        "--max_train_steps", str(options.steps + UNCOUNTED), "--lr_warmup_steps", "0",
        "--mixed_precision", _mixed(options.dtype), "--checkpointing_steps", "100000",
        "--cache_dir", str(made.folder.parent / "cache"), "--seed", "0",
    ]  # fmt: skip


def sd_scripts(made: Materials, options: argparse.Namespace) -> list[str]:
    """The command of sd-scripts' `train_network.py`."""
    return [
        str(options.sd_scripts / "train_network.py"), "--pretrained_model_name_or_path",
        str(made.file), "--train_data_dir", str(made.by_repeats / "pictures"), "--output_dir",
        str(made.folder.parent / "sd-scripts"), "--output_name", "benchmark",
        "--tokenizer_cache_dir", str(made.by_repeats), "--network_module", "networks.lora",
        "--network_dim", str(options.rank), "--network_alpha", str(options.rank),
        "--network_train_unet_only", "--cache_latents", "--caption_extension", ".txt",
        "--resolution", str(options.pixels), "--train_batch_size", str(options.batch),
        "--max_train_steps", str(options.steps + UNCOUNTED), "--learning_rate", "1e-4",
        "--mixed_precision", _mixed(options.dtype), "--save_model_as", "safetensors",
        "--max_data_loader_n_workers", "0", "--sdpa", "--seed", "0",
    ]  # fmt: skip


def _mixed(dtype: str) -> str:
    return "no" if dtype == "fp32" else dtype


# A peer's command, and the groups of our layers that are those that it trains
PEERS: dict[str, tuple[Callable[[Materials, argparse.Namespace], list[str]], tuple[str, ...]]] = {
    "diffusers": (diffusers_script, ("self_attention", "cross_attention")),
    "sd_scripts": (sd_scripts, ("attention", "feed_forward")),
}


def step_s(python: str, command: list[str], scratch: Path) -> float:
    """Median seconds from one optimizer step to the next. RuntimeError: the script failed."""
    times = scratch / "times.json"
    times.unlink(missing_ok=True)
    driver = Path(__file__).with_name("step_times.py")
    script = command[1] if command[0] == "-m" else command[0]
    ended = subprocess.run(
        [python, str(driver), str(times), *command],
        cwd=ROOT if command[0] == "-m" else Path(script).parent,
        env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    steps = json.loads(times.read_text()) if times.exists() else []
    if len(steps) <= UNCOUNTED + 1:
        raise RuntimeError(f"{script}: {ended.stdout[-2000:]}\n{ended.stderr[-4000:]}")
    apart = np.diff(steps)[UNCOUNTED - 1 :]
    return float(statistics.median(apart))


def measure_peers(options: argparse.Namespace) -> dict[str, Any]:
    """Ours and each peer in turn, some rounds of it; a ratio is the median of the rounds' own."""
    rows: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        scratch = Path(folder)
        made = make_materials(scratch, options.pixels)
        for number in range(options.rounds):
            for peer, (command, targets) in PEERS.items():
                if not getattr(options, peer):
                    continue
                python = getattr(options, f"{peer}_python") or sys.executable
                row = {
                    "ours_s": step_s(sys.executable, ours(made, options, targets), scratch),
                    f"{peer}_s": step_s(python, command(made, options), scratch),
                }
                row["images/s, ours / theirs"] = row[f"{peer}_s"] / row["ours_s"]
                rows.setdefault(peer, []).append(row)
                print(f"round {number + 1}, {peer}: {row}", flush=True)
    return {
        peer: {name: statistics.median(row[name] for row in table) for name in table[0]}
        for peer, table in rows.items()
    }
