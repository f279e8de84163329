"""Linear layers held in few bits: their values, gradients, what they keep, and their loading."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint as checkpointed

import tiny_checkpoints
from adapter_gradients import adapted, gradients, kept, random, step
from sdlora.errors import DeviceError
from sdlora.models import frozen_weights
from sdlora.models.base import ModelFamily
from sdlora.models.frozen_weights import (
    FrozenLinear,
    check_base_precision,
    freeze_linears,
    held_weights,
)
from sdlora.models.options import ModelOptions
from sdlora.models.registry import open_family
from sdlora.models.tensor_source import TensorSource
from sdlora.models.weight_formats import FORMATS, HeldFormat, dequantize
from sdlora.settings.adapter_choices import ADAPTER_CHOICES
from tiny import CPU, TRANSFORMERS, open_tiny, tiny

# Cosine of LoRA gradients on a tiny model to those on the whole base, at least
LIKENESS: dict[HeldFormat, float] = {"int8": 0.999, "fp8": 0.99, "nf4": 0.95}


def layer_of(
    held_format: HeldFormat, dtype: torch.dtype = torch.float32, inner: int = 24
) -> FrozenLinear:
    layer = nn.Linear(inner, 16).requires_grad_(False)
    layer.weight.data, layer.bias.data = random(16, inner), random(16, seed=1)
    return FrozenLinear(layer.to(dtype), held_format)


def open_held(kind: str, precision: Any, dtype: torch.dtype = torch.float32) -> ModelFamily:
    return open_family(str(tiny(kind)), dtype, CPU, ModelOptions(base_precision=precision))


@pytest.mark.parametrize("held_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_layer_is_the_linear_layer_of_its_weight(
    held_format: HeldFormat, dtype: torch.dtype
) -> None:
    """In values and in gradients; with checkpointing too."""
    layer = layer_of(held_format, dtype)
    assert isinstance(layer, nn.Linear) and layer.weight.dtype == dtype
    answers = []
    for run in (layer, lambda x: linear(x, layer.weight, layer.bias), _again(layer)):
        x = random(2, 5, 24, seed=2).to(dtype).requires_grad_()
        answer = run(x)
        answer.square().sum().backward()
        answers.append((answer.detach(), x.grad))
    assert all(torch.equal(a, b) for one in answers for a, b in zip(one, answers[1], strict=True))


def _again(layer: nn.Module) -> Any:
    return lambda x: checkpointed(layer, x, use_reentrant=False)


@pytest.mark.parametrize("held_format", FORMATS)
def test_autocast_computes_in_its_type(held_format: HeldFormat) -> None:
    layer = layer_of(held_format, torch.bfloat16)
    x = random(3, 24).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        answer = layer(x)
        expected = linear(x, layer.weight, layer.bias)
    assert answer.dtype == torch.bfloat16 and torch.equal(answer, expected)
    answer.float().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32


@pytest.mark.parametrize("held_format", FORMATS)
def test_a_layer_may_be_made_on_the_meta_device(held_format: HeldFormat) -> None:
    """With the shapes of the filled one, and without a bias too."""
    for inner in (24, 17):
        filled = layer_of(held_format, inner=inner)
        empty = FrozenLinear(nn.Linear(inner, 16, device="meta"), held_format)
        assert empty.weight.shape == (16, inner)
        assert empty.held.is_meta and empty.held.shape == filled.held.shape
        assert empty.scale.shape == filled.scale.shape
        empty.load_state_dict(filled.state_dict(), assign=True)
        assert torch.equal(empty.weight, filled.weight)
        bare = FrozenLinear(nn.Linear(inner, 16, bias=False), held_format)
        assert torch.equal(bare(x := random(2, inner)), linear(x, bare.weight))


@pytest.mark.parametrize("held_format", FORMATS)
def test_casts_and_saves_leave_the_bits_alone(held_format: HeldFormat) -> None:
    layer = layer_of(held_format)
    was = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    layer.to(torch.bfloat16)
    assert layer.dtype == layer.weight.dtype == layer.bias.dtype == torch.bfloat16
    layer.float()
    assert layer.dtype == torch.float32
    for name in ("held", "scale"):
        assert torch.equal(layer.state_dict()[name], was[name])
    other = layer_of(held_format)
    other.load_state_dict({name: 0 * tensor for name, tensor in was.items()})
    other.load_state_dict(was)
    assert torch.equal(other.weight, layer_of(held_format).weight)


@pytest.mark.parametrize("held_format", FORMATS)
def test_nothing_dequantised_is_kept_for_backward(held_format: HeldFormat) -> None:
    """A product with the dequantised weight, in comparison, keeps that."""
    layer = layer_of(held_format)
    x = random(1, 24).requires_grad_()
    with kept(layer) as ours:
        layer(x)
    with kept(layer) as usual:
        linear(x, layer.weight)
    assert not [t for t in ours if t.numel() >= 16 * 24]
    assert [t for t in usual if t.numel() >= 16 * 24]


@pytest.mark.parametrize("kind", ["sd1", "sdxl", *TRANSFORMERS])
def test_linear_layers_of_blocks_are_held_and_no_others(kind: str) -> None:
    plain, family = open_tiny(kind), open_held(kind, "int8")
    modules = dict(plain.denoiser.named_modules())
    held = {n for n, m in family.denoiser.named_modules() if isinstance(m, FrozenLinear)}
    others = {n for n, m in modules.items() if isinstance(m, nn.Linear)} - held
    assert any(".attn" in name for name in held) and any(".ff" in name for name in held)
    assert all("time_emb" in n or n.split(".")[0] in _OUTSIDE for n in others)
    assert others and not any(n.split(".")[0] in _OUTSIDE for n in held)
    for name in held:
        torch.testing.assert_close(
            family.denoiser.get_submodule(name).weight, modules[name].weight, atol=0.02, rtol=0
        )
    for name, parameter in plain.denoiser.named_parameters():
        if name.rpartition(".")[0] not in held or name.endswith("bias"):
            assert torch.equal(parameter, family.denoiser.get_parameter(name))
    assert family.details["frozen weights"].startswith(f"int8 in {len(held)} layers: ")
    assert "frozen weights" not in plain.details


_OUTSIDE = {
    "time_embedding", "add_embedding", "time_text_embed", "context_embedder", "x_embedder",
    "norm_out", "proj_out", "pos_embed",
}  # fmt: skip


@pytest.mark.parametrize("held_format", FORMATS)
@pytest.mark.parametrize("kind", tiny_checkpoints.KINDS)
def test_single_files_give_the_same_bits_as_quantising_afterwards(
    kind: str, held_format: HeldFormat
) -> None:
    path = tiny_checkpoints.checkpoint(kind)
    options = ModelOptions(base_precision=held_format)
    family = open_family(str(path), torch.float32, CPU, options)
    plain = open_family(str(path), torch.float32, CPU)
    freeze_linears(plain.denoiser, held_format)
    state, expected = family.denoiser.state_dict(), plain.denoiser.state_dict()
    assert state.keys() == expected.keys() and any(name.endswith(".held") for name in state)
    assert all(torch.equal(state[name], expected[name]) for name in state)
    assert not any(p.requires_grad for p in family.denoiser.parameters())


def test_a_single_file_is_never_whole_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each weight is made small as it is read: the next is read afterwards."""
    events: list[str] = []
    read, made = TensorSource.read, FrozenLinear.state_of

    def reading(self: TensorSource, name: str, dtype: torch.dtype) -> Tensor:
        events.append(name)
        return read(self, name, dtype)

    def making(self: FrozenLinear, weight: Tensor) -> dict[str, Tensor]:
        events.append("held")
        return made(self, weight)

    monkeypatch.setattr(TensorSource, "read", reading)
    monkeypatch.setattr(FrozenLinear, "state_of", making)
    path = tiny_checkpoints.checkpoint("sd2")
    open_family(str(path), torch.float32, CPU, ModelOptions(base_precision="int8"))
    places = [at for at, event in enumerate(events) if event == "held"]
    assert places and all(events[at - 1].endswith(".weight") for at in places)


