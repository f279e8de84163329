"""The table of LoRA files: every format, of every family, with every kind of adapter.

Each cell is a file as its program spells it, on the layers of a tiny model. It is read, each layer
finds its module, each delta is what the library that the kind comes from says, and what is written
from it is read back with every key and number. What stock pipelines make of what is written is in
test_stock.
"""

import functools
import itertools
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from adapter_cases import CASES, Tensors, error, random
from sdlora.adapters import match_layers
from sdlora.errors import LoraFileError
from sdlora.lora.format.adapter_types import ADAPTER_TYPES
from sdlora.lora.format.adapter_types.oft import NO_LIMIT
from sdlora.lora.format.file import LoraFile, read_lora, write_lora
from sdlora.lora.format.keys import GRAMMARS, ROLES
from sdlora.models.base import ModelFamily
from tiny import KINDS, open_tiny

TRANSFORMERS = ("sd3", "flux")
FAMILIES = (*KINDS, *TRANSFORMERS)
# one for all cells, and nothing is synced: the disk would take longer than all else
_FOLDER = tempfile.TemporaryDirectory(prefix="sdlora-table-")
_numbers = itertools.count()


@dataclass(frozen=True)
class Format:
    """How a program spells a key: what stands before a path, whether that has dots, its ends."""

    denoiser: str
    texts: dict[str, str] = field(default_factory=dict)  # none: it holds one model
    dotted: bool = True
    first_code: bool = False
    lora: tuple[str, str] = ("lora_A.weight", "lora_B.weight")


_KOHYA_TEXTS = {part: f"lora_{part}_text_model_" for part in ("te", "te1", "te2")}
_KOHYA = ("lora_down.weight", "lora_up.weight")
_DIFFUSERS_TEXTS = {
    "te": "text_encoder.text_model.", "te1": "text_encoder.text_model.",
    "te2": "text_encoder_2.text_model.",
}  # fmt: skip
_COMFY = "text_encoders.clip_{}.transformer.text_model."
FORMATS: dict[str, Format] = {
    "kohya": Format("lora_unet_", _KOHYA_TEXTS, dotted=False, lora=_KOHYA),
    "kohya, first code": Format(
        "lora_unet_", _KOHYA_TEXTS, dotted=False, first_code=True, lora=_KOHYA
    ),
    "OneTrainer": Format("lora_transformer_", _KOHYA_TEXTS, dotted=False, lora=_KOHYA),
    "LyCORIS' wrapper": Format(
        "lycoris_", {"te": "lycoris_text_model_"}, dotted=False, lora=_KOHYA
    ),
    "diffusers": Format("{}.", _DIFFUSERS_TEXTS),
    "diffusers of 2023": Format(
        "{}.", _DIFFUSERS_TEXTS, lora=("lora.down.weight", "lora.up.weight")
    ),
    "ComfyUI": Format(
        "diffusion_model.",
        {"te": _COMFY.format("l"), "te1": _COMFY.format("l"), "te2": _COMFY.format("g")},
        first_code=True,
    ),
    "PEFT": Format("base_model.model."),
}
_RESNET, _ATTENTION = "mid_block.resnets.0", "mid_block.attentions.0"
_INNER = "transformer_blocks.0.attn1.to_out.0"
# what a layer is -> the module in diffusers, the layer in the first code; of every UNet
_UNET = {
    "linear": (f"{_ATTENTION}.{_INNER}", f"middle_block.1.{_INNER}"),
    "conv 1x1": ("up_blocks.0.resnets.0.conv_shortcut", "output_blocks.0.0.skip_connection"),
    "conv 3x3": (f"{_RESNET}.conv1", "middle_block.0.in_layers.2"),
    "norm": (f"{_RESNET}.norm1", "middle_block.0.in_layers.0"),
}
_ATTN = "transformer_blocks.0.attn"
LAYERS: dict[str, dict[str, tuple[str, str]]] = {
    **dict.fromkeys(KINDS, _UNET),
    "sd3": {
        "linear": (f"{_ATTN}.to_out.0", "joint_blocks.0.x_block.attn.proj"),
        "norm": (f"{_ATTN}.norm_q", "joint_blocks.0.x_block.attn.ln_q"),
    },
    "flux": {
        "linear": (f"{_ATTN}.to_out.0", "double_blocks.0.img_attn.proj"),
        "norm": (f"{_ATTN}.norm_q", "double_blocks.0.img_attn.norm.query_norm"),
    },
}
TEXT_LAYER = "encoder.layers.0.mlp.fc1"
# a layer of the first code that is several modules of diffusers
STACKED = {"sd3": "joint_blocks.0.x_block.attn.qkv", "flux": "double_blocks.0.img_attn.qkv"}
SHARES = [f"{_ATTN}.to_{one}" for one in "qkv"]


@functools.cache
def model(base: str) -> ModelFamily:
    """A tiny family."""
    return open_tiny(base)


@dataclass(frozen=True)
class Cell:
    """One file: its keys, and for each layer the modules that it changes and what it is made of."""

    tensors: Tensors
    layers: list[tuple[list[tuple[str, str]], Tensor, Tensors]]


