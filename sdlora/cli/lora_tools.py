"""Functions of the LoRA tools, from their settings to the file that they write."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from sdlora.adapters import match_layers
from sdlora.adapters.extract import extract_from_models as extracted
from sdlora.adapters.fuse import fuse as fused
from sdlora.adapters.fuse import pristine_weights, save_model
from sdlora.architectures import FAMILIES
from sdlora.device import DTYPES, pick_device
from sdlora.errors import LoraFileError, ModelError, SettingsError
from sdlora.file_names import checked_name
from sdlora.files import write_atomically
from sdlora.lora.format.file import LoraFile, read_lora, write_lora
from sdlora.lora.format.identify import unread_note
from sdlora.lora.library.describe import find_file
from sdlora.lora.tools import provenance
from sdlora.lora.tools.compare import compare as compared
from sdlora.lora.tools.compare import draw
from sdlora.lora.tools.convert import (
    number_format,
    rounding,
    with_diffusers_names,
    with_key_style,
    with_one_alpha,
)
from sdlora.lora.tools.deltas import BaseWeight, has_matrix, no_weights
from sdlora.lora.tools.merge import MergeMethod
from sdlora.lora.tools.merge import merge as merged
from sdlora.lora.tools.merge import resize as resized
from sdlora.lora.tools.provenance import base_metadata
from sdlora.lora.tools.report import Report
from sdlora.messages import Setting
from sdlora.models.base import ModelFamily
from sdlora.models.registry import detect_family, open_family
from sdlora.models.single_file import open_single_file_like as open_like
from sdlora.settings.lora_tools import (
    CheckSettings,
    CompareSettings,
    ConvertSettings,
    ExtractSettings,
    FuseSettings,
    MergeSettings,
    Names,
    OutputSettings,
    ResizeSettings,
)
from sdlora.workspace import Workspace

CPU = torch.device("cpu")
STORED = {"F64": torch.float32, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
LOST = "lost: by group of layers, the relative error of what the LoRA changes, 0 to 1"
COLLISION = (
    "alone: layers that only one of the two changes. sizes: Frobenius norms of what each changes. "
    "outputs, inputs: how far both write to the same directions and read the same ones, 0 to 1. "
    "chance: how far directions drawn at random would overlap in the outputs. loss: share of the "
    "energy that a blend at equal weights loses where the two work against each other; below 0 "
    "they add up."
)


def check(settings: CheckSettings, workspace: Workspace) -> list[Report]:
    """Report for each file if it can be read and if its layers match a base model."""
    families: dict[str, ModelFamily] = {}
    return [_check_file(name, settings.model, families, workspace) for name in settings.files]


def _check_file(
    name: str, model: str, families: dict[str, ModelFamily], workspace: Workspace
) -> Report:
    facts: dict[str, Any] = {"name": name}
    try:
        file = read_lora(find_file(name, workspace))
        facts |= {"base": file.base, "kinds": file.kinds, "layers": len(file.layers)}
        model = model or _local_model(file.base, workspace)
        facts["model"] = model
        notes = _unread_notes((name,), (file,))
        if not model:
            return Report(f"{name}: usable, as far as the file tells", facts, notes)
        if model not in families:
            families[model] = _open_on_cpu(model, workspace)
        matching = match_layers(file, families[model])
    except LoraFileError as error:
        return Report(f"{name}: not usable", {**facts, "problem": str(error)}, good=False)
    facts |= {"unmatched": list(matching.unmatched)}
    count = f"{len(matching.unmatched)} layers of {name} are not in {model} and would not be used"
    return Report(f"{name}: usable", facts, (*notes, *((count,) if matching.unmatched else ())))


def _unread_notes(names: Iterable[str], files: Iterable[LoraFile]) -> tuple[str, ...]:
    """Return a note for each file with keys that are not understood."""
    rows = zip(names, files, strict=True)
    return tuple(unread_note(name, file.unread) for name, file in rows if file.unread)


def _local_model(base: str, workspace: Workspace) -> str:
    """Return a model of this base that can be opened without a download; '' for none."""
    for name in workspace.model_names():
        try:
            if detect_family(workspace.model_source(name)) == base:
                return name
        except ModelError:
            continue
    return ""


def convert(settings: ConvertSettings, workspace: Workspace) -> list[Report]:
    """Convert one file: adapter type, number format, key names, metadata."""
    path = _output_path(settings, workspace.loras)
    source = find_file(settings.file, workspace)
    lora = read_lora(source)
    dtype = DTYPES.get(settings.precision) or number_format(lora)
    metadata = provenance.rewritten_metadata(lora.metadata, "converted")
    notes = _unread_notes([source.name], [lora])
    file, lost = lora, rounding(lora, dtype)
    if settings.to == "lora":
        recipe = MergeMethod(rank=settings.highest_rank, keep=settings.least_kept, dtype=dtype)
        plain, lost = resized(
            with_diffusers_names(lora), recipe, _base_weights(settings.model, workspace)
        )
        file = with_one_alpha(plain)
        metadata |= _rank_metadata(file)
    if settings.private:
        metadata = provenance.with_title(provenance.without_private(metadata), path.stem)
    if settings.trigger_words is not None:
        metadata = provenance.with_trigger_words(metadata, settings.trigger_words)
    if settings.thumbnail:
        metadata = provenance.with_thumbnail(metadata, Path(settings.thumbnail).expanduser())
    facts = _save_lora(
        file, metadata, path, dtype, names=settings.names, overwrite=settings.overwrite
    )
    facts |= {"lost": lost.by_group()}
    removed = file.metadata.keys() - metadata.keys() - set(provenance.STALE_KEYS)
    facts |= {"taken out": sorted(removed)}
    return [Report(f"converted {source.name}", facts, notes, legend=LOST)]


def merge(settings: MergeSettings, workspace: Workspace) -> list[Report]:
    """Merge several files into one."""
    path = _output_path(settings, workspace.loras)
    sources = [find_file(name, workspace) for name in settings.files]
    files = [with_diffusers_names(read_lora(source)) for source in sources]
    base = _common_base(sources, files)
    how = {"method": settings.method, "density": settings.density, "seed": settings.seed}
    recipe = _merge_method(settings, number_format(*files), **how)
    file, losses = merged(
        files, settings.strengths, recipe, _base_weights(settings.model, workspace)
    )
    method = f"{settings.method}, rank {_rank_range(file)}"
    rows = zip(sources, settings.strengths, files, strict=True)
    merge_sources = [
        provenance.MergeSource(source.stem, weight, file.metadata) for source, weight, file in rows
    ]
    metadata = provenance.with_title(
        provenance.merged_metadata(merge_sources, base, method), path.stem
    )
    facts = _save_lora(
        file, metadata | _rank_metadata(file), path, recipe.dtype, overwrite=settings.overwrite
    )
    facts |= {"lost": losses.by_group()}
    word_counts = Counter(word for source in files for word in source.embeddings)
    duplicate_notes = [
        f"several files bring an embedding {word!r}; the last one is kept"
        for word, count in word_counts.items()
        if count > 1
    ]
    title = f"merged {_weighted_names(sources, settings.strengths)} ({method})"
    return [
        Report(
            title,
            facts,
            (*_unread_notes(_file_names(sources), files), *duplicate_notes),
            legend=LOST,
        )
    ]


def resize(settings: ResizeSettings, workspace: Workspace) -> list[Report]:
    """Resize one file to another rank."""
    path = _output_path(settings, workspace.loras)
    source = find_file(settings.file, workspace)
    before = with_diffusers_names(read_lora(source))
    recipe = _merge_method(settings, number_format(before))
    file, losses = resized(before, recipe, _base_weights(settings.model, workspace))
    change = f"resized from rank {_rank_range(before)} to {_rank_range(file)}"
    metadata = provenance.with_title(
        provenance.rewritten_metadata(file.metadata, change), path.stem
    )
    facts = _save_lora(
        file, metadata | _rank_metadata(file), path, recipe.dtype, overwrite=settings.overwrite
    )
    facts |= {"lost": losses.by_group()}
    return [
        Report(
            f"{source.name} {change}", facts, _unread_notes([source.name], [before]), legend=LOST
        )
    ]


def extract(settings: ExtractSettings, workspace: Workspace) -> list[Report]:
    """Extract a finetuned model's difference from its base."""
    path = _output_path(settings, workspace.loras)
    base = _open_on_cpu(settings.base, workspace)
    single = Path(settings.tuned).expanduser()
    is_file = single.is_file()
    tuned = open_like(single, base) if is_file else _open_on_cpu(settings.tuned, workspace)
    recipe = _merge_method(settings, tuned.dtype, rank=settings.highest_rank)
    device, _ = pick_device()
    file, losses, others = extracted(base, tuned, recipe, device if device.type == "cuda" else CPU)
    title = f"extracted what {single.name} has learnt over {settings.base}"
    metadata = provenance.with_title(
        provenance.rewritten_metadata(base_metadata(base.name), title), path.stem
    )
    facts = _save_lora(
        file, metadata | _rank_metadata(file), path, recipe.dtype, overwrite=settings.overwrite
    )
    facts |= {"lost": losses.by_group()}
    left_out = (
        f"{len(others)} norms, biases and embeddings differ too and are left out, "
        f"such as {others[0]!r}"
        if others
        else ""
    )
    return [Report(title, facts, tuple(filter(None, [left_out])), legend=LOST)]