@pytest.mark.parametrize("held_format", FORMATS)
def test_bytes_are_those_of_the_tensors(held_format: HeldFormat) -> None:
    plain = open_tiny("sdxl", torch.bfloat16)
    family = open_held("sdxl", held_format, torch.bfloat16)
    held, full = held_weights(family.denoiser), sum(p.nbytes for p in plain.denoiser.parameters())
    assert held is not None and held.full_bytes == full and held.bytes < full
    assert held_weights(plain.denoiser) is None


def test_fp8_is_refused_on_apple_gpus() -> None:
    with pytest.raises(DeviceError, match="Apple GPUs; choose int8"):
        check_base_precision("fp8", torch.device("mps"))
    for precision in ("full", "int8", "nf4"):
        check_base_precision(precision, torch.device("mps"))


@pytest.mark.parametrize("held_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_near_those_on_the_whole_base(
    held_format: HeldFormat, dtype: torch.dtype
) -> None:
    expected = gradients(open_tiny("sdxl"))
    ours = gradients(open_held("sdxl", held_format, dtype))
    assert torch.cosine_similarity(ours, expected, 0) > LIKENESS[held_format]
    checked = open_held("sdxl", held_format, dtype)
    checked.enable_gradient_checkpointing()
    torch.testing.assert_close(gradients(checked), ours)


@pytest.mark.parametrize("adapter", list(ADAPTER_CHOICES))
def test_every_adapter_type_learns_as_on_the_dequantised_base(adapter: str) -> None:
    """The same gradients as beside ordinary layers with the values of the few bits."""
    family, plain = open_held("sdxl", "nf4"), open_held("sdxl", "nf4")
    for path, layer in list(plain.denoiser.named_modules()):
        if isinstance(layer, FrozenLinear):
            usual = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
            usual.weight.data = layer.weight
            usual.bias = layer.bias
            plain.denoiser.set_submodule(path, usual.requires_grad_(False))
    ours, expected = (gradients(it, adapter=adapter) for it in (family, plain))
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_dequantises_each_layer_only_where_it_multiplies(
    checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and backward, and forward again with checkpointing; never for the adapter's sake."""
    family = open_held("sdxl", "int8")
    parameters = adapted(family)
    if checkpointing:
        family.enable_gradient_checkpointing()
    layers = sum(isinstance(m, FrozenLinear) for m in family.denoiser.modules())
    calls: list[Any] = []

    def counted(*given: Any) -> Tensor:
        calls.append(given)
        return dequantize(*given)

    monkeypatch.setattr(frozen_weights, "dequantize", counted)
    step(family, parameters)
    assert 0 < len(calls) <= (2 + checkpointing) * layers


@pytest.mark.parametrize("held_format", FORMATS)
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
def test_compiled_blocks_compute_the_same(held_format: HeldFormat) -> None:
    family = open_held("sdxl", held_format)
    layer = next(m for m in family.denoiser.modules() if isinstance(m, FrozenLinear))
    x = random(2, layer.in_features).requires_grad_()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
