"""Adapter types are one module and one row each: rows are complete, no code asks for a name."""

import ast
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from adapter_cases import CASES, IN, OUT, error
from sdlora.adapters.types import ADAPTER, TRAINABLE_TYPES, AdapterSpec, trainable_type
from sdlora.lora.format.adapter_types import ADAPTER_TYPES
from sdlora.lora.format.file import LoraFile, read_lora, write_lora
from sdlora.lora.format.keys import ROLES
from sdlora.lora.format.layer import Adapter
from sdlora.settings.adapter_choices import ADAPTER_CHOICES, AdapterName
from sdlora.settings.train import TrainSettings
from shape import sources

LAYER = "lora_unet_mid_block_attentions_0_proj_in"
BASES = {
    "linear": lambda: nn.Linear(IN, OUT),
    "conv 1x1": lambda: nn.Conv2d(IN, OUT, 1),
    "conv 3x3": lambda: nn.Conv2d(IN, OUT, 3, padding=1),
}
WAYS = [(name, "input") for name in TRAINABLE_TYPES] + [("dora", "output")]
TYPE_PACKAGES = ("sdlora.lora.format.adapter_types", "sdlora.adapters.types")
# the dictionaries of other programs' words
FOREIGN_WORDS = ("sdlora.kohya", "sdlora.image_metadata", "sdlora.settings.adapter_choices")


@pytest.mark.parametrize("name", ADAPTER_TYPES)
def test_a_stored_row_is_complete(name: str) -> None:
    """Roles that keys can have, a delta with an oracle (kind_cases.py), and a module of its own."""
    row = ADAPTER_TYPES[name]
    roles = frozenset().union(*row.required, row.optional)
    assert row.name == name and row.required and roles <= set(ROLES.values())
    assert set(row.key_suffixes.values()) <= roles | {"dora_scale", "magnitude"}
    assert row.delta.__module__ == f"{TYPE_PACKAGES[0]}.{name.lower()}"
    assert name in {kind for kind, *_ in CASES.values()}
    assert not row.bias or row.bias in roles
    for required in row.required:
        assert row.has_roles(required) and not row.has_roles(required | {"another"})


def test_no_key_means_two_roles() -> None:
    rows = ADAPTER_TYPES.values()
    assert all(ROLES[end] == role for row in rows for end, role in row.key_suffixes.items())


@pytest.mark.parametrize("name", TRAINABLE_TYPES)
def test_a_trainable_row_is_complete(name: str) -> None:
    row, choice = TRAINABLE_TYPES[name], ADAPTER_CHOICES[name]
    assert row.name == name and row.max_rank(torch.zeros(OUT, IN)) >= 1
    assert (row.up_matrix is not None) == choice.has_up_matrix
    assert (row.limit_norm is not None) == ("max_norm" not in choice.unsupported)
    assert choice.before.keys() <= TrainSettings.model_fields.keys()
    assert set(choice.unsupported) <= TrainSettings.model_fields.keys()
    assert bool(choice.unsupported) == bool(choice.why_unsupported)


def test_what_can_be_chosen_is_what_can_be_trained() -> None:
    assert list(get_args(AdapterName)) == list(ADAPTER_CHOICES) == list(TRAINABLE_TYPES)


def trained(name: str, axis: Any, base: str, more: bool = True) -> Any:
    """A layer of this type in eval mode; `more`: with learnt numbers, else as it starts."""
    torch.manual_seed(1)
    plain = BASES[base]().requires_grad_(False)
    spec = AdapterSpec(4, 2.0, dora_axis=axis)
    row, rng = TRAINABLE_TYPES[name], torch.Generator().manual_seed(2)
    layer = row.build(plain, spec).eval()
    if row.initialize:
        row.initialize(layer, rng)
    for parameter in layer.parameters():
        if parameter.requires_grad and more:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=rng)
    return layer


def inputs(base: str) -> Tensor:
    rng = torch.Generator().manual_seed(3)
    return torch.randn((7, IN) if base == "linear" else (2, IN, 5, 5), generator=rng)


@torch.no_grad()
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(("name", "axis"), WAYS)
def test_built_trained_written_and_read_is_the_same_change(
    name: str, axis: str, base: str, tmp_path: Path
) -> None:
    """The file's delta is the export's to the bit, and put into the base it gives the answer of the
    trained module, which peft computes."""
    layer, x = trained(name, axis, base), inputs(base)
    exported = TRAINABLE_TYPES[name].export(layer)
    file = LoraFile({LAYER: exported})
    path = write_lora(file, tmp_path / "a.safetensors", torch.float32)
    adapter: Adapter = read_lora(path).layers[LAYER]
    assert adapter.kind == exported.kind and adapter.kind in ADAPTER_TYPES
    plain = layer.base_layer
    assert adapter.fits(plain.weight.shape)
    delta = adapter.delta(plain.weight)
    # a limit that is none is written for OFT, and is none
    assert torch.equal(delta, exported.delta(plain.weight))
    answer, before = layer(x), plain(x)
    plain.weight += delta
    assert error(plain(x), answer) < 2e-6
    assert error(plain(x) - before, answer - before) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(("name", "axis"), WAYS)
def test_built_and_untrained_is_no_change(name: str, axis: str, base: str) -> None:
    layer, x = trained(name, axis, base, more=False), inputs(base)
    assert error(layer(x), layer.base_layer(x)) < 1e-6
    assert any(parameter.requires_grad for parameter in layer.parameters())
    assert not layer.base_layer.weight.requires_grad and ADAPTER == trainable_type.ADAPTER


def test_no_code_outside_the_rows_asks_for_a_type_by_name() -> None:
    """In comparisons, that is; a name in a sentence or in a table of foreign words is none."""
    names = {*ADAPTER_TYPES, *TRAINABLE_TYPES} - {"lora", "full", "norm"}  # words of much else
    problems = [
        f"{source.path}:{node.lineno}: {constant.value}"
        for module, source in sources().items()
        if source.within("sdlora", "webui") and not module.startswith(TYPE_PACKAGES + FOREIGN_WORDS)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Compare)
        for constant in ast.walk(node)
        if isinstance(constant, ast.Constant) and constant.value in names
    ]
    assert not problems, "\n".join(problems)
