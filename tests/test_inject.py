"""Training adapters come and go without a trace in the base, and begin as they should."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from sdlora.adapters import (
    Blend,
    ParamGroup,
    attach,
    compile_blocks,
    detach,
    extract_lora,
    inject,
    limit_norms,
    trainable_report,
)
from sdlora.adapters.types import ADAPTER, TRAINABLE_TYPES, lora
from sdlora.errors import SettingsError
from sdlora.lora.format.file import LoraFile, read_lora, write_lora
from sdlora.lora.format.metadata import TrainingFacts, training_metadata
from sdlora.models.base import ModelFamily
from sdlora.settings.train import TrainSettings
from tiny import open_tiny, tiny, tiny_lora, weights_hash

UNET = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.fixture(scope="module")
def family() -> ModelFamily:
    return open_tiny("sd1")


FILE_KIND = {
    "lora": "LoRA", "dora": "DoRA", "rslora": "LoRA", "pissa": "LoRA", "loha": "LoHa",
    "lokr": "LoKr", "oft": "OFT",
}  # fmt: skip


BY_OUTPUT = "dora by output"  # what --dora-axis output asks for
WAYS = (*TRAINABLE_TYPES, BY_OUTPUT)


def asked(way: str, **more: Any) -> TrainSettings:
    """Every group of layers, with that kind of adapter."""
    if way == BY_OUTPUT:
        more["dora_axis"] = "output"
    return TrainSettings.from_values({
        "data": "x", "name": "x", "adapter": way.partition(" ")[0],
        "rank": 4, "alpha": 2, "conv_rank": 3,
        "targets": ["attention", "feed_forward", "conv"], "train_text_encoder": True, **more,
    })  # fmt: skip


def unet_inputs() -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(3)
    latents, words = torch.randn(2, 4, 8, 8, generator=rng), torch.randn(2, 5, 16, generator=rng)
    return latents, torch.tensor([10, 700]), words


@torch.no_grad()
def answers(family: ModelFamily) -> list[Tensor]:
    """The UNet's and the text encoder's."""
    latents, t, words = unet_inputs()
    unet = family.denoiser(latents, t, words, return_dict=False)[0]
    return [unet, family.encode_prompts(["a cat", "two"]).tensors["context"]]


SETTINGS = TrainSettings(
    data="x", name="x", rank=4, alpha=2, conv_rank=2, train_text_encoder=True, dropout=0.1,
    targets=("attention", "feed_forward", "conv"),
)  # fmt: skip


@pytest.mark.parametrize("kind", WAYS)
def test_fresh_adapter_changes_nothing(family: ModelFamily, kind: str) -> None:
    pristine, before = weights_hash(family), answers(family)
    drops = {} if kind == "oft" else {"dropout": 0.1}
    learning = attach(family, asked(kind, **drops))
    assert all(its.parameters for its in learning)
    for part in {its.part for its in learning}:
        family.components[part].train()
    # PiSSA's start is taken off by a second product, which rounds otherwise with dropout
    close = {"atol": 1e-5, "rtol": 1e-5} if kind == "pissa" else {"atol": 0, "rtol": 0}
    if kind != "pissa":
        torch.testing.assert_close(answers(family), before, **close)
    for part in family.components.values():
        part.eval()
    torch.testing.assert_close(answers(family), before, **close)
    detach(family)
    assert weights_hash(family) == pristine
    assert not any(
        isinstance(module, nn.ModuleDict) or hasattr(module, "peft_config")
        for part in family.components.values()
        for module in part.modules()
    )


def random_numbers(learning: list[ParamGroup], seed: int = 0) -> None:
    """As if much had been learnt."""
    rng = torch.Generator().manual_seed(seed)
    for its in learning:
        for parameter in its.parameters:
            parameter.data += 0.15 * torch.randn(parameter.shape, generator=rng)


@pytest.mark.parametrize("kind", WAYS)
def test_the_file_is_what_the_adapter_does(family: ModelFamily, kind: str, tmp_path: Path) -> None:
    """Written, read and blended into the pristine weights it gives the trained model's answers; and
    layer by layer its delta is that of peft."""
    before = answers(family)
    random_numbers(attach(family, asked(kind)))
    trained, file = answers(family), extract_lora(family)
    for name, adapter in file.layers.items():
        part, path = family.module_names()[name]
        layer: Any = family.components[part].get_submodule(path)
        if kind in ("lora", "rslora", "loha", "lokr"):
            peft_says = layer.get_delta_weight(ADAPTER)
            delta = adapter.delta(layer.base_layer.weight)
            torch.testing.assert_close(delta, peft_says, atol=1e-5, rtol=1e-4)
    detach(family)
    again = read_lora(write_lora(file, tmp_path / "a.safetensors", torch.float32))
    assert again.kinds.keys() == {FILE_KIND[kind.partition(" ")[0]]}
    blend = Blend(family)
    blend.apply([(again, 1.0, 1.0)])
    blended = answers(family)
    blend.clear()
    for ours, theirs, plain in zip(blended, trained, before, strict=True):
        assert (theirs - plain).abs().max() > 1e-2, "nothing was changed"
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("kind", ["lora", "rslora", "pissa", BY_OUTPUT])
def test_in_stock_diffusers(family: ModelFamily, kind: str, tmp_path: Path) -> None:
    """kohya's names for LoRA; DoRA needs PEFT's, for diffusers drops the norms of kohya's, and the
    output's axis, which is peft's."""
    random_numbers(attach(family, asked(kind)))
    trained, file = answers(family), extract_lora(family)
    detach(family)
    names: Any = "peft" if kind == BY_OUTPUT else "kohya"
    path = write_lora(file, tmp_path / "a.safetensors", torch.float32, names)
    stock: Any = StableDiffusionPipeline.from_pretrained(tiny("sd1"))
    stock.load_lora_weights(tmp_path, weight_name=path.name)
    with torch.no_grad():
        theirs = stock.unet(*unet_inputs(), return_dict=False)[0]
    torch.testing.assert_close(theirs, trained[0], atol=2e-4, rtol=2e-4)


def test_pissa_starts_with_the_largest_singular_values(family: ModelFamily) -> None:
    attach(family, asked("pissa", rank=3))
    layer: Any = family.denoiser.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    product = layer.get_delta_weight(ADAPTER)
    weight = layer.base_layer.weight
    left, values, right = torch.linalg.svd(weight)
    torch.testing.assert_close(product, left[:, :3] * values[:3] @ right[:3], atol=2e-3, rtol=1e-2)
    assert not layer.lora_B["start"].weight.requires_grad
    detach(family)


def test_half_numbers_keep_what_pissa_learnt(family: ModelFamily, tmp_path: Path) -> None:
    """A small change beside a large start survives float16."""
    rng = torch.Generator().manual_seed(0)
    for its in attach(family, asked("pissa")):
        for parameter in its.parameters:
            parameter.data += 1e-4 * torch.randn(parameter.shape, generator=rng)
    file = extract_lora(family)
    detach(family)
    again = read_lora(write_lora(file, tmp_path / "a.safetensors", torch.float16))
    weight = family.denoiser.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight
    exact, halved = (its.layers[UNET].delta(weight) for its in (file, again))
    assert (halved - exact).norm() < 0.01 * exact.norm()


def test_groups_have_their_own(family: ModelFamily) -> None:
    settings = TrainSettings.from_values({
        "data": "x", "name": "x", "rank": 4, "alpha": 2, "conv_rank": 3, "learning_rate": 1e-3,
        "targets": ["attention", "conv"], "train_text_encoder": True,
        "group_rank": ["cross_attention=2", "text_encoder=5"], "group_alpha": ["conv=6"],
        "group_learning_rate": ["self_attention=1e-4"], "group_dropout": ["conv=0.5"],
    })  # fmt: skip
    learning = attach(family, settings)
    file = extract_lora(family)
    dropouts = {
        name: family.components[part].get_submodule(path).lora_dropout[ADAPTER]
        for name, (part, path) in family.module_names().items()
        if name in file.layers
    }
    detach(family)
    assert {(its.part, its.group): its.rate for its in learning} == {
        ("denoiser", "self_attention"): 1e-4, ("denoiser", "cross_attention"): 1e-3,
        ("denoiser", "attention"): 1e-3, ("denoiser", "conv"): 1e-3, ("te", "text_encoder"): 5e-5,
    }  # fmt: skip
    wanted = {"attn1": (4, 0.5), "attn2": (2, 0.5), "resnets": (3, 2.0), "lora_te": (5, 0.5)}
    for name, adapter in file.layers.items():
        rank, scale = next((v for word, v in wanted.items() if word in name), (None, None))
        if rank and "conv_shortcut" not in name:
            assert adapter.rank == rank, name
            assert float(adapter.tensors["alpha"]) / rank == pytest.approx(scale), name
        assert getattr(dropouts[name], "p", 0) == (
            0.5 if "resnets" in name or "sampl" in name else 0
        )
    attach(family, settings.model_copy(update={"targets": ("self_attention",)}))
    assert {
        name.split("_to_")[0][-5:] for name in extract_lora(family).layers if "unet" in name
    } == {"attn1"}
    detach(family)


def test_lora_plus_lets_the_upper_matrix_learn_faster(family: ModelFamily) -> None:
    learning = attach(family, asked("dora", lora_plus_ratio=16, targets=("feed_forward",)))
    layer: Any = family.denoiser.mid_block.attentions[0].transformer_blocks[0].ff.net[2]
    detach(family)
    rate = {id(p): its.rate for its in learning for p in its.parameters}
    assert rate[id(layer.lora_B[ADAPTER].weight)] == pytest.approx(16e-4)
    assert rate[id(layer.lora_A[ADAPTER].weight)] == pytest.approx(1e-4)
    assert rate[id(layer.lora_magnitude_vector[ADAPTER].weight)] == pytest.approx(1e-4)
    with pytest.raises(SettingsError, match="lora_plus_ratio"):
        asked("lokr", lora_plus_ratio=2)


@pytest.mark.parametrize("kind", ["lora", "rslora", "loha", "lokr"])
def test_max_norm(family: ModelFamily, kind: str) -> None:
    """Afterwards every delta is its own direction, no longer than allowed."""
    settings = asked(kind, max_norm=0.5)
    random_numbers(attach(family, settings))
    deltas = [extract_lora(family)]
    limit_norms(family, settings)
    deltas.append(extract_lora(family))
    detach(family)
    seen = set()
    for name, (part, path) in family.module_names().items():
        if name in deltas[0].layers:
            weight = family.components[part].get_submodule(path).weight
            before, after = (its.layers[name].delta(weight) for its in deltas)
            longest = min(float(before.norm()), 0.5)
            torch.testing.assert_close(
                after, before * (longest / before.norm()), atol=1e-5, rtol=1e-3
            )
            seen.add(longest == 0.5)
    assert True in seen


def test_gaussian_start_depends_on_the_seed_only(family: ModelFamily) -> None:
    starts = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(starts))
        attach(family, SETTINGS.model_copy(update={"seed": seed}))
        starts.append(extract_lora(family).layers[UNET].tensors["down"])
        detach(family)
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])
    assert starts[0].std() == pytest.approx(1 / 4, rel=0.3)


def test_ranks_and_scale(family: ModelFamily) -> None:
    attach(family, SETTINGS.model_copy(update={"rank": 20, "alpha": 10.0}))
    for name, pair in extract_lora(family).layers.items():
        out, width = pair.shape[0], pair.tensors["down"][0].numel()
        is_conv = "resnets" in name or "samplers" in name
        assert pair.rank == min(2 if is_conv else 20, out, width), name
        assert float(pair.tensors["alpha"]) / pair.rank == pytest.approx(0.5), name
    detach(family)


def test_blending_under_a_training_adapter(family: ModelFamily) -> None:
    """Sampling in a training may use LoRAs: base weights change and come back, adapters stay."""
    lora = tiny_lora(family, 1)
    pristine = weights_hash(family)
    attach(family, SETTINGS)
    learnt, blend = tensors(extract_lora(family)), Blend(family)
    layer = family.denoiser.mid_block.attentions[0].proj_in
    x = torch.randn(1, 32, 4, 4)
    before = layer(x)
    blend.apply([(lora, 1.0, 1.0)])
    merged = layer(x)
    blend.clear()
    blend.set_row_weights([(lora, [1.0], [1.0])])
    torch.testing.assert_close(layer(x), merged)
    assert (merged - before).abs().max() > 1e-2
    blend.clear()
    assert torch.equal(layer(x), before)
    assert all(map(torch.equal, tensors(extract_lora(family)), learnt))
    detach(family)
    assert weights_hash(family) == pristine


def tensors(file: LoraFile) -> list[Tensor]:
    return [tensor for adapter in file.layers.values() for tensor in adapter.tensors.values()]


def test_learning_at_once_is_learning_beside(
    family: ModelFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The short way of a processor and peft's own give the same answer and gradients."""
    found = []
    for most in (4, 0):
        monkeypatch.setattr(lora, "MAX_WEIGHT_RATIO", most)
        learning = attach(family, asked("lora"))
        random_numbers(learning)
        family.denoiser.train()
        latents, t, words = unet_inputs()
        answer = family.denoiser(latents, t, words, return_dict=False)[0]
        answer.square().sum().backward()
        grads = [p.grad for its in learning for p in its.parameters if its.part == "denoiser"]
        found.append([answer.detach(), *grads])
        detach(family)
        family.denoiser.eval()
    for at_once, beside in zip(*found, strict=True):
        assert (at_once - beside).norm() < 1e-5 * beside.norm()
    assert any(not torch.equal(*pair) for pair in zip(*found, strict=True)), "one way only"


