"""Kinds of adapters: what is not in test_lora_formats, and the layers of peft."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from adapter_cases import (
    CASES,
    CELLS,
    IN,
    LAYERS,
    OUT,
    RANK,
    SHAPES,
    Make,
    Oracle,
    Tensors,
    error,
    glora_says,
    locon_says,
    make_glora,
    make_lora,
    make_old_glora,
    module_of,
    old_glora_says,
    random,
)
from sdlora.errors import LoraFileError
from sdlora.lora.format.adapter_types import ADAPTER_TYPES
from sdlora.lora.format.file import read_lora
from sdlora.lora.format.layer import Adapter


@pytest.mark.parametrize("case", CASES)
def test_half_of_the_bits(case: str) -> None:
    """A weight in half the bits is read as it is; the delta has all of its own."""
    kind, make, oracle, layers = CASES[case]
    shape, rand = SHAPES[layers[0]], random()
    made, weight = make(shape, rand), rand(*shape).bfloat16()
    adapter = Adapter(kind, made)
    assert adapter.fits(shape) and not adapter.fits((OUT + 1, IN + 1, *shape[2:]))
    ours = adapter.delta(weight)
    assert ours.dtype == torch.float32 and ours.shape == shape
    assert error(ours, oracle(made, weight.float()).reshape(shape)) < 1e-5


def test_every_kind_has_a_case() -> None:
    assert {row[0] for row in CASES.values()} == set(ADAPTER_TYPES)


def test_bias_deltas() -> None:
    for kind, role in (("full", "diff_b"), ("norm", "b_norm"), ("LoRA", "diff_b")):
        shape = SHAPES["norm" if kind == "norm" else "linear"]
        made = {**CASES[kind][1](shape, random()), role: torch.arange(float(OUT))}
        adapter = Adapter(kind, made)
        assert adapter.parameters == ("weight", "bias") and adapter.factors() is None
        assert torch.equal(adapter.delta(torch.zeros(OUT).half(), "bias"), made[role])
    alone = Adapter("full", {"diff_b": torch.ones(OUT)})
    assert alone.parameters == ("bias",) and alone.fits((OUT, IN)) and not alone.fits((IN, OUT))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("case", ["LoRA", "LoRA, Tucker"])
def test_factors_are_the_delta(case: str, layer: str) -> None:
    if layer not in CASES[case][3]:
        layer = "conv 3x3"
    shape = SHAPES[layer]
    made = {**CASES[case][1](shape, random()), "scalar": torch.tensor(0.5)}
    adapter = Adapter("LoRA", made)
    factors = adapter.factors()
    assert factors is not None
    down, up = factors
    assert down.shape == (RANK, *shape[1:]) and up.shape == (OUT, RANK)
    product = (up.double() @ down.double().flatten(1)).view(shape)
    assert error(adapter.delta(torch.zeros(shape)), product) < 1e-6
    assert error(product, 0.5 * locon_says(made, product).view(shape)) < 1e-6


def test_only_a_plain_low_rank_product_has_factors() -> None:
    others = [case for case in CELLS if CASES[case[0]][0] != "LoRA"]
    for case, layer in others:
        kind, make, _, _ = CASES[case]
        assert Adapter(kind, make(SHAPES[layer], random())).factors() is None


@pytest.mark.parametrize("case", CASES)
def test_rows_are_rows_of_the_delta(case: str) -> None:
    kind, make, _, layers = CASES[case]
    shape, rand = SHAPES[layers[0]], random()
    adapter, weight = Adapter(kind, make(shape, rand)), rand(*shape)
    mixes = kind in ("IA3", "OFT", "BOFT", "norm") or case.endswith("by input")
    whole = adapter.delta(weight)
    share = OUT // 3
    turned = weight.roll(-share, 0)  # from the second share on, and round
    for (first, last), expected, its in (
        ((0, 1), whole[:share], weight[:share]),
        ((1, 3), whole[share:], weight[share:]),
        ((1, 4), whole.roll(-share, 0), turned),
    ):
        if mixes:
            with pytest.raises(LoraFileError, match="cannot be taken apart"):
                adapter.rows(first, last, 3)
        else:
            cut = adapter.rows(first, last, 3)
            assert cut.fits(its.shape)
            assert error(cut.delta(its), expected) < 1e-6
    with pytest.raises(LoraFileError, match="cannot be taken apart"):
        adapter.rows(0, 1, 7)


def test_a_convolution_of_one_pixel_is_a_linear_layer() -> None:
    flat = make_lora(SHAPES["linear"], random())
    square = {r: t[..., None, None] if t.dim() else t for r, t in flat.items()}
    weight = random(1)(OUT, IN)
    for made, scale in ((flat, (OUT, 1)), (square, (OUT, 1, 1, 1)), (flat, (1, IN))):
        for kind, more in (("LoRA", {}), ("DoRA", {"dora_scale": 1 + torch.rand(scale)})):
            adapter = Adapter(kind, {**made, **more})
            on_linear, on_conv = (adapter.delta(w) for w in (weight, weight[..., None, None]))
            assert torch.equal(on_linear, on_conv[..., 0, 0])
            assert adapter.fits((OUT, IN)) and adapter.fits((OUT, IN, 1, 1))


@pytest.mark.parametrize(
    ("make", "oracle"), [(make_glora, glora_says), (make_old_glora, old_glora_says)]
)
def test_glora_of_a_square_weight_is_told_by_its_rank(make: Make, oracle: Oracle) -> None:
    rand = random()
    made, weight = make((OUT, IN), rand), rand(IN, IN)
    out = "b1" if make is make_glora else "b2"
    made[out] = made[out][:IN]
    assert error(Adapter("GLoRA", made).delta(weight), oracle(made, weight)) < 1e-5


def test_without_alpha_the_scale_is_one() -> None:
    made = make_lora(SHAPES["linear"], random())
    del made["alpha"]
    ours = Adapter("LoRA", made).delta(torch.zeros(OUT, IN))
    assert error(ours, made["up"].double() @ made["down"].double()) < 1e-6


# Against peft, whose layers carry their own code for each kind


def peft_layer(config: Any, weight: Tensor) -> tuple[Any, Tensors]:
    """A peft layer with random numbers in place of its start, and its state by key."""
    config.target_modules = ["0"]
    model = peft.get_peft_model(nn.Sequential(module_of(weight)), config)
    rand = random(3)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            start = 1.0 if "magnitude" in name else 0.0
            parameter.data = start + 0.3 * rand(*parameter.shape).abs()
    state = peft.get_peft_model_state_dict(model)
    prefix = "base_model.model.0."
    layer = model.base_model.model[0]
    layer.merge()
    return layer, {key.removeprefix(prefix): value.clone() for key, value in state.items()}


PEFT: dict[str, tuple[Callable[[], Any], str]] = {
    "LoRA": (lambda: peft.LoraConfig(r=RANK, lora_alpha=2), "LoRA"),
    "rsLoRA": (lambda: peft.LoraConfig(r=RANK, lora_alpha=2, use_rslora=True), "LoRA"),
    "DoRA": (lambda: peft.LoraConfig(r=RANK, lora_alpha=2, use_dora=True), "DoRA"),
    "LoHa": (lambda: peft.LoHaConfig(r=RANK, alpha=2), "LoHa"),
    "LoHa, Tucker": (lambda: peft.LoHaConfig(r=RANK, alpha=2, use_effective_conv2d=True), "LoHa"),
    "LoKr": (lambda: peft.LoKrConfig(r=1, alpha=2), "LoKr"),
    "LoKr, both factored": (
        lambda: peft.LoKrConfig(r=1, alpha=2, decompose_both=True, decompose_factor=4), "LoKr",
    ),
    "LoKr, Tucker": (lambda: peft.LoKrConfig(r=1, alpha=2, use_effective_conv2d=True), "LoKr"),
}  # fmt: skip


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("case", PEFT)
def test_what_peft_saves_does_what_peft_does(case: str, layer: str, tmp_path: Path) -> None:
    config, kind = PEFT[case][0](), PEFT[case][1]
    weight = random(1)(*SHAPES[layer])
    merged, state = peft_layer(config, weight)
    tensors = {f"unet.x.{key}": value for key, value in state.items()}
    if kind in ("LoRA", "DoRA"):
        rank_stabilised = str(config.use_rslora).lower()
        said = f'{{"unet.lora_alpha": 2, "unet.use_rslora": {rank_stabilised}}}'
    else:
        said = "{}"
        tensors["unet.x.alpha"] = torch.tensor(2.0)
    save_file(tensors, tmp_path / "a.safetensors", {"lora_adapter_metadata": said})
    read = read_lora(tmp_path / "a.safetensors")
    assert read.kinds == {kind: 1}
    adapter = read.layers["lora_unet_x"]
    assert adapter.fits(weight.shape)
    assert error(weight + adapter.delta(weight), merged.base_layer.weight) < 1e-6
    assert error(adapter.delta(weight), merged.base_layer.weight.double() - weight) < 1e-5


def test_oft_is_that_of_peft_turned_round() -> None:
    """peft turns the inputs of a layer, LyCORIS its outputs: one is the other's transposed."""
    weight = random(1)(OUT, IN)
    config = peft.OFTConfig(oft_block_size=4, r=0, use_cayley_neumann=False)
    merged, state = peft_layer(config, weight.T)  # OUT inputs
    (upper,) = state.values()
    blocks = torch.zeros(OUT // 4, 4, 4)
    blocks[:, *torch.triu_indices(4, 4, 1)] = upper
    theirs = merged.base_layer.weight.T.double()
    # (I - Q)(I + Q)^-1 there, (I + Q)(I - Q)^-1 here; and x R there, R^T W here
    errors = [
        error(Adapter("OFT", {"oft_blocks": sign * blocks}).delta(weight), theirs - weight)
        for sign in (1, -1)
    ]
    assert min(errors) < 1e-5