def fuse(settings: FuseSettings, workspace: Workspace) -> list[Report]:
    """Fuse LoRAs into a model's weights."""
    path = _output_path(settings, workspace.models)
    sources = [find_file(name, workspace) for name in settings.files]
    stored = _stored_dtype(workspace.model_source(settings.model))
    dtype = DTYPES.get(settings.precision, stored)
    # weights that are to be cast are added up in fp32
    family = _open_on_cpu(settings.model, workspace, stored if dtype == stored else torch.float32)
    files = [read_lora(source) for source in sources]
    losses, unmatched = fused(family, list(zip(files, settings.strengths, strict=True)), dtype)
    metadata = {
        "modelspec.title": path.stem,
        "modelspec.architecture": FAMILIES[family.name].architecture,
        "modelspec.merged_from": ", ".join([settings.model, *(source.stem for source in sources)]),
    }
    save_model(family, path, settings.overwrite, metadata)
    warnings = [*_unread_notes(_file_names(sources), files)]
    if unmatched:
        warnings.append(f"{len(unmatched)} layers are not in the model, such as {unmatched[0]!r}")
    if any(file.embeddings for file in files):
        warnings.append("the embeddings that come with a LoRA are not in a model; they stay behind")
    facts = {"output": str(path), "layers": len(losses.layers), "lost": losses.by_group()}
    title = f"fused {_weighted_names(sources, settings.strengths)} into {settings.model}"
    return [Report(title, facts, tuple(warnings), legend=LOST)]


