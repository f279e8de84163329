"""Map from layer names in LoRA files to a model's modules, and between naming styles; no torch.

A file names a layer by a prefix for the model's part and the path of a module with `_` for `.`, as
in `lora_unet_mid_block_attentions_0_proj_in`. The path is diffusers', or that of the model's
original code (see `original_names`), where one layer may be several modules of diffusers.

Source of the prefixes: kohya-ss/sd-scripts, networks/lora.py, lora_sd3.py and lora_flux.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from sdlora.lora.format.errors import refusal
from sdlora.lora.format.original_names import Names, Rows, to_diffusers_names, to_original_names

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


# Layers added to those of a file to recognise SDXL's depth: two layers in a block, and attention in
# the first two up blocks
_SDXL = {
    "down_blocks_0_resnets_1_conv1",
    "up_blocks_0_attentions_0_proj_in",
    "up_blocks_1_attentions_0_proj_in",
}


@dataclass(frozen=True)
class Slot:
    """A module that a layer of a file changes, and the layer's output rows that it takes.

    `part` is "denoiser" or a text encoder ("te", "te1", "te2", "te3"), `path` the module's in it.
    `rows` is (first, last, of): with the rows cut into `of` equal shares, those from `first` to
    before `last`, going on at the start when `last` is past the end; None when it takes all.
    """

    part: str
    path: str
    rows: Rows | None = None


def build_name_map(base: str, modules: Mapping[str, Iterable[str]]) -> dict[str, tuple[Slot, ...]]:
    """Return every layer name that a file may use for a model of `base` -> the modules it changes.

    `modules` are, by part, the dotted paths of diffusers' and transformers' modules. A fused layer
    is included only if `modules` has all of its modules.
    """
    prefixes = _FLUX_PREFIXES if base == "flux" else _PREFIXES
    name_map: dict[str, tuple[Slot, ...]] = {}
    for part, paths in modules.items():
        by_name = {path.replace(".", "_"): path for path in paths}
        names = (
            _denoiser_names(base, by_name) if part == "denoiser" else _text_encoder_names(by_name)
        )
        for name, shares in names.items():
            if all(target in by_name for target, _ in shares):
                slots = tuple(Slot(part, by_name[target], rows) for target, rows in shares)
                name_map.update((prefix + name, slots) for prefix in prefixes[part])
    return name_map


def _denoiser_names(base: str, names: Mapping[str, str]) -> Names:
    return {name: ((name, None),) for name in names} | to_original_names(base, names)


def _text_encoder_names(names: Iterable[str]) -> Names:
    """Names with and without the `text_model` that transformers 5 removed from some classes."""
    spellings = {name: name.removeprefix("text_model_") for name in names}
    return {
        spelling: ((name, None),)
        for name, bare in spellings.items()
        for spelling in (bare, f"text_model_{bare}")
    }


def fused(base: str, names: Iterable[str]) -> dict[str, tuple[tuple[str | None, Rows | None], ...]]:
    """Return the layers to write for layers `names` -> the parts of each: (layer, its rows in it).

    FLUX is written with Black Forest Labs' names, SDXL with Stability AI's, which every program
    reads. Where `names` lacks a part of a fused layer, its layer is None: nothing changes there.
    Every other name stays. LoraFileError when `names` has both a fused layer and a part of it.
    """
    names = dict.fromkeys(names)
    known = {name.removeprefix(DENOISER) for name in names if name.startswith(DENOISER)}
    stacks = _fused_layers(base, known)
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


def _fused_layers(base: str, known: Collection[str]) -> Names:
    """Return the original code's layers that are written for the layers in `known`."""
    if base == "flux":
        return to_original_names(base, known)
    if base != "sdxl":
        return {}
    return {
        first: shares
        for first, shares in _sdxl_original_names({*known, *_SDXL}).items()
        if shares[0][0] in known
    }


def _sdxl_original_names(names: Collection[str]) -> Names:
    """Return the original names of SDXL's layers; empty for a model of another depth, whose blocks
    are numbered differently."""
    original = to_original_names("sdxl", names)
    back = to_diffusers_names("sdxl", original)
    return original if all(back.get(first) == shares for first, shares in original.items()) else {}


def original_layer_names(base: str, names: Collection[str]) -> dict[str, str]:
    """Return layers of one whole model in diffusers' names -> kohya's names, where they differ one
    for one: SDXL's with the names of Stability AI's code."""
    if base != "sdxl":
        return {}
    known = [name.removeprefix(DENOISER) for name in names if name.startswith(DENOISER)]
    return {
        DENOISER + shares[0][0]: DENOISER + first
        for first, shares in _sdxl_original_names(known).items()
    }


def unfused(base: str, names: Iterable[str]) -> Names:
    """Return layers of a file -> their layers in diffusers' names: (layer, its rows).

    The inverse of `fused`, for every base, without a model; names equal in diffusers stay.
    """
    names = list(names)
    known = [name.removeprefix(DENOISER) for name in names if name.startswith(DENOISER)]
    targets = to_diffusers_names(base, known)
    return {name: ((name, None),) for name in names} | {
        DENOISER + name: tuple((DENOISER + target, rows) for target, rows in shares)
        for name, shares in targets.items()
    }
