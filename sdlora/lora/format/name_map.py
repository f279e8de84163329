"""What LoRA files call the modules of a model, and what those are called in other files; no torch.

A file names a layer by a prefix for the model's part and the path of a module with `_` for `.`, as
in `lora_unet_mid_block_attentions_0_proj_in`. The path is diffusers', or that of the model's first
code (see `original_names`), where one layer may be several modules of diffusers.

Source of the prefixes: kohya-ss/sd-scripts, networks/lora.py, lora_sd3.py and lora_flux.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from sdlora.lora.format.errors import refusal
from sdlora.lora.format.original_names import Names, Rows, diffusers_names, first_names

DENOISER = "lora_unet_"  # of every denoiser, UNet or transformer
_PREFIXES = {
    "denoiser": (DENOISER,),
    "te": ("lora_te_", "lora_te1_"),
    "te1": ("lora_te1_", "lora_te_"),
    "te2": ("lora_te2_",),
    "te3": ("lora_te3_",),
}
# sd-scripts counts FLUX's T5 as the third encoder, as in SD 3; others as the second that it is
_FLUX_PREFIXES = _PREFIXES | dict.fromkeys(("te2", "te3"), ("lora_te2_", "lora_te3_"))


# What tells how SDXL is built, where a file has but some of its layers: two layers in a block, and
# attention in the first two blocks of the way up
_SDXL = {
    "down_blocks_0_resnets_1_conv1",
    "up_blocks_0_attentions_0_proj_in",
    "up_blocks_1_attentions_0_proj_in",
}


@dataclass(frozen=True)
class Slot:
    """A module that a layer of a file changes, and which of the layer's output rows it takes.

    `part` is "denoiser" or a text encoder ("te", "te1", "te2", "te3"), `path` the module's in it.
    `rows` is (first, last, of): with the rows cut into `of` equal shares, those from `first` to
    before `last`, going on at the start when `last` is past the end; None when it takes all.
    """

    part: str
    path: str
    rows: Rows | None = None


def vocabulary(base: str, modules: Mapping[str, Iterable[str]]) -> dict[str, tuple[Slot, ...]]:
    """Every layer name that a file may use for a model of `base` -> the modules it changes.

    `modules` are, by part, the dotted paths of diffusers' and transformers' modules. A stacked
    layer has a name only where all its modules are there.
    """
    prefixes = _FLUX_PREFIXES if base == "flux" else _PREFIXES
    words: dict[str, tuple[Slot, ...]] = {}
    for part, paths in modules.items():
        by_name = {path.replace(".", "_"): path for path in paths}
        names = _denoiser_names(base, by_name) if part == "denoiser" else _text_names(by_name)
        for name, shares in names.items():
            if all(their in by_name for their, _ in shares):
                slots = tuple(Slot(part, by_name[their], rows) for their, rows in shares)
                words.update((prefix + name, slots) for prefix in prefixes[part])
    return words


def _denoiser_names(base: str, names: Mapping[str, str]) -> Names:
    return {name: ((name, None),) for name in names} | first_names(base, names)


def _text_names(names: Iterable[str]) -> Names:
    """With and without the `text_model` that transformers 5 took out of some classes."""
    spellings = {name: name.removeprefix("text_model_") for name in names}
    return {
        spelling: ((name, None),)
        for name, bare in spellings.items()
        for spelling in (bare, f"text_model_{bare}")
    }


def fused(base: str, names: Iterable[str]) -> dict[str, tuple[tuple[str | None, Rows | None], ...]]:
    """The layers to write for layers `names` -> what each is stacked of: (layer, its rows in it).

    FLUX is written with Black Forest Labs' names, SDXL with Stability AI's, which every program
    reads. Where `names` lacks a share of a stack, its layer is None: nothing changes there. Every
    other name stays as it is. LoraFileError when `names` has both a stack and a share of it.
    """
    names = dict.fromkeys(names)
    known = {name.removeprefix(DENOISER) for name in names if name.startswith(DENOISER)}
    stacks = _stacks(base, known)
    layers: dict[str, tuple[tuple[str | None, Rows | None], ...]] = {
        DENOISER + stack: tuple(
            (DENOISER + name if name in known else None, rows) for name, rows in shares
        )
        for stack, shares in stacks.items()
    }
    stack_of = {name: stack for stack, shares in layers.items() for name, _ in shares}
    for name in names:
        if stack_of.get(name) in names:
            raise refusal("stands_twice", layer=stack_of[name], key=name)
        if name not in stack_of:
            layers[name] = ((name, None),)
    return layers


def _stacks(base: str, known: Collection[str]) -> Names:
    """The first code's layers that are written for `known` ones."""
    if base == "flux":
        return first_names(base, known)
    if base != "sdxl":
        return {}
    return {first: its for first, its in _as_sdxl({*known, *_SDXL}).items() if its[0][0] in known}


def _as_sdxl(names: Collection[str]) -> Names:
    """The first code's names for SDXL's layers; none for a model of another depth, which counts its
    blocks otherwise."""
    found = first_names("sdxl", names)
    back = diffusers_names("sdxl", found)
    return found if all(back.get(first) == shares for first, shares in found.items()) else {}


def first_code_names(base: str, names: Collection[str]) -> dict[str, str]:
    """Layers of one whole model in diffusers' names -> as kohya writes them, where that differs and
    is one for one: SDXL's with the names of Stability AI's code."""
    if base != "sdxl":
        return {}
    known = [name.removeprefix(DENOISER) for name in names if name.startswith(DENOISER)]
    return {DENOISER + its[0][0]: DENOISER + first for first, its in _as_sdxl(known).items()}


def unfused(base: str, names: Iterable[str]) -> Names:
    """Layers of a file -> the layers they are in diffusers' names: (layer, its rows), no model.

    The inverse of `fused`, for every base; a name that is no other in diffusers stays as it is.
    """
    names = list(names)
    known = [name.removeprefix(DENOISER) for name in names if name.startswith(DENOISER)]
    theirs = diffusers_names(base, known)
    return {name: ((name, None),) for name in names} | {
        DENOISER + name: tuple((DENOISER + their, rows) for their, rows in shares)
        for name, shares in theirs.items()
    }
