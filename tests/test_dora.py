"""DoRA as it learns, along either axis, against eq. 5 of its paper in float64."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear

from sdlora.adapters.types import ADAPTER, TRAINABLE_TYPES, AdapterSpec, lora
from sdlora.lora.format.file import LoraFile, write_lora
from sdlora.lora.format.layer import Adapter
from sdlora.lora.format.training_metadata import (
    PICTURES,
    SETTINGS,
    VERSIONS,
    read_training_metadata,
)
from sdlora.settings.train import TrainSettings

AXES: tuple[Any, ...] = ("input", "output")
OUT, IN, SCALE = 12, 8, 0.5
BASES = {"linear": (OUT, IN), "conv 1x1": (OUT, IN, 1, 1), "conv 3x3": (OUT, IN, 3, 3)}
CELLS = [(axis, base) for axis in AXES for base in BASES]


def learnt(axis: Any, base: str, dtype: torch.dtype = torch.float32, spread: float = 0.3) -> Any:
    """A layer that has learnt something, in train mode; its base's numbers are random."""
    shape = BASES[base]
    kind: Any = nn.Linear if len(shape) == 2 else nn.Conv2d
    more = {"kernel_size": shape[2], "padding": shape[2] // 2} if len(shape) == 4 else {}
    torch.manual_seed(1)
    plain = kind(IN, OUT, **more).to(dtype).requires_grad_(False)
    layer = TRAINABLE_TYPES["dora"].build(plain, AdapterSpec(4, 4 * SCALE, 0.0, -1, axis)).train()
    for parameter in layer.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float() + spread * torch.randn(parameter.shape)
    return layer


def parts(layer: Any) -> tuple[Tensor, ...]:
    """A, B and the magnitudes, float64, as leaves."""
    tensors = (layer.lora_A, layer.lora_B, layer.lora_magnitude_vector)
    return tuple(half[ADAPTER].weight.detach().double().requires_grad_() for half in tensors)


def by_paper(layer: Any, axis: str, x: Tensor, of: tuple[Tensor, ...]) -> Tensor:
    """m (W + s B A) / |W + s B A|, the norm a constant (sec. 4.3), and what it makes of x."""
    a, b, m = of
    weight = layer.base_layer.weight.double()
    direction = weight + SCALE * (b.flatten(1) @ a.flatten(1)).view(weight.shape)
    kept = 0 if axis == "output" else 1
    others = [i for i in range(weight.dim()) if i != kept]
    norm = direction.detach().square().sum(others, keepdim=True).sqrt()
    along = [-1 if i == kept else 1 for i in range(weight.dim())]
    whole = m.flatten().view(along) * direction / norm
    bias = layer.base_layer.bias.double()
    if weight.dim() == 2:
        return linear(x.double(), whole, bias)
    return conv2d(x.double(), whole, bias, padding=weight.shape[2] // 2)


def inputs(base: str) -> Tensor:
    rng = torch.Generator().manual_seed(2)
    return torch.randn((5, IN) if base == "linear" else (2, IN, 4, 4), generator=rng)


@pytest.mark.parametrize("most", [lora.MAX_WEIGHT_RATIO, 0])  # at once, and beside the base
@pytest.mark.parametrize(("axis", "base"), CELLS)
def test_answer_and_gradients_are_those_of_the_paper(
    axis: str, base: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora, "MAX_WEIGHT_RATIO", most)
    layer, x = learnt(axis, base), inputs(base).requires_grad_()
    of, same = parts(layer), x.detach().double().requires_grad_()
    ours, theirs = layer(x), by_paper(layer, axis, same, of)
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()
    ours.square().sum().backward()
    theirs.square().sum().backward()
    halves = (layer.lora_A, layer.lora_B, layer.lora_magnitude_vector)
    grads = [half[ADAPTER].weight.grad for half in halves] + [x.grad]
    for grad, wanted in zip(grads, (*of, same), strict=True):
        assert (grad - wanted.grad).norm() < 1e-5 * wanted.grad.norm()


@pytest.mark.parametrize("most", [lora.MAX_WEIGHT_RATIO, 0])
@pytest.mark.parametrize(("axis", "base"), CELLS)
def test_nothing_changes_before_the_first_step(
    axis: Any, base: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, as it learns and as it is shown; a large layer rounds its norms somewhere."""
    monkeypatch.setattr(lora, "MAX_WEIGHT_RATIO", most)
    kind: Any = nn.Linear if base == "linear" else nn.Conv2d
    plain = kind(IN, 301, *BASES[base][2:3]).requires_grad_(False)
    layer = TRAINABLE_TYPES["dora"].build(plain, AdapterSpec(4, 2.0, 0.0, -1, axis))
    layer.lora_B[ADAPTER].weight.data.zero_()
    x = inputs(base).repeat(100, *(1,) * (inputs(base).dim() - 1))
    for mode in (True, False):
        assert torch.equal(layer.train(mode)(x), plain(x))


@pytest.mark.parametrize(("axis", "base"), CELLS)
def test_file_has_the_form_of_lycoris(axis: str, base: str) -> None:
    """(1,in[,1,1]) or (out,1[,1,1]); and what it changes is what was learnt."""
    layer, ones = learnt(axis, base), (1,) * (len(BASES[base]) - 2)
    adapter: Adapter = TRAINABLE_TYPES["dora"].export(layer)
    shape = (OUT, 1, *ones) if axis == "output" else (1, IN, *ones)
    assert adapter.tensors["dora_scale"].shape == shape
    plain, x = layer.base_layer, inputs(base)
    plain.weight.data += adapter.delta(plain.weight)
    after = plain(x)
    plain.weight.data -= adapter.delta(plain.weight)
    layer = learnt(axis, base)
    assert (after - layer(x)).norm() < 1e-5 * after.norm()


@pytest.mark.parametrize("base", BASES)
def test_a_base_of_few_bits_is_learnt_beside(base: str) -> None:
    """Scaled inputs are not rounded to the base's numbers: changes that bfloat16 cannot tell from 1
    are in the answers, and the gradients are the paper's."""
    layer, x = learnt("input", base, torch.bfloat16, spread=0.0), inputs(base).bfloat16()
    with torch.no_grad():
        before = layer(x)
        step = torch.randn(IN, generator=torch.Generator().manual_seed(3))
        magnitude = layer.lora_magnitude_vector[ADAPTER].weight
        magnitude *= 1 + 0.001 * step.view(magnitude.shape)
        assert not torch.equal(layer(x), before)
    of = parts(layer)
    layer(x).float().square().sum().backward()
    by_paper(layer, "input", x, of).square().sum().backward()
    for half, wanted in zip((layer.lora_B, layer.lora_magnitude_vector), of[1:], strict=True):
        grad = half[ADAPTER].weight.grad
        assert (grad - wanted.grad).norm() < 0.02 * wanted.grad.norm()


def test_dora_is_by_input_unless_asked(tmp_path: Path) -> None:
    given = {"data": "x", "name": "x", "adapter": "dora"}
    assert TrainSettings.from_values(given).dora_axis == "input"
    path = tmp_path / "settings.json"
    for axis in AXES:
        asked = TrainSettings.from_values({**given, "dora_axis": axis})
        path.write_text(asked.to_json())
        assert TrainSettings.load(path).dora_axis == axis
    path.write_text(TrainSettings.from_values(given).to_json())
    assert TrainSettings.load(path).dora_axis == "input"


def test_what_was_recorded_before_there_was_a_choice_is_by_output(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text('{"data": "x", "name": "x", "adapter": "dora"}')
    assert TrainSettings.load(path).dora_axis == "output"
    path.write_text('{"data": "x", "name": "x"}')
    assert "dora_axis" not in TrainSettings.load(path).given()


def test_a_lora_of_before_is_repeated_by_output(tmp_path: Path) -> None:
    """`train --like` of a file whose recipe knows no axis; one that names it is believed."""
    layers = {"lora_unet_x": Adapter.lora(torch.ones(1, 4), torch.ones(4, 1), 1.0)}
    for given, axis in (({}, "output"), ({"dora_axis": "input"}, "input")):
        settings = json.dumps({"adapter": "dora", **given})
        said = {SETTINGS: settings, VERSIONS: "{}", PICTURES: "x"}
        path = write_lora(LoraFile(layers, said), tmp_path / "a.safetensors")
        assert read_training_metadata(path).settings["dora_axis"] == axis
