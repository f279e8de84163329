"""Training adapters come and go without a trace in the base, and begin as they should."""

import pytest
import torch
from torch import Tensor, nn

from sdlora.adapters import Blend, attach, collect, detach, trainable_report
from sdlora.families.base import Family
from sdlora.lora.file import LoraFile
from sdlora.settings import TrainSettings
from tiny import open_tiny, tiny_lora, weights_hash

UNET = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.fixture(scope="module")
def family() -> Family:
    return open_tiny("sd1")


SETTINGS = TrainSettings(
    data="x", name="x", rank=4, alpha=2, conv_rank=2, train_text_encoder=True, dropout=0.1,
    targets=("attention", "feed_forward", "conv"),
)  # fmt: skip


def test_fresh_adapter_changes_nothing(family: Family) -> None:
    pristine = weights_hash(family)
    attach(family, SETTINGS)
    file = collect(family)
    assert all(
        not pair.tensors["up"].any() and pair.tensors["down"].std() > 0
        for pair in file.layers.values()
    )
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
        starts.append(collect(family).layers[UNET].tensors["down"])
        detach(family)
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])
    assert starts[0].std() == pytest.approx(1 / 4, rel=0.3)


def test_ranks_and_scale(family: Family) -> None:
    attach(family, SETTINGS.model_copy(update={"rank": 20, "alpha": 10.0}))
    for name, pair in collect(family).layers.items():
        out, width = pair.shape[0], pair.tensors["down"][0].numel()
        is_conv = "resnets" in name or "samplers" in name
        assert pair.rank == min(2 if is_conv else 20, out, width), name
        assert float(pair.tensors["alpha"]) / pair.rank == pytest.approx(0.5), name
    detach(family)


def test_blending_under_a_training_adapter(family: Family) -> None:
    """Sampling in a training may use LoRAs: base weights change and come back, adapters stay."""
    lora = tiny_lora(family, 1)
    pristine = weights_hash(family)
    attach(family, SETTINGS)
    learnt, blend = tensors(collect(family)), Blend(family)
    layer = family.denoiser.mid_block.attentions[0].proj_in
    x = torch.randn(1, 32, 4, 4)
    before = layer(x)
    blend.apply([(lora, 1.0, 1.0)])
    merged = layer(x)
    blend.clear()
    blend.vary([(lora, [1.0], [1.0])])
    torch.testing.assert_close(layer(x), merged)
    assert (merged - before).abs().max() > 1e-2
    blend.clear()
    assert torch.equal(layer(x), before)
    assert all(map(torch.equal, tensors(collect(family)), learnt))
    detach(family)
    assert weights_hash(family) == pristine


def tensors(file: LoraFile) -> list[Tensor]:
    return [tensor for adapter in file.layers.values() for tensor in adapter.tensors.values()]


def test_report_counts(family: Family) -> None:
    attach(family, SETTINGS)
    report, file = trainable_report(family), collect(family)
    detach(family)
    halves = [pair.tensors[half] for pair in file.layers.values() for half in ("down", "up")]
    assert report.trained == sum(half.numel() for half in halves)
    assert report.layers == len(file.layers)
    assert report.total == sum(p.numel() for m in family.parts.values() for p in m.parameters())
    assert f"{report.trained:,} parameters in {report.layers} layers learn" in str(report)
