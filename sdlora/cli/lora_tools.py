"""What each LoRA tool does, from its settings to the file it makes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open

from sdlora.adapters import match_layers
from sdlora.adapters.extract import extract_from_models as extracted
from sdlora.adapters.fuse import fuse as fused
from sdlora.adapters.fuse import pristine_weights, save_model
from sdlora.architectures import BASES
from sdlora.device import DTYPES, pick_device
from sdlora.errors import LoraFileError, ModelError, SettingsError
from sdlora.file_names import checked_name
from sdlora.files import publish
from sdlora.lora.format.file import LoraFile, read_lora, write_lora
from sdlora.lora.format.identify import unread_note
from sdlora.lora.library.describe import find_file
from sdlora.lora.tools import provenance
from sdlora.lora.tools.compare import compare as compared
from sdlora.lora.tools.compare import draw
from sdlora.lora.tools.convert import alike, number_format, renamed, rounding, with_one_alpha
from sdlora.lora.tools.deltas import Pristine, has_matrix, no_weights
from sdlora.lora.tools.merge import MergeMethod
from sdlora.lora.tools.merge import merge as merged
from sdlora.lora.tools.merge import resize as resized
from sdlora.lora.tools.provenance import of_base
from sdlora.lora.tools.report import Report
from sdlora.messages import Setting
from sdlora.models.base import Family
from sdlora.models.registry import detect_family, open_family
from sdlora.models.single_file import open_single_file
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
WRITTEN_AS_PEFT = ("sd3",)  # what most programs read for it; kohya's names for all others


def check(settings: CheckSettings, workspace: Workspace) -> list[Report]:
    """Whether each file passes the gate and fits a base model."""
    families: dict[str, Family] = {}
    return [_checked(name, settings.model, families, workspace) for name in settings.files]


def _checked(name: str, model: str, families: dict[str, Family], workspace: Workspace) -> Report:
    facts: dict[str, Any] = {"name": name}
    try:
        file = read_lora(find_file(name, workspace))
        facts |= {"base": file.base, "kinds": file.kinds, "layers": len(file.layers)}
        model = model or _at_hand(file.base, workspace)
        facts["model"] = model
        notes = _unread((name,), (file,))
        if not model:
            return Report(f"{name}: usable, as far as the file tells", facts, notes)
        if model not in families:
            families[model] = _open(model, workspace)
        its = match_layers(file, families[model])
    except LoraFileError as error:
        return Report(f"{name}: not usable", {**facts, "problem": str(error)}, good=False)
    facts |= {"unmatched": list(its.unmatched)}
    count = f"{len(its.unmatched)} layers of {name} are not in {model} and would not be used"
    return Report(f"{name}: usable", facts, (*notes, *((count,) if its.unmatched else ())))


def _unread(names: Iterable[str], files: Iterable[LoraFile]) -> tuple[str, ...]:
    """What of the files nobody knows, in words."""
    rows = zip(names, files, strict=True)
    return tuple(unread_note(name, file.unread) for name, file in rows if file.unread)


def _at_hand(base: str, workspace: Workspace) -> str:
    """A model of this base that can be opened without a download; empty: there is none."""
    for name in workspace.model_names():
        try:
            if detect_family(workspace.model_source(name)) == base:
                return name
        except ModelError:
            continue
    return ""


def convert(settings: ConvertSettings, workspace: Workspace) -> list[Report]:
    """One file in another way: names, number format, what it says of itself."""
    path = _output(settings, workspace.loras)
    source = find_file(settings.file, workspace)
    read = read_lora(source)
    dtype = DTYPES.get(settings.precision) or number_format(read)
    said, notes = provenance.rewritten(read.metadata, "converted"), _unread([source.name], [read])
    file, lost = read, rounding(read, dtype)
    if settings.to == "lora":
        recipe = MergeMethod(rank=settings.highest_rank, keep=settings.least_kept, dtype=dtype)
        plain, lost = resized(alike(read), recipe, _pristine(settings.model, workspace))
        file = with_one_alpha(plain)
        said |= _of_ranks(file)
    if settings.private:
        said = provenance.named(provenance.without_private(said), path.stem)
    if settings.trigger_words is not None:
        said = provenance.with_trigger_words(said, settings.trigger_words)
    if settings.thumbnail:
        said = provenance.with_thumbnail(said, Path(settings.thumbnail).expanduser())
    facts = _save(file, said, path, dtype, names=settings.names, overwrite=settings.overwrite)
    facts |= {"lost": lost.by_group()}
    gone = file.metadata.keys() - said.keys() - set(provenance.STALE)
    facts |= {"taken out": sorted(gone)}
    return [Report(f"converted {source.name}", facts, notes, legend=LOST)]


def merge(settings: MergeSettings, workspace: Workspace) -> list[Report]:
    """Several files in one."""
    path = _output(settings, workspace.loras)
    sources = [find_file(name, workspace) for name in settings.files]
    files = [alike(read_lora(source)) for source in sources]
    base = _one_base(sources, files)
    how = {"method": settings.method, "density": settings.density, "seed": settings.seed}
    recipe = _recipe(settings, number_format(*files), **how)
    file, losses = merged(files, settings.strengths, recipe, _pristine(settings.model, workspace))
    method = f"{settings.method}, rank {_ranks(file)}"
    rows = zip(sources, settings.strengths, files, strict=True)
    its = [provenance.Source(source.stem, weight, file.metadata) for source, weight, file in rows]
    said = provenance.named(provenance.merged(its, base, method), path.stem)
    facts = _save(file, said | _of_ranks(file), path, recipe.dtype, overwrite=settings.overwrite)
    facts |= {"lost": losses.by_group()}
    words = Counter(word for source in files for word in source.embeddings)
    twice = [
        f"several files bring an embedding {word!r}; the last one is kept"
        for word, count in words.items()
        if count > 1
    ]
    what = f"merged {_weighted(sources, settings.strengths)} ({method})"
    return [Report(what, facts, (*_unread(_names(sources), files), *twice), legend=LOST)]


def resize(settings: ResizeSettings, workspace: Workspace) -> list[Report]:
    """One file at another rank."""
    path = _output(settings, workspace.loras)
    source = find_file(settings.file, workspace)
    before = alike(read_lora(source))
    recipe = _recipe(settings, number_format(before))
    file, losses = resized(before, recipe, _pristine(settings.model, workspace))
    what = f"resized from rank {_ranks(before)} to {_ranks(file)}"
    said = provenance.named(provenance.rewritten(file.metadata, what), path.stem)
    facts = _save(file, said | _of_ranks(file), path, recipe.dtype, overwrite=settings.overwrite)
    facts |= {"lost": losses.by_group()}
    return [Report(f"{source.name} {what}", facts, _unread([source.name], [before]), legend=LOST)]


def extract(settings: ExtractSettings, workspace: Workspace) -> list[Report]:
    """A finetuned model's difference from its base."""
    path = _output(settings, workspace.loras)
    base = _open(settings.base, workspace)
    single = Path(settings.tuned).expanduser()
    is_file = single.is_file()
    tuned = open_single_file(single, base) if is_file else _open(settings.tuned, workspace)
    recipe = _recipe(settings, tuned.dtype, rank=settings.highest_rank)
    device, _ = pick_device()
    file, losses, others = extracted(base, tuned, recipe, device if device.type == "cuda" else CPU)
    what = f"extracted what {single.name} has learnt over {settings.base}"
    said = provenance.named(provenance.rewritten(of_base(base.name), what), path.stem)
    facts = _save(file, said | _of_ranks(file), path, recipe.dtype, overwrite=settings.overwrite)
    facts |= {"lost": losses.by_group()}
    left_out = (
        f"{len(others)} norms, biases and embeddings differ too and are left out, "
        f"such as {others[0]!r}"
        if others
        else ""
    )
    return [Report(what, facts, tuple(filter(None, [left_out])), legend=LOST)]


