"""Conversion of base models: between one file and a diffusers folder, and of number formats."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from sdlora.disk_room import check_output_room
from sdlora.errors import ModelError
from sdlora.files import write_if_absent
from sdlora.models.checkpoint_header import PICKLES
from sdlora.models.folder_facts import folder_facts
from sdlora.models.pickled_checkpoint import read_pickled_weights
from sdlora.models.registry import open_family
from sdlora.models.stored_model import (
    READ_AS,
    WRITTEN_AS,
    StoredModel,
    marks,
    open_stored,
    prediction_metadata,
    tensor_bytes,
    write_tensors,
)

_AVERAGED = "model_ema."  # a second copy of the weights, which no result has
CPU = torch.device("cpu")


@contextmanager
def readable_model(
    path: Path, scratch: Path, result_dtype: torch.dtype | None = None
) -> Iterator[Path]:
    """Yield the path of a model that can be opened: its own, or for a pickle that of a temporary
    safetensors file of its weights, in a folder beside `scratch`. ModelError: it is no model;
    RunError: there is no room for that file and for a result in `result_dtype`."""
    if path.is_dir() or path.suffix.lower() not in PICKLES:
        yield path
        return
    tensors = read_pickled_weights(path)
    dtypes = {tensor.dtype for tensor in tensors.values()}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    dtype = dtype if dtype in WRITTEN_AS else torch.float32
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    used = [shape for name, shape in shapes.items() if not name.startswith(_AVERAGED)]
    result_bytes = tensor_bytes(used, result_dtype or dtype)
    check_output_room(scratch, tensor_bytes(shapes.values(), dtype) + result_bytes)
    with tempfile.TemporaryDirectory(prefix=".", dir=scratch) as folder:
        file = Path(folder) / f"{path.stem}.safetensors"
        write_tensors(file, shapes, dtype, tensors.__getitem__, {})
        yield file


def convert_to_file(model: StoredModel, output: Path, dtype: torch.dtype) -> None:
    """Write a model as one file in `dtype`. FileExistsError: there is one of that name."""
    table = {**model.shapes, **marks(model.facts)}
    metadata = {**model.metadata, **prediction_metadata(model.facts)}
    metadata.setdefault("modelspec.title", model.path.stem)

    def write(file: Path) -> None:
        write_tensors(file, table, dtype, lambda name: model.read(name, torch.float32), metadata)

    write_if_absent(output, write)


def convert_to_folder(path: Path, output: Path, dtype: torch.dtype) -> None:
    """Write a model as a diffusers folder in `dtype`. ModelError: a part is missing, or the folder
    is there already."""
    family = open_family(str(path), dtype, CPU)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=output.parent) as temporary:
        fresh = Path(temporary) / "model"
        family.save(fresh)
        if output.exists():
            raise ModelError("{folder} exists, and is not replaced", folder=output)
        fresh.rename(output)


def converted(path: Path, output: Path, dtype: torch.dtype | None) -> torch.dtype:
    """Convert the model at `path` to `output`: one file if that ends in .safetensors, else a
    folder; `dtype` None keeps its number format. Return the number format."""
    if path.is_dir():  # opened whole, so its room is checked by what it takes now
        check_output_room(output.parent, _folder_bytes(path, dtype))
    output.parent.mkdir(parents=True, exist_ok=True)
    with readable_model(path, output.parent, dtype) as source, open_stored(source) as model:
        chosen_dtype = dtype or model.dtype
        check_output_room(output.parent, tensor_bytes(model.shapes.values(), chosen_dtype))
        if output.suffix == ".safetensors":
            convert_to_file(model, output, chosen_dtype)
        else:
            convert_to_folder(source, output, chosen_dtype)
    return chosen_dtype


def _folder_bytes(path: Path, dtype: torch.dtype | None) -> int:
    """Return about how many bytes the weights of a diffusers folder take in `dtype`."""
    own_dtype = READ_AS.get(folder_facts(path).dtype, torch.float16)
    size = sum(file.stat().st_size for file in path.glob("*/*.safetensors"))
    ratio = (dtype or own_dtype).itemsize / own_dtype.itemsize
    return int(size * ratio)


__all__ = ["convert_to_file", "convert_to_folder", "converted", "open_stored", "readable_model"]
