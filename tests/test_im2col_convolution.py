"""Convolutions of few pixels as matrix products, against torch's own in float64."""

import pytest
import torch
from torch import nn

from adapter_gradients import gradients
from sdlora.adapters import Blend
from sdlora.models import im2col_convolution
from sdlora.models.im2col_convolution import MAX_PIXELS, Im2colConv2d, use_im2col
from sdlora.models.registry import open_family
from sdlora.settings.adapter_choices import ADAPTER_CHOICES
from tiny import CPU, tiny, tiny_lora


def check_same(conv: nn.Conv2d, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer and gradient are those of the convolution, computed otherwise."""
    torch.manual_seed(0)
    conv = conv.double().requires_grad_(False)
    x, other = (torch.randn(shape, dtype=torch.float64) for _ in range(2))
    x.requires_grad_()
    expected = conv(x)
    (gradient,) = torch.autograd.grad(expected, x, torch.ones_like(expected) + expected.detach())
    small = Im2colConv2d.of(conv)
    with monkeypatch.context() as patch:
        patch.setattr(nn.Conv2d, "forward", None)  # which does not compute here
        y = small(x)
        (ours,) = torch.autograd.grad(y, x, torch.ones_like(y) + y.detach())
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours, gradient, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(small(other), conv(other), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 6, 3, padding=1, bias=False),
        nn.Conv2d(4, 6, 1),
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.Conv2d(4, 6, (3, 1), padding=(0, 2), stride=(1, 2)),
        nn.Conv2d(4, 6, 3, padding=2, dilation=2),
    ],
)
def test_the_product_is_the_convolution(
    conv: nn.Conv2d, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_same(conv, (batch, 4, 5, 6), monkeypatch)


def test_the_layer_is_the_one_that_it_was_made_of() -> None:
    conv = nn.Conv2d(4, 6, 3, padding=1)
    small = Im2colConv2d.of(conv)
    assert small.weight is conv.weight and small.bias is conv.bias
    assert small.state_dict().keys() == conv.state_dict().keys()
    assert isinstance(small, nn.Conv2d) and "4, 6, kernel_size=(3, 3)" in repr(small)


@pytest.mark.parametrize(("pixels", "by_product"), [(MAX_PIXELS, True), (MAX_PIXELS + 1, False)])
def test_many_pixels_are_computed_by_torch(
    pixels: int, by_product: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Im2colConv2d.of(nn.Conv2d(2, 2, 1)).requires_grad_(False)
    calls = []
    own = nn.Conv2d.forward
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: calls.append(len(x)) or own(self, x))
    small(torch.zeros(1, 2, 1, pixels))
    assert calls == ([] if by_product else [1])


def test_weights_that_learn_get_their_gradient() -> None:
    small = Im2colConv2d.of(nn.Conv2d(2, 2, 3, padding=1))
    small(torch.ones(1, 2, 4, 4)).sum().backward()
    assert small.weight.grad is not None and small.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32])
def test_autocast_gives_its_own_number_format(weights: torch.dtype) -> None:
    conv = nn.Conv2d(4, 6, 3, padding=1).to(weights).requires_grad_(False)
    x = torch.randn(1, 4, 4, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = Im2colConv2d.of(conv)(x), conv(x)
    assert y.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=0.05, atol=0.05)
    y.float().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32


def test_layers_with_many_weights_are_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(im2col_convolution, "MIN_WEIGHTS", 100)
    model = nn.ModuleDict(
        {
            "many": nn.Conv2d(4, 4, 3, padding=1), "few": nn.Conv2d(2, 2, 1),
            "grouped": nn.Conv2d(64, 64, 3, groups=2), "linear": nn.Linear(40, 40),
            "reflected": nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
            "same": nn.Conv2d(4, 4, 3, padding="same"),
        }
    )  # fmt: skip
    use_im2col(model)
    assert [name for name, m in model.items() if isinstance(m, Im2colConv2d)] == ["many"]


@pytest.mark.parametrize("adapter", ADAPTER_CHOICES)
def test_every_adapter_learns_on_these_layers(
    adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = {"adapter": adapter, "targets": ("attention", "conv")}
    usual = gradients(open_family(str(tiny("sd1")), torch.float32, CPU), **targets)
    monkeypatch.setattr(im2col_convolution, "MIN_WEIGHTS", 0)
    family = open_family(str(tiny("sd1")), torch.float32, CPU)
    assert any(isinstance(m, Im2colConv2d) for m in family.denoiser.modules())
    found = gradients(family, **targets)
    assert torch.cosine_similarity(found, usual, dim=0) > 0.99999


def test_a_lora_is_blended_into_these_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(im2col_convolution, "MIN_WEIGHTS", 0)
    family = open_family(str(tiny("sd1")), torch.float32, CPU)
    layer = family.denoiser.get_submodule("down_blocks.0.resnets.0.conv1")
    before = layer.weight.clone()
    blend = Blend(family)
    blend.apply([(tiny_lora(family, targets=("conv",)), 1.0, 1.0)])
    assert not torch.equal(layer.weight, before)
    blend.clear()
    assert torch.equal(layer.weight, before)
