"""Description of a LoRA file from its header, as plain values for the command line; no torch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from sdlora.architectures import FAMILIES, base_of
from sdlora.lora.format.hashes import read_hashes
from sdlora.lora.format.header import read_header
from sdlora.lora.format.identify import identify_layers, unread_keys
from sdlora.lora.format.keys import embeddings_of
from sdlora.lora.format.layer_groups import in_groups, part_of
from sdlora.lora.library.file_info import one_line, trigger_words
from sdlora.lora.library.library import Library
from sdlora.workspace import Workspace

# Label of a training fact -> its key in the file's metadata
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
    """Return the file at path `name`, else the one that a prompt would mean by that name.

    LoraFileError: there is none.
    """
    path = Path(name).expanduser()
    return path if path.is_file() else Library.for_workspace(workspace).find(name).path


def describe(path: Path) -> dict[str, Any]:
    """Return the facts of a file as plain values by their names.

    `ranks` counts layers by rank, 0 for those that have none; `layers` counts them by group.
    LoraFileError when the header is refused.
    """
    header = read_header(path)
    layers = identify_layers(header.shapes)
    metadata = header.metadata
    base = base_of({name: layer.shape for name, layer in layers.items()}, metadata)
    hashes = read_hashes(path)
    return {
        "file": str(path),
        "name": path.stem,
        "title": one_line(metadata.get("modelspec.title", "")),
        "base": base,
        "base title": FAMILIES[base].title if base in FAMILIES else "unknown",
        "kinds": dict(Counter(layer.kind for layer in layers.values()).most_common()),
        "ranks": dict(sorted(Counter(layer.rank for layer in layers.values()).items())),
        "parts": dict(Counter(part_of(name) for name in layers)),
        "layers": {group: len(names) for group, names in in_groups(layers).items()},
        "not used": list(unread_keys(header.shapes, layers)),
        "embeddings": sorted({name for name, _ in embeddings_of(header.shapes).values()}),
        "trigger words": list(trigger_words(metadata)),
        "making": {
            label: one_line(metadata[key]) for label, key in MAKING.items() if metadata.get(key)
        },
        "thumbnail": "modelspec.thumbnail" in metadata,
        "bytes": path.stat().st_size,
        "sha256": hashes.sha256,
        "AutoV2": hashes.autov2,
        "AutoV3": hashes.autov3,
        "legacy hash": hashes.legacy,
    }