def test_compiled_blocks_answer_the_same_and_are_gone_afterwards(family: ModelFamily) -> None:
    """By the compiler's front half, which needs no C++: the adapters are seen through."""
    random_numbers(attach(family, SETTINGS))
    before = answers(family)
    compile_blocks(family, backend="eager")
    block = family.denoiser.mid_block.attentions[0].transformer_blocks[0]
    assert block._compiled_call_impl is not None
    torch.testing.assert_close(answers(family), before)
    detach(family)
    assert block._compiled_call_impl is None


def test_other_programs_are_told_the_kind() -> None:
    facts = TrainingFacts("sd1", "epsilon", 512, 1, 1)
    said = {kind: training_metadata(asked(kind), facts) for kind in TRAINABLE_TYPES}
    arguments = {kind: json.loads(its["ss_network_args"]) for kind, its in said.items()}
    modules = {kind: its["ss_network_module"] for kind, its in said.items()}
    assert {kind for kind in modules if modules[kind] == "lycoris.kohya"} == {
        "dora", "loha", "lokr", "oft",
    }  # fmt: skip
    assert arguments["loha"]["algo"] == "loha" and arguments["oft"]["algo"] == "diag-oft"
    assert arguments["dora"]["dora_wd"] == "True" and "algo" not in arguments["pissa"]
    by_output = json.loads(training_metadata(asked(BY_OUTPUT), facts)["ss_network_args"])
    axes = (arguments["dora"]["wd_on_output"], by_output["wd_on_output"])
    assert axes == ("False", "True") and "wd_on_output" not in arguments["lora"]
    assert said["pissa"]["ss_network_dim"] == "8" and said["lora"]["ss_network_dim"] == "4"
    assert (arguments["lora"]["conv_dim"], arguments["lora"]["conv_alpha"]) == ("3", "1.5")


