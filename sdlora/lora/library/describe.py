"""All that a LoRA file tells of itself, from its header alone; no torch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from sdlora.architectures import BASES, base_of
from sdlora.lora.format.hashes import read_hashes
from sdlora.lora.format.header import read_header
from sdlora.lora.format.identify import identify_layers, unread_keys
from sdlora.lora.format.keys import embeddings_of
from sdlora.lora.format.layer_groups import in_groups, part_of
from sdlora.lora.library.file_info import plain, trigger_words
from sdlora.lora.library.library import Library
from sdlora.workspace import Workspace

# What is said of the making -> where it stands
MAKING = {
    "trained as": "ss_output_name",
    "on": "ss_sd_model_name",
    "pictures": "ss_num_train_images",
    "resolution": "ss_resolution",
    "steps": "ss_steps",
    "batch size": "ss_batch_size_per_device",
    "learning rate": "ss_learning_rate",
    "schedule": "ss_lr_scheduler",
    "optimizer": "ss_optimizer",
    "rank": "ss_network_dim",
    "alpha": "ss_network_alpha",
    "date": "modelspec.date",
    "merged from": "modelspec.merged_from",
    "comment": "ss_training_comment",
}


def find_file(name: str, workspace: Workspace) -> Path:
    """The file at a path, or that a prompt would mean by `name`. LoraFileError: there is none."""
    path = Path(name).expanduser()
    return path if path.is_file() else Library.of(workspace).find(name).path


def describe(path: Path) -> dict[str, Any]:
    """Plain values by what they are. LoraFileError when the file does not pass the gate.

    `ranks` counts layers by rank, 0 for those that have none; `layers` by part of the model and
    by group.
    """
    header = read_header(path)
    layers = identify_layers(header.shapes)
    said = header.metadata
    base = base_of({name: layer.shape for name, layer in layers.items()}, said)
    hashes = read_hashes(path)
    return {
        "file": str(path),
        "name": path.stem,
        "title": plain(said.get("modelspec.title", "")),
        "base": base,
        "base title": BASES[base].title if base in BASES else "unknown",
        "kinds": dict(Counter(layer.kind for layer in layers.values()).most_common()),
        "ranks": dict(sorted(Counter(layer.rank for layer in layers.values()).items())),
        "parts": dict(Counter(part_of(name) for name in layers)),
        "layers": {group: len(names) for group, names in in_groups(layers).items()},
        "not used": list(unread_keys(header.shapes, layers)),
        "embeddings": sorted({name for name, _ in embeddings_of(header.shapes).values()}),
        "trigger words": list(trigger_words(said)),
        "making": {what: plain(said[key]) for what, key in MAKING.items() if said.get(key)},
        "thumbnail": "modelspec.thumbnail" in said,
        "bytes": path.stat().st_size,
        "sha256": hashes.sha256,
        "AutoV2": hashes.autov2,
        "AutoV3": hashes.autov3,
        "legacy hash": hashes.legacy,
    }