def fuse(settings: FuseSettings, workspace: Workspace) -> list[Report]:
    """LoRAs in a model's weights."""
    path = _output(settings, workspace.models)
    sources = [find_file(name, workspace) for name in settings.files]
    stored = _stored_dtype(workspace.model_source(settings.model))
    dtype = DTYPES.get(settings.precision, stored)
    # what is to be cast is added up in fp32
    family = _open(settings.model, workspace, stored if dtype == stored else torch.float32)
    files = [read_lora(source) for source in sources]
    losses, unmatched = fused(family, list(zip(files, settings.strengths, strict=True)), dtype)
    said = {
        "modelspec.title": path.stem,
        "modelspec.architecture": BASES[family.name].architecture,
        "modelspec.merged_from": ", ".join([settings.model, *(source.stem for source in sources)]),
    }
    save_model(family, path, settings.overwrite, said)
    warnings = [*_unread(_names(sources), files)]
    if unmatched:
        warnings.append(f"{len(unmatched)} layers are not in the model, such as {unmatched[0]!r}")
    if any(file.embeddings for file in files):
        warnings.append("the embeddings that come with a LoRA are not in a model; they stay behind")
    facts = {"output": str(path), "layers": len(losses.layers), "lost": losses.by_group()}
    what = f"fused {_weighted(sources, settings.strengths)} into {settings.model}"
    return [Report(what, facts, tuple(warnings), legend=LOST)]


