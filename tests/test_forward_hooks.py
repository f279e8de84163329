"""LoRAs beside the weights do what merged ones do, image by image and step by step, and then go."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mixed_loras import FILES, mixed_lora, mixed_loras
from sdlora.adapters import Blend
from sdlora.errors import LoraFileError
from sdlora.lora.format.file import LoraFile
from sdlora.models.base import ModelFamily
from sdlora.models.frozen_weights import FrozenLinear
from sdlora.models.options import ModelOptions
from sdlora.models.registry import open_family
from sdlora.models.weight_formats import FORMATS
from sdlora.settings.model import BasePrecision
from tiny import CPU, LATENT, open_tiny, prompt_embeds, tiny, tiny_lora, weights_hash

# per image: the weights of two LoRAs
ROWS = [(0.8, 0.0), (-0.4, 1.1), (0.0, 0.6)]


@pytest.fixture
def family() -> Iterator[ModelFamily]:
    family = open_tiny("sd1")
    was = weights_hash(family)
    yield family
    assert weights_hash(family) == was
    assert not any(m._forward_hooks for part in family.components.values() for m in part.modules())


def answers(family: ModelFamily, count: int = 3) -> tuple[Tensor, Tensor]:
    """The text encoder's and the UNet's answer to `count` different inputs."""
    rng = torch.Generator().manual_seed(0)
    noisy = torch.randn(count, 4, LATENT, LATENT, generator=rng)
    t = torch.tensor([1, 400, 900] * count)[:count]
    with torch.no_grad():
        text = family.encode_prompts(["a cat", "a dog at night", "b"][:count]).tensors["context"]
        context = torch.randn(count, 77, 16, generator=rng)
        return text, family.denoiser(noisy, t, context, return_dict=False)[0]


def side(files: list[LoraFile]) -> list[tuple[LoraFile, list[float], list[float]]]:
    """The files with the weights of ROWS, half as much on the text encoder."""
    rows = list(zip(*ROWS, strict=True))
    return [(f, list(w), [x / 2 for x in w]) for f, w in zip(files, rows, strict=True)]


@pytest.mark.parametrize("name", FILES)
def test_rows_are_the_images_made_alone(name: str, family: ModelFamily) -> None:
    """A different weight for every image: each is what merging its weights gives."""
    files, blend = [mixed_lora(family, name), tiny_lora(family, 1)], Blend(family)
    _, without = answers(family)
    blend.set_row_weights(side(files))
    together = answers(family)
    blend.clear()
    for row, (first, second) in enumerate(ROWS):
        weights = ((first, first / 2), (second, second / 2))
        blend.apply([(f, *w) for f, w in zip(files, weights, strict=True)])
        alone = answers(family)
        for ours, merged in zip(together, alone, strict=True):
            torch.testing.assert_close(ours[row], merged[row], rtol=1e-4, atol=2e-5)
        assert (alone[1][row] - without[row]).abs().max() > 1e-3
    blend.clear()


def test_weights_over_the_steps_are_merged_anew_each_step(family: ModelFamily) -> None:
    """A pipeline's call with guidance, whose batch holds every image twice."""
    files, blend, rows = [tiny_lora(family, 1), mixed_lora(family, "DoRA")], Blend(family), []
    steps = [(0.2, 0.9), (0.5, 0.5), (1.0, -0.3)]

    def paint(stand: Any) -> Tensor:
        texts = prompt_embeds(family, ["a cat", "a dog"], ["", ""])
        generator = [torch.Generator().manual_seed(seed) for seed in (1, 2)]

        def after_step(_: Any, step: int, _t: Any, values: dict[str, Any]) -> dict[str, Any]:
            if step + 1 < len(steps):
                stand(steps[step + 1])
            return values

        stand(steps[0])
        with torch.no_grad():
            return family.pipeline(
                **texts, num_inference_steps=3, generator=generator, output_type="latent",
                guidance_scale=5.0, callback_on_step_end=after_step,
            ).images  # fmt: skip

    def merged(weights: tuple[float, float]) -> None:
        blend.apply([(f, w, 0.0) for f, w in zip(files, weights, strict=True)])

    def varied(weights: tuple[float, float]) -> None:
        blend.set_row_weights([(f, [w], [0.0]) for f, w in zip(files, weights, strict=True)])
        rows.append([hook for part in family.denoiser.modules() for hook in part._forward_hooks])

    expected = paint(merged)
    blend.clear()
    got = paint(varied)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
    assert rows[0] and all(row == rows[0] for row in rows)  # set up once, for all steps
    blend.clear()