def compare(settings: CompareSettings, workspace: Workspace) -> list[Report]:
    """Compare two files: the layers that both change, and the loss of a blend."""
    picture = Path(settings.picture).expanduser()
    if settings.picture:
        picture = picture.with_suffix(".png")
        if picture.exists() and not settings.overwrite:
            raise _exists_error(picture, "picture")
    sources = [find_file(name, workspace) for name in (settings.first, settings.second)]
    first_lora, second_lora = (with_diffusers_names(read_lora(source)) for source in sources)
    _common_base(sources, (first_lora, second_lora))
    first, second = (source.stem for source in sources)
    table = compared(first_lora, second_lora, _base_weights(settings.model, workspace))
    facts: dict[str, Any] = {"groups": {group: asdict(row) for group, row in table.items()}}
    if settings.picture:
        image = draw(table, first, second)
        write_atomically(picture, image.save)
        facts["picture"] = str(picture)
    return [Report(f"{first} and {second}", facts, legend=COLLISION)]


def _save_lora(
    file: LoraFile,
    metadata: dict[str, str],
    path: Path,
    dtype: torch.dtype,
    *,
    names: Names = "auto",
    overwrite: bool,
) -> dict[str, Any]:
    """Write a LoRA with the key names that most programs read, unless `names` says otherwise;
    returns facts about it. SettingsError: a file took its name meanwhile, and may not be
    overwritten."""
    usual = FAMILIES[file.base].lora_key_style if file.base in FAMILIES else "kohya"
    named = usual if names == "auto" else names
    fresh = with_key_style(LoraFile(file.layers, metadata, file.embeddings), named)
    try:
        write_lora(fresh, path, dtype, named, overwrite=overwrite)
    except FileExistsError:
        raise _exists_error(path, "output") from None
    return {
        "output": str(path),
        "base": fresh.base,
        "kinds": fresh.kinds,
        "layers": len(fresh.layers),
        "rank": _rank_range(fresh),
        "bytes": path.stat().st_size,
    }


