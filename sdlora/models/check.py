"""Check of a model on the disk: every tensor of its parts compared with their classes' own table,
on the meta device. Nothing is loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from sdlora.errors import ModelError
from sdlora.models.checkpoint_facts import CheckpointFacts, checkpoint_facts
from sdlora.models.checkpoint_header import Shape, read_checkpoint_header
from sdlora.models.folder_facts import folder_facts
from sdlora.models.single_file import checked_names
from sdlora.models.tensor_source import open_tensors
from sdlora.text_files import json_value

_TEXT = "text_model."  # which transformers has given up, and files have


def check_model(path: Path) -> tuple[CheckpointFacts, int]:
    """Return (facts of a file or folder, tensors compared). ModelError: it is not complete."""
    if path.is_dir():
        return folder_facts(path), sum(_check_part(path / part) for part in _parts(path))
    with open_tensors(path) as source:
        facts = checkpoint_facts(source.header)
        return facts, len(checked_names(source, facts))


def _parts(folder: Path) -> list[str]:
    """Return the folder's networks; `folder_facts` has found its index harmless."""
    index = json_value((folder / "model_index.json").read_text(encoding="utf-8"))
    networks = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
    return [part for part in networks if (index.get(part) or [None])[0] is not None]


def _check_part(folder: Path) -> int:
    stored: dict[str, Shape] = {}
    for file in sorted(folder.glob("*.safetensors")):
        if ".fp16." not in file.name or len(list(folder.glob("*.safetensors"))) == 1:
            shapes = read_checkpoint_header(file).shapes
            stored |= {name.removeprefix(_TEXT): shape for name, shape in shapes.items()}
    if not stored:
        raise ModelError("{folder} holds no .safetensors file", folder=folder)
    expected, tied = _expected(folder)
    problems = [
        f"{name} is missing" if name not in stored else f"{name} has another shape"
        for name, shape in expected.items()
        if stored.get(name) != shape and not (name in tied and name not in stored)
    ]
    if problems:
        raise ModelError(
            "{count} tensors in {folder} are missing or of another shape, such as {key!r}",
            count=len(problems), folder=folder, key=problems[0],
        )  # fmt: skip
    return len(expected)


def _expected(folder: Path) -> tuple[dict[str, Shape], set[str]]:
    """Return (shapes of a part's tensors, those that may be missing, being another's)."""
    index = json_value((folder.parent / "model_index.json").read_text(encoding="utf-8"))
    library, name = index[folder.name]
    kind: Any = getattr(diffusers if library == "diffusers" else transformers, name)
    try:
        with torch.device("meta"):
            if library == "diffusers":
                module = kind.from_config(kind.load_config(folder, local_files_only=True))
            else:
                module = kind(kind.config_class.from_pretrained(folder, local_files_only=True))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(
            "the configuration of the model in {folder} is damaged: {why}",
            folder=folder, why=str(error).split("\n")[0][:200],
        ) from None  # fmt: skip
    state = module.state_dict()
    tied = set(getattr(module, "_tied_weights_keys", None) or ())
    shapes = {key.removeprefix(_TEXT): tuple(tensor.shape) for key, tensor in state.items()}
    return shapes, tied