def compare(settings: CompareSettings, workspace: Workspace) -> list[Report]:
    """Where two files collide."""
    picture = Path(settings.picture).expanduser()
    if settings.picture:
        picture = picture.with_suffix(".png")
        if picture.exists() and not settings.overwrite:
            raise _exists(picture, "picture")
    sources = [find_file(name, workspace) for name in (settings.one, settings.other)]
    one, other = (alike(read_lora(source)) for source in sources)
    _one_base(sources, (one, other))
    first, second = (source.stem for source in sources)
    table = compared(one, other, _pristine(settings.model, workspace))
    facts: dict[str, Any] = {"groups": {group: asdict(its) for group, its in table.items()}}
    if settings.picture:
        image = draw(table, first, second)
        publish(picture, image.save)
        facts["picture"] = str(picture)
    return [Report(f"{first} and {second}", facts, legend=COLLISION)]


def _save(
    file: LoraFile,
    said: dict[str, str],
    path: Path,
    dtype: torch.dtype,
    *,
    names: Names = "auto",
    overwrite: bool,
) -> dict[str, Any]:
    """Write a LoRA, named as most programs read it unless told otherwise; the facts of it.
    SettingsError: a file took its name meanwhile, and it is not to be overwritten."""
    usual: Literal["kohya", "peft"] = "peft" if file.base in WRITTEN_AS_PEFT else "kohya"
    named = usual if names == "auto" else names
    fresh = renamed(LoraFile(file.layers, said, file.embeddings), named)
    try:
        write_lora(fresh, path, dtype, named, overwrite=overwrite)
    except FileExistsError:
        raise _exists(path, "output") from None
    return {
        "output": str(path),
        "base": fresh.base,
        "kinds": fresh.kinds,
        "layers": len(fresh.layers),
        "rank": _ranks(fresh),
        "bytes": path.stat().st_size,
    }


def _names(paths: Iterable[Path]) -> list[str]:
    return [path.name for path in paths]


def _of_ranks(file: LoraFile) -> dict[str, str]:
    """What a file says of its ranks; the tools here write alpha = rank."""
    return provenance.of_ranks(its.rank for its in file.layers.values() if its.rank)


def _ranks(file: LoraFile) -> str:
    """'8', or '4 to 16'."""
    found = sorted({its.rank for its in file.layers.values() if has_matrix(its)})
    ends = found[:1] + found[1:][-1:]
    return " to ".join(map(str, ends))


def _weighted(sources: Sequence[Path], weights: Sequence[float]) -> str:
    rows = zip(sources, weights, strict=True)
    return " + ".join(f"{weight:g} × {source.stem}" for source, weight in rows)


def _recipe(
    settings: MergeSettings | ResizeSettings | ExtractSettings, same: torch.dtype, **more: Any
) -> MergeMethod:
    dtype = DTYPES.get(settings.precision, same)
    return MergeMethod(**{"rank": settings.rank, "keep": settings.keep, "dtype": dtype, **more})


def _one_base(sources: Sequence[Path], files: Sequence[LoraFile]) -> str:
    """The base that all are for, as far as they tell. LoraFileError when there are several."""
    rows = [(source.stem, file.base) for source, file in zip(sources, files, strict=True)]
    found = [(name, base) for name, base in rows if base]
    if len({base for _, base in found}) > 1:
        said = ", ".join(f"{name} is for {BASES[base].title}" for name, base in found)
        raise LoraFileError(
            "LoRAs for different base models do not go together: {models}", models=said
        )
    return found[0][1] if found else ""


def _output(settings: OutputSettings, folder: Path) -> Path:
    """Where to write. A bare name is one for `folder`. SettingsError when it exists already."""
    wish = Path(settings.output).expanduser()
    if wish.name == settings.output and not wish.suffix:
        ending = ".safetensors" if folder.name == "loras" else ""
        wish = folder / (checked_name(settings.output) + ending)
    if wish.exists() and not settings.overwrite:
        raise _exists(wish, "output")
    return wish


def _exists(path: Path, setting: str) -> SettingsError:
    return SettingsError(
        "{file} exists; choose another {setting} or add {overwrite}",
        file=path,
        setting=Setting(setting),
        overwrite=Setting("overwrite"),
    )


def _pristine(model: str, workspace: Workspace) -> Pristine:
    return pristine_weights(_open(model, workspace)) if model else no_weights


def _open(model: str, workspace: Workspace, dtype: torch.dtype | None = None) -> Family:
    """A model on the CPU, as it is stored unless told otherwise: nothing here runs it."""
    source = workspace.model_source(model)
    return open_family(source, dtype or _stored_dtype(source), CPU)


def _stored_dtype(source: str) -> torch.dtype:
    """The number format of a model's folder; fp32, which holds all others, where it cannot tell."""
    for path in sorted(Path(source).expanduser().glob("unet/*.safetensors")):
        with safe_open(path, framework="pt") as file:
            return STORED.get(file.get_slice(next(iter(file.keys()))).get_dtype(), torch.float32)
    return torch.float32