def stems(form: str, base: str, on: tuple[str, ...]) -> list[tuple[str, list[tuple[str, str]]]]:
    """How the file spells each layer, and the (part, path) of its modules."""
    its, denoiser = FORMATS[form], "transformer" if base in TRANSFORMERS else "unet"

    def spelt(before: str, path: str) -> str:
        return before.format(denoiser) + (path if its.dotted else path.replace(".", "_"))

    found = [
        (spelt(its.denoiser, LAYERS[base][layer][its.first_code]),
         [("denoiser", LAYERS[base][layer][0])])
        for layer in on if layer in LAYERS[base]
    ]  # fmt: skip
    if its.first_code and base in STACKED and "linear" in on:
        found.append((spelt(its.denoiser, STACKED[base]), [("denoiser", one) for one in SHARES]))
    for part, layers in model(base).adaptable_layers.items() if "linear" in on else ():
        if part in its.texts:
            path = next(path for path in layers if path.endswith(TEXT_LAYER))
            found.append((spelt(its.texts[part], TEXT_LAYER), [(part, path)]))
    return found


def cell(form: str, base: str, case: str) -> Cell:
    ends = {role: end[1:] for end, role in reversed(ROLES.items())}
    ends["down"], ends["up"] = FORMATS[form].lora
    made = Cell({}, [])
    _, make, _, on = CASES[case]
    for number, (stem, modules) in enumerate(stems(form, base, on)):
        weights = [
            model(base).adaptable_layers[part][path].weight.detach() for part, path in modules
        ]
        weight = torch.cat(weights)
        tensors = make(tuple(weight.shape), random(number))
        part, path = modules[0]
        if getattr(model(base).adaptable_layers[part][path], "bias", None) is None:
            tensors.pop("b_norm", None)  # RMS norms have none
        made.tensors.update({f"{stem}.{ends[role]}": value for role, value in tensors.items()})
        made.layers.append((modules, weight, tensors))
    return made


def is_written(form: str, base: str, case: str) -> bool:
    """Whether there are such files: dotted keys that end with `.weight` are a checkpoint's, and
    nothing is a convolution in a transformer's blocks."""
    its = FORMATS[form]
    return not (
        (form == "diffusers of 2023" and CASES[case][0] not in ("LoRA", "DoRA"))
        or (its.dotted and CASES[case][0] == "IA3")
        or (form == "OneTrainer" and base not in TRANSFORMERS)
        or (base in TRANSFORMERS and not set(CASES[case][3]) & set(LAYERS[base]))
    )


CELLS = [
    (form, base, case)
    for form in FORMATS
    for base in FAMILIES
    for case in CASES
    if is_written(form, base, case)
]


def assert_same(one: LoraFile, other: LoraFile) -> None:
    assert one.layers.keys() == other.layers.keys() and one.kinds == other.kinds
    for name, adapter in one.layers.items():
        theirs = other.layers[name].tensors
        assert adapter.tensors.keys() == theirs.keys()
        ours = dict(adapter.tensors)
        if adapter.kind in ("OFT", "BOFT") and not float(ours["alpha"]):
            ours["alpha"] = torch.tensor(NO_LIMIT)  # as every program understands no limit
        assert all(torch.equal(tensor, theirs[role]) for role, tensor in ours.items())


@pytest.mark.parametrize(("form", "base", "case"), CELLS)
def test_cell(form: str, base: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    source = Path(_FOLDER.name) / f"{next(_numbers)}.safetensors"
    kind, _, oracle, _ = CASES[case]
    made = cell(form, base, case)
    save_file(made.tensors, source)
    file = read_lora(source)
    assert file.kinds == {kind: len(made.layers)}
    mixes_outputs = kind in ("IA3", "OFT", "BOFT") or case.endswith("by input")
    if mixes_outputs and any(len(modules) > 1 for modules, _, _ in made.layers):
        with pytest.raises(LoraFileError, match="cannot be taken apart"):
            match_layers(file, model(base))
        return
    places = dict(match_layers(file, model(base), strict=True).places)
    for modules, weight, tensors in made.layers:
        expected = oracle({"b_norm": weight, **tensors}, weight).view(weight.shape)
        biases = [tensors[role] for role in ("diff_b", "b_norm") if role in tensors]
        count = len(modules)
        for i, (part, path) in enumerate(modules):
            its = weight.chunk(count)[i]
            ours = places.pop((part, path, "weight")).delta(its)
            assert ours.dtype == torch.float32
            assert error(ours, expected.chunk(count)[i]) <= 1e-5
            for bias in biases:
                added = places.pop((part, path, "bias")).delta(bias.chunk(count)[i], "bias")
                assert torch.equal(added, bias.chunk(count)[i])
    assert not places
    written = write_lora(file, source.with_suffix(".out.safetensors"), torch.float32)
    assert_same(file, read_lora(written))


def test_all_formats_and_all_kinds_are_in_the_table() -> None:
    for base in FAMILIES:
        cells = [(form, CASES[case][0]) for form, its, case in CELLS if its == base]
        assert {kind for _, kind in cells} == set(ADAPTER_TYPES)
        assert {form for form, _ in cells} >= FORMATS.keys() - {"OneTrainer"}
    starts = [its.denoiser.format("unet") for its in FORMATS.values()]
    for grammar in GRAMMARS:
        assert any(start in grammar.prefixes for start in starts), grammar.name


def test_a_checkpoint_is_not_taken_for_a_lora(tmp_path: Path) -> None:
    """The one kind that a dotted format cannot hold: its keys are those of a checkpoint."""
    for form in ("diffusers", "ComfyUI", "PEFT"):
        made = cell(form, "sd1", "IA3 on input")
        save_file(made.tensors, tmp_path / "a.safetensors")
        with pytest.raises(LoraFileError) as refused:
            read_lora(tmp_path / "a.safetensors")
        assert refused.value.code in ("unknown_keys", "incomplete")
