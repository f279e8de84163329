"""Functions of the model tools, from their settings to the file that they write."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sdlora.architectures import FAMILIES
from sdlora.assets.checkpoints import CheckpointLibrary
from sdlora.assets.convert import converted, readable_model
from sdlora.assets.merge import ModelMerge, merge_models
from sdlora.device import DTYPES
from sdlora.errors import ModelError
from sdlora.file_names import MAX_NAME_LETTERS, checked_name
from sdlora.lora.tools.report import Report
from sdlora.models.check import check_model
from sdlora.models.stored_model import open_stored
from sdlora.settings.model_tools import (
    ModelCheckSettings,
    ModelConvertSettings,
    ModelMergeSettings,
)
from sdlora.workspace import Workspace


def check(settings: ModelCheckSettings, workspace: Workspace) -> list[Report]:
    """Report for each model if all its tensors are there, with the shapes that it needs."""
    library = CheckpointLibrary(workspace)
    names = list(settings.models)
    if names == ["all"]:
        names = [entry.name for entry in library.list()]
    return [_check(name, library) for name in names]


def _check(name: str, library: CheckpointLibrary) -> Report:
    facts: dict[str, Any] = {"name": name}
    try:
        entry = library.find(name)
        model, count = check_model(entry.path)
    except ModelError as error:
        return Report(f"{name}: not usable", {**facts, "problem": str(error)}, good=False)
    facts |= {"family": FAMILIES[model.family].title, "tensors": count}
    facts |= {"missing parts": entry.missing_parts()}
    return Report(f"{name}: complete", facts)


def convert(settings: ModelConvertSettings, workspace: Workspace) -> list[Report]:
    """Convert one model; the source stays as it is."""
    entry = CheckpointLibrary(workspace).find(settings.model)
    is_file = settings.to == "file"
    output = _output(settings.output or entry.path.stem, is_file, workspace)
    try:
        dtype = converted(entry.path, output, DTYPES.get(settings.precision))
    except FileExistsError:
        raise _exists(output) from None
    facts = {"output": str(output), "numbers": str(dtype).removeprefix("torch.")}
    return [Report(f"converted {entry.name}", facts)]


def merge(settings: ModelMergeSettings, workspace: Workspace) -> list[Report]:
    """Merge two or three models into a file."""
    library = CheckpointLibrary(workspace)
    paths = [library.find(name).path for name in settings.models]
    joined = "_".join(path.stem for path in paths)[:MAX_NAME_LETTERS]
    output = _output(settings.output or joined, True, workspace)
    recipe = ModelMerge(settings.method, settings.weight, settings.block_weights)
    dtype = DTYPES.get(settings.precision)
    output.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        models = []
        for path in paths:
            source = stack.enter_context(readable_model(path, output.parent, dtype))
            models.append(stack.enter_context(open_stored(source)))
        try:
            counts = merge_models(models, recipe, output, dtype or models[0].dtype)
        except FileExistsError:
            raise _exists(output) from None
        differ = len({model.facts.prediction for model in models}) > 1
    note = (
        "not all of the models say what they predict; if the merge's pictures are noise, they do "
        "not go together"
    )
    facts = {"output": str(output), "tensors": counts}
    title = f"merged {', '.join(settings.models)} ({settings.method})"
    return [Report(title, facts, (note,) if differ else ())]


def _output(text: str, is_file: bool, workspace: Workspace) -> Path:
    """Return the path to write to; a bare name is one in models/. ModelError: it exists."""
    path = Path(text).expanduser()
    if path.name == text:
        stem = text.removesuffix(".safetensors") if is_file else text
        path = workspace.models / checked_name(stem)
    if is_file and path.suffix != ".safetensors":
        path = path.with_name(path.name + ".safetensors")
    elif not is_file and path.suffix == ".safetensors":
        raise ModelError("{output} is a file's name; a folder is asked for", output=path)
    if path.exists():
        raise _exists(path)
    return path


def _exists(path: Path) -> ModelError:
    return ModelError("{file} exists, and is not replaced; choose another --output", file=path)
