"""Cache on disk of tensors that can be computed again, under a hash of all their inputs.

Any change gives another hash, so nothing is ever out of date; the entries unused for longest are
deleted first when the space is used up.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from sdlora.files import write_atomically
from sdlora.messages import Message, as_message

RESERVE_GIB = 2.0  # of the disk that is left to others


@dataclass
class Cache:
    """Folder of safetensors files. With no folder, or no space allowed, nothing is cached."""

    folder: Path | None = None
    most_gib: float = 0.0
    problem: str = field(default="", init=False)  # why it stopped keeping things

    def get(self, **made_from: Any) -> dict[str, Tensor] | None:
        """Return the tensors made from these inputs; None when they are not cached, or damaged."""
        path = self._path(made_from)
        if path is None:
            return None
        try:
            tensors: dict[str, Tensor] = load(path.read_bytes())
            os.utime(path)  # the last to go
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, ValueError):
            return None  # it is made again, and written over
        return tensors

    def put(self, tensors: Mapping[str, Tensor], **made_from: Any) -> None:
        """Cache tensors. A full disk is no error: `problem` gives the reason and nothing more is
        cached."""
        path = self._path(made_from)
        if path is None or self.problem:
            return
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(path.parent).free < RESERVE_GIB * 2**30:
                self.problem = Message(
                    "less than {least:.0f} GiB of the disk are free", least=RESERVE_GIB
                )
            else:
                write_atomically(path, partial(save_file, contiguous))
        except (OSError, SafetensorError) as error:
            self.problem = as_message(str(error))

    def trim(self) -> int:
        """Delete the entries unused for longest, until the rest fits; returns the bytes freed."""
        if self.folder is None or not self.folder.is_dir():
            return 0
        files = []
        for path in self.folder.rglob("*.safetensors"):
            try:
                stat = path.stat()
            except OSError:
                continue  # another training trims as well
            files.append((stat.st_mtime_ns, stat.st_size, path))
        budget, freed = self.most_gib * 2**30, 0
        for _, size, path in sorted(files, reverse=True):
            budget -= size
            if budget < 0:
                path.unlink(missing_ok=True)
                freed += size
        return freed

    def _path(self, made_from: Mapping[str, Any]) -> Path | None:
        if self.folder is None or not self.most_gib:
            return None
        text = json.dumps(made_from, sort_keys=True, ensure_ascii=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        return self.folder / digest[:2] / f"{digest}.safetensors"


def digest_of(*modules: nn.Module) -> str:
    """Return a hash of every bit of the modules' weights."""
    digest = hashlib.sha256()
    for module in modules:
        digest.update(type(module).__name__.encode())
        for name, tensor in module.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
