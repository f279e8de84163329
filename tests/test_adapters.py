"""Blending is exact and leaves no trace; training adapters come and go the same way."""

import dataclasses
import random

import pytest
import torch
from torch import nn

from sdlora import adapters
from sdlora.adapters import Blend, attach, collect, detach, fit, trainable_report
from sdlora.errors import LoraFileError
from sdlora.families.base import Family
from sdlora.lora.file import LoraFile, LoraPair
from sdlora.settings import TrainSettings
from tiny import open_tiny, tiny_lora, weights_hash

UNET = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
TEXT = "lora_te_text_model_encoder_layers_0_mlp_fc1"


@pytest.fixture(scope="module")
def family() -> Family:
    return open_tiny("sd1")


@pytest.fixture(scope="module")
def loras(family: Family) -> list[LoraFile]:
    return [
        tiny_lora(family, 1),
        tiny_lora(family, 2, targets=("attention",)),
        tiny_lora(family, 3, targets=("conv",), train_text_encoder=False),
        tiny_lora(family, 4, rank=8, alpha=8),
    ]


def weight(family: Family, name: str) -> torch.Tensor:
    part, path = family.module_names()[name]
    return family.parts[part].get_submodule(path).weight


def test_sum_is_that_of_float64(family: Family, loras: list[LoraFile]) -> None:
    first, second = loras[0], loras[3]
    before = {name: weight(family, name).double() for name in first.pairs}
    blend = Blend(family)
    blend.apply([(first, 0.8, 0.3), (second, -0.5, 1.0)])
    for name, was in before.items():
        strengths = (0.3, 1.0) if name.startswith("lora_te") else (0.8, -0.5)
        expected = was.clone()
        for strength, file in zip(strengths, (first, second), strict=True):
            pair = file.pairs[name]
            product = pair.up.double().flatten(1) @ pair.down.double().flatten(1)
            scale = strength * pair.alpha / len(pair.down)
            expected += (scale * product).view_as(expected)
        torch.testing.assert_close(weight(family, name).double(), expected, atol=1e-6, rtol=1e-6)
    blend.clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_hundred_switches_leave_no_trace(dtype: torch.dtype, loras: list[LoraFile]) -> None:
    family = open_tiny("sd1", dtype)
    pristine, blend, rng = weights_hash(family), Blend(family), random.Random(0)
    returns = 0
    for _ in range(100):
        chosen = rng.sample(loras, rng.choice([0, 0, 1, 1, 2, 3, 4]))
        blend.apply([(file, rng.uniform(-2, 2), rng.uniform(-2, 2)) for file in chosen])
        assert (weights_hash(family) == pristine) == (not chosen)
        returns += not chosen
    blend.clear()
    assert weights_hash(family) == pristine and returns > 10


def test_the_way_to_a_blend_does_not_matter(family: Family, loras: list[LoraFile]) -> None:
    blend = Blend(family)
    wanted = [(loras[0], 0.7, 0.7), (loras[1], 0.5, 0.0)]
    blend.apply(wanted)
    straight = weights_hash(family)
    blend.apply([(loras[3], 1.0, 1.0), (loras[0], 0.7, 0.7)])
    blend.apply([(loras[2], 2.0, 2.0)])
    blend.apply(wanted)
    assert weights_hash(family) == straight
    blend.clear()


def test_weight_zero_is_no_lora(family: Family, loras: list[LoraFile]) -> None:
    pristine, blend = weights_hash(family), Blend(family)
    fits = blend.apply([(loras[0], 0.0, 0.0)])
    assert fits[0].layers == len(loras[0].pairs)
    assert weights_hash(family) == pristine and not blend._pristine


