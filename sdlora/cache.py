"""Tensors that can be made again, kept on disk under a hash of all that they were made from.

Whatever changes gives another hash, so nothing is ever out of date; what is not asked for any more
goes first when the space is used up.
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

from sdlora.files import publish
from sdlora.messages import Message, as_message

RESERVE_GIB = 2.0  # of the disk that is left to others


@dataclass
class Cache:
    """A folder of safetensors files. With no folder, or no space allowed, it keeps nothing."""

    folder: Path | None = None
    most_gib: float = 0.0
    problem: str = field(default="", init=False)  # why it stopped keeping things

    def get(self, **made_from: Any) -> dict[str, Tensor] | None:
        """The tensors made from that; None when they are not here, or damaged."""
        path = self._path(made_from)
        if path is None:
            return None
        try:
            found: dict[str, Tensor] = load(path.read_bytes())
            os.utime(path)  # the last to go
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, ValueError):
            return None  # it is made again, and written over
        return found

    def put(self, tensors: Mapping[str, Tensor], **made_from: Any) -> None:
        """Keep them. A full disk stops nobody: `problem` says so and nothing more is kept."""
        path = self._path(made_from)
        if path is None or self.problem:
            return
        kept = {name: tensor.contiguous() for name, tensor in tensors.items()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(path.parent).free < RESERVE_GIB * 2**30:
                self.problem = Message(
                    "less than {least:.0f} GiB of the disk are free", least=RESERVE_GIB
                )
            else:
                publish(path, partial(save_file, kept))
        except (OSError, SafetensorError) as error:
            self.problem = as_message(str(error))

    def trim(self) -> int:
        """Delete what was not asked for the longest, until the rest fits; the bytes freed."""
        if self.folder is None or not self.folder.is_dir():
            return 0
        files = []
        for path in self.folder.rglob("*.safetensors"):
            try:
                stat = path.stat()
            except OSError:
                continue  # another training trims as well
            files.append((stat.st_mtime_ns, stat.st_size, path))
        room, freed = self.most_gib * 2**30, 0
        for _, size, path in sorted(files, reverse=True):
            room -= size
            if room < 0:
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
    """What tells modules from all others: a hash of every bit of their weights."""
    digest = hashlib.sha256()
    for module in modules:
        digest.update(type(module).__name__.encode())
        for name, tensor in module.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