def _file_names(paths: Iterable[Path]) -> list[str]:
    return [path.name for path in paths]


def _rank_metadata(file: LoraFile) -> dict[str, str]:
    """Return the rank metadata of a file; the tools here write alpha = rank."""
    return provenance.rank_metadata(layer.rank for layer in file.layers.values() if layer.rank)


def _rank_range(file: LoraFile) -> str:
    """'8', or '4 to 16'."""
    ranks = sorted({layer.rank for layer in file.layers.values() if has_matrix(layer)})
    ends = ranks[:1] + ranks[1:][-1:]
    return " to ".join(map(str, ends))


def _weighted_names(sources: Sequence[Path], weights: Sequence[float]) -> str:
    rows = zip(sources, weights, strict=True)
    return " + ".join(f"{weight:g} × {source.stem}" for source, weight in rows)


def _merge_method(
    settings: MergeSettings | ResizeSettings | ExtractSettings, same: torch.dtype, **more: Any
) -> MergeMethod:
    dtype = DTYPES.get(settings.precision, same)
    return MergeMethod(**{"rank": settings.rank, "keep": settings.keep, "dtype": dtype, **more})


def _common_base(sources: Sequence[Path], files: Sequence[LoraFile]) -> str:
    """Return the base model that all files are for, as far as they tell. LoraFileError: there are
    several."""
    rows = [(source.stem, file.base) for source, file in zip(sources, files, strict=True)]
    known = [(name, base) for name, base in rows if base]
    if len({base for _, base in known}) > 1:
        models = ", ".join(f"{name} is for {FAMILIES[base].title}" for name, base in known)
        raise LoraFileError(
            "LoRAs for different base models do not go together: {models}", models=models
        )
    return known[0][1] if known else ""


def _output_path(settings: OutputSettings, folder: Path) -> Path:
    """Return the path to write to. A bare name is one in `folder`. SettingsError: it exists
    already."""
    path = Path(settings.output).expanduser()
    if path.name == settings.output and not path.suffix:
        ending = ".safetensors" if folder.name == "loras" else ""
        path = folder / (checked_name(settings.output) + ending)
    if path.exists() and not settings.overwrite:
        raise _exists_error(path, "output")
    return path


def _exists_error(path: Path, setting: str) -> SettingsError:
    return SettingsError(
        "{file} exists; choose another {setting} or add {overwrite}",
        file=path,
        setting=Setting(setting),
        overwrite=Setting("overwrite"),
    )


def _base_weights(model: str, workspace: Workspace) -> BaseWeight:
    return pristine_weights(_open_on_cpu(model, workspace)) if model else no_weights


def _open_on_cpu(model: str, workspace: Workspace, dtype: torch.dtype | None = None) -> ModelFamily:
    """Return a model on the CPU, in the stored number format unless `dtype` is given: nothing here
    runs it."""
    source = workspace.checked_model(model)
    return open_family(source, dtype or _stored_dtype(source), CPU)


def _stored_dtype(source: str) -> torch.dtype:
    """Return the number format of a model folder's UNet; fp32, which holds all others, where
    unknown."""
    for path in sorted(Path(source).expanduser().glob("unet/*.safetensors")):
        with safe_open(path, framework="pt") as file:
            return STORED.get(file.get_slice(next(iter(file.keys()))).get_dtype(), torch.float32)
    return torch.float32