def test_only_what_changed_is_computed(
    family: Family, loras: list[LoraFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[LoraPair] = []
    delta = LoraPair.delta
    monkeypatch.setattr(LoraPair, "delta", lambda s, d=None: computed.append(s) or delta(s, d))
    blend = Blend(family)
    blend.apply([(loras[0], 1.0, 1.0)])
    computed.clear()
    blend.apply([(loras[0], 1.0, 1.0)])
    assert not computed
    blend.apply([(loras[0], 1.0, 0.5)])
    changed = {name for name, pair in loras[0].pairs.items() if any(pair is c for c in computed)}
    assert changed == {name for name in loras[0].pairs if name.startswith("lora_te")}
    blend.clear()


def test_pristine_weights_are_kept_of_touched_layers_only(
    family: Family, loras: list[LoraFile]
) -> None:
    blend = Blend(family)
    blend.apply([(loras[2], 1.0, 1.0)])
    assert len(blend._pristine) == len(loras[2].pairs) < len(family.module_names()) / 3
    blend.clear()
    assert not blend._pristine


def test_same_lora_twice_adds_up(family: Family, loras: list[LoraFile]) -> None:
    blend = Blend(family)
    blend.apply([(loras[0], 0.5, 0.5), (loras[0], 0.3, 0.3)])
    twice = weight(family, UNET).clone()
    blend.apply([(loras[0], 0.8, 0.8)])
    torch.testing.assert_close(weight(family, UNET), twice)
    blend.clear()


def test_a_failure_in_the_middle_leaves_the_model_pristine(
    family: Family, loras: list[LoraFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    pristine, blend = weights_hash(family), Blend(family)
    blend.apply([(loras[1], 1.0, 1.0)])
    delta, calls = LoraPair.delta, iter(range(40))

    def failing(self: LoraPair, device: torch.device | None = None) -> torch.Tensor:
        if next(calls, None) is None:
            raise MemoryError
        return delta(self, device)

    monkeypatch.setattr(LoraPair, "delta", failing)
    with pytest.raises(MemoryError):
        blend.apply([(loras[0], 1.0, 1.0)])
    assert weights_hash(family) == pristine


def test_overflow_is_refused(loras: list[LoraFile]) -> None:
    family = open_tiny("sd1", torch.float16)
    pristine = weights_hash(family)
    with pytest.raises(LoraFileError, match="too high"):
        Blend(family).apply([(loras[0], 1e7, 1.0)])
    assert weights_hash(family) == pristine


def test_pristine_weights_move_off_a_full_device(
    family: Family, loras: list[LoraFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu = dataclasses.make_dataclass("F", ["device"])(torch.device("cuda"))
    blend = Blend(family)
    monkeypatch.setattr(blend, "family", on_gpu)
    for free, where in ((8.0, "cuda"), (0.5, "cpu")):
        monkeypatch.setattr(adapters, "free_memory_gib", lambda _, free=free: free)
        assert blend._shelf([]).type == where


def test_one_by_one_convolution_fits_a_linear_layer(family: Family) -> None:
    linear = LoraPair(torch.randn(2, 32), torch.randn(32, 2), 2.0)
    conv = LoraPair(linear.down[..., None, None], linear.up[..., None, None], 2.0)
    blend = Blend(family)
    mixed = []
    for pair in (linear, conv):
        blend.apply([(LoraFile({UNET: pair}), 1.0, 1.0)])
        mixed.append(weight(family, UNET).clone())
    assert torch.equal(*mixed)
    blend.clear()


def test_unmatched_layers_are_told(family: Family, loras: list[LoraFile]) -> None:
    pairs = {UNET: loras[0].pairs[UNET], "lora_unet_elsewhere": loras[0].pairs[UNET]}
    found = fit(LoraFile(pairs), family)
    assert (found.layers, found.unmatched) == (1, ("lora_unet_elsewhere",))


def test_only_text_encoder_may_be_called_te1(family: Family, loras: list[LoraFile]) -> None:
    renamed = {TEXT.replace("lora_te_", "lora_te1_"): loras[0].pairs[TEXT]}
    assert list(fit(LoraFile(renamed), family).places) == [family.module_names()[TEXT]]


@pytest.mark.parametrize(
    ("width", "title"),
    [(1024, "Stable Diffusion 2"), (2048, "Stable Diffusion XL"), (128, "the starter model")],
)
def test_wrong_base_names_both(width: int, title: str, family: Family) -> None:
    name = UNET.replace("attn1_to_q", "attn2_to_k")
    file = LoraFile({name: LoraPair(torch.ones(2, width), torch.ones(32, 2), 2.0)})
    pristine = weights_hash(family)
    with pytest.raises(LoraFileError, match=f"for {title}; .* is Stable Diffusion 1$"):
        Blend(family).apply([(file, 1.0, 1.0)])
    assert weights_hash(family) == pristine


def test_same_base_of_another_size_is_told_too(family: Family, loras: list[LoraFile]) -> None:
    with pytest.raises(LoraFileError, match="do not fit the open model, Stable Diffusion 2"):
        fit(loras[0], open_tiny("sd2"))
    with pytest.raises(LoraFileError, match="do not fit"):
        fit(LoraFile({"lora_unet_elsewhere": loras[0].pairs[UNET]}), family)


SETTINGS = TrainSettings(
    data="x", name="x", rank=4, alpha=2, conv_rank=2, train_text_encoder=True, dropout=0.1,
    targets=("attention", "feed_forward", "conv"),
)  # fmt: skip


def test_fresh_adapter_changes_nothing(family: Family) -> None:
    pristine = weights_hash(family)
    attach(family, SETTINGS)
    file = collect(family)
    assert all(not pair.up.any() and pair.down.std() > 0 for pair in file.pairs.values())
    detach(family)
    assert weights_hash(family) == pristine
    assert not any(
        isinstance(module, nn.ModuleDict) or hasattr(module, "peft_config")
        for part in family.parts.values()
        for module in part.modules()
    )


def test_gaussian_start_depends_on_the_seed_only(family: Family) -> None:
    starts = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(starts))
        attach(family, SETTINGS.model_copy(update={"seed": seed}))
        starts.append(collect(family).pairs[UNET].down)
        detach(family)
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])
    assert starts[0].std() == pytest.approx(1 / 4, rel=0.3)


def test_ranks_and_scale(family: Family) -> None:
    attach(family, SETTINGS.model_copy(update={"rank": 20, "alpha": 10.0}))
    for name, pair in collect(family).pairs.items():
        out, width = pair.up.shape[0], pair.down[0].numel()
        is_conv = "resnets" in name or "samplers" in name
        assert pair.rank == min(2 if is_conv else 20, out, width), name
        assert pair.alpha / pair.rank == pytest.approx(0.5), name
    detach(family)


def test_blending_under_a_training_adapter(family: Family, loras: list[LoraFile]) -> None:
    """Sampling in a training may use LoRAs: base weights change and come back, adapters stay."""
    pristine = weights_hash(family)
    attach(family, SETTINGS)
    learnt, blend = collect(family), Blend(family)
    blend.apply([(loras[0], 1.0, 1.0)])
    blend.clear()
    after = collect(family)
    assert all(torch.equal(pair.down, after.pairs[n].down) for n, pair in learnt.pairs.items())
    detach(family)
    assert weights_hash(family) == pristine


def test_report_counts(family: Family) -> None:
    attach(family, SETTINGS)
    report, file = trainable_report(family), collect(family)
    detach(family)
    assert report.trained == sum(p.down.numel() + p.up.numel() for p in file.pairs.values())
    assert report.layers == len(file.pairs)
    assert report.total == sum(p.numel() for m in family.parts.values() for p in m.parameters())
    assert f"{report.trained:,} parameters in {report.layers} layers learn" in str(report)