def test_report_counts(family: ModelFamily) -> None:
    attach(family, SETTINGS)
    report, file = trainable_report(family), extract_lora(family)
    detach(family)
    halves = [pair.tensors[half] for pair in file.layers.values() for half in ("down", "up")]
    assert report.trained == sum(half.numel() for half in halves)
    assert report.layers == len(file.layers)
    assert report.total == sum(
        p.numel() for m in family.components.values() for p in m.parameters()
    )
    assert f"{report.trained:,} parameters in {report.layers} layers learn" in str(report)
    for way, misread in (("dora", False), (BY_OUTPUT, True)):
        attach(family, asked(way, targets=("feed_forward",)))
        assert ("A1111 and InvokeAI misread" in str(trainable_report(family))) == misread
        detach(family)


def test_what_is_collected_has_the_names_that_kohya_writes(
    family: ModelFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which those are is the vocabulary's: it is asked about all layers of the model, for what some
    of them are called hangs on the others."""
    whole = list(family.module_names())
    renamed = {name: f"{name}_renamed" for name in whole}
    monkeypatch.setattr(
        inject, "original_layer_names",
        lambda base, names: renamed if (base, list(names)) == ("sd1", whole) else {},
    )  # fmt: skip
    attach(family, asked("lora", targets=("feed_forward",)))
    names = list(extract_lora(family).layers)
    detach(family)
    assert names and all(name.endswith("_renamed") for name in names)


def test_the_text_encoder_alone_can_learn(family: ModelFamily) -> None:
    groups = attach(family, asked("lora", train_unet=False))
    try:
        assert {group.part for group in groups} == {"te"}
        assert all(name.startswith("lora_te_") for name in extract_lora(family).layers)
    finally:
        detach(family)


def test_something_must_learn() -> None:
    with pytest.raises(SettingsError, match="nothing learns"):
        asked("lora", train_unet=False, train_text_encoder=False)