def test_varying_stands_over_what_is_merged(family: ModelFamily) -> None:
    """A kind that builds on the base's weights builds on them, not on the merged ones."""
    first, second = tiny_lora(family, 1), mixed_lora(family, "OFT")
    blend = Blend(family)
    blend.set_row_weights([(second, [0.7], [0.7])])
    blend.apply([(first, 0.5, 0.5)])
    apart = answers(family)
    blend.clear()
    blend.apply([(first, 0.5, 0.5)])
    blend.set_row_weights([(second, [0.7], [0.7])])
    turned = answers(family)
    blend.clear()
    blend.apply([(first, 0.5, 0.5), (second, 0.7, 0.7)])
    for one, other, together in zip(apart, turned, answers(family), strict=True):
        torch.testing.assert_close(one, together, rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(other, together, rtol=1e-4, atol=2e-5)
    blend.clear()


def test_half_precision_is_near() -> None:
    half = open_tiny("sd1", torch.bfloat16)
    file, blend = tiny_lora(half, 1), Blend(half)
    x = torch.randn(3, 77, 16).bfloat16()
    layer = half.text_encoders["te"].encoder.layers[0].mlp.fc1
    blend.apply([(file, 0.5, 0.5)])
    merged = layer(x)
    blend.clear()
    blend.set_row_weights([(file, [0.5], [0.5])])
    torch.testing.assert_close(layer(x), merged, rtol=0.02, atol=0.02)
    blend.clear()


def test_rows_that_do_not_divide_the_batch_are_refused(family: ModelFamily) -> None:
    blend = Blend(family)
    blend.set_row_weights(side([tiny_lora(family, 1), tiny_lora(family, 2)]))
    with pytest.raises(ValueError, match="batch of 2 does not divide into 3 rows"):
        answers(family, 2)
    blend.clear()


def test_a_failure_while_hooks_are_made_leaves_none(
    family: ModelFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    blend, made = Blend(family), iter(range(3))
    register = nn.Module.register_forward_hook

    def failing(self: nn.Module, hook: Any) -> Any:
        if next(made, None) is None:
            raise KeyboardInterrupt
        return register(self, hook)

    blend.apply([(tiny_lora(family, 2), 1.0, 1.0)])
    monkeypatch.setattr(nn.Module, "register_forward_hook", failing)
    with pytest.raises(KeyboardInterrupt):
        blend.set_row_weights([(tiny_lora(family, 1), [1.0], [1.0])])


class Int8Linear(nn.Linear):
    """A linear layer that holds its weight as eight bits and a scale per output, absmax."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, device="meta")
        self.bias = layer.bias
        scale = layer.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        stored = (layer.weight.detach() / scale).round().to(torch.int8)
        self.weight = nn.Parameter(stored, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


def quantised(family: ModelFamily, eight_bits: bool) -> ModelFamily:
    """All linear layers in eight bits; or in floats, with the values of those eight bits."""
    for model in family.components.values():
        for path, layer in list(model.named_modules()):
            if isinstance(layer, nn.Linear):
                small = Int8Linear(layer)
                if eight_bits:
                    model.set_submodule(path, small)
                else:
                    layer.weight.data = small.weight.float() * small.scale
    return type(family)(family.name, family.pipeline, family.device, family.dtype)


def test_a_quantised_base_takes_every_kind() -> None:
    """As merging into a base of the same values does; its eight bits stay what they were."""
    small, plain = (quantised(open_tiny("sd1"), eight_bits) for eight_bits in (True, False))
    was, wanted = weights_hash(small), [(f, 0.6, 0.4) for f in mixed_loras(plain)]
    torch.testing.assert_close(answers(small), answers(plain))
    before, blends = answers(small), (Blend(small), Blend(plain))
    for blend in blends:
        blend.apply(wanted)
    for ours, merged, without in zip(answers(small), answers(plain), before, strict=True):
        torch.testing.assert_close(ours, merged, rtol=1e-3, atol=1e-4)
        assert (ours - without).abs().max() > 1e-2
    blends[0].clear()
    assert weights_hash(small) == was
    assert all(torch.equal(a, b) for a, b in zip(answers(small), before, strict=True))


def test_a_quantised_convolution_is_refused_by_name() -> None:
    family = open_tiny("sd1")
    file = mixed_lora(family, "DoRA")
    places = [place for place in Blend(family).match(file).places if "conv1" in place[1]]
    conv = family.adaptable_layers[places[0][0]][places[0][1]]
    conv.weight.requires_grad_(False)
    conv.weight.data = conv.weight.data.to(torch.float8_e4m3fn)
    with pytest.raises(LoraFileError, match="conv1 is quantised"):
        Blend(family).apply([(file, 1.0, 1.0)])


def held(kind: str, precision: BasePrecision) -> tuple[ModelFamily, ModelFamily]:
    """A base opened with small frozen weights, and one with their values in ordinary layers."""
    options = ModelOptions(base_precision=precision)
    small, plain = (open_family(str(tiny(kind)), torch.float32, CPU, options) for _ in range(2))
    for path, layer in list(plain.denoiser.named_modules()):
        if isinstance(layer, FrozenLinear):
            usual = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
            usual.weight.data, usual.bias = layer.weight, layer.bias
            plain.denoiser.set_submodule(path, usual.requires_grad_(False))
    return small, type(plain)(plain.name, plain.pipeline, plain.device, plain.dtype)


@pytest.mark.parametrize("precision", FORMATS)
def test_blends_on_frozen_weights_are_hooks_on_the_dequantised_base(
    precision: BasePrecision,
) -> None:
    """Of every kind, at constant weights and at those of steps; convolutions are merged still."""
    small, plain = held("sd1", precision)
    was, before, files = weights_hash(small), answers(small), mixed_loras(plain)
    blends = Blend(small), Blend(plain)
    blends[1].set_row_weights([(f, [0.6], [0.4]) for f in files])
    hooked = answers(plain)
    blends[0].apply([(f, 0.6, 0.4) for f in files])
    convolutions = [m for m in small.denoiser.modules() if isinstance(m, nn.Conv2d)]
    assert any(not m._forward_hooks for m in convolutions) and weights_hash(small) != was
    assert any(m._forward_hooks for m in small.denoiser.modules() if isinstance(m, FrozenLinear))
    for ours, theirs, without in zip(answers(small), hooked, before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        assert (ours - without).abs().max() > 1e-2
    blends[0].clear()
    assert weights_hash(small) == was
    for weight in (0.2, 0.9):
        for blend in blends:
            blend.set_row_weights([(f, [weight], [0.0]) for f in files])
        torch.testing.assert_close(answers(small), answers(plain), rtol=1e-5, atol=1e-5)
    blends[0].clear()
    assert weights_hash(small) == was
    assert all(torch.equal(a, b) for a, b in zip(answers(small), before, strict=True))
