"""LoRAs merged and resized: against peft, float64 and the papers' formulas."""

import math
import re
from collections.abc import Sequence

import peft
import pytest
import torch
from peft.utils import merge_utils
from torch import Tensor, nn

import architectures
from sdlora.architectures import UNET_TARGETS
from sdlora.device import generator_for
from sdlora.errors import LoraFileError
from sdlora.lora.format.file import LoraFile
from sdlora.lora.format.layer import Adapter
from sdlora.lora.format.layer_groups import GROUPS, Losses, group_of
from sdlora.lora.format.name_map import build_name_map
from sdlora.lora.tools.merge import MergeMethod, merge, resize
from sdlora.lora.tools.svd import Spectrum, distance
from sdlora.settings.layer_groups import WIDER

FP32 = torch.float32
LINEAR = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
CONV = "lora_unet_down_blocks_0_resnets_0_conv1"
SHAPES = {LINEAR: (12, 10), CONV: (8, 6, 3, 3)}


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lora(shape: Sequence[int], rank: int, seed: int, alpha: float = 3.0) -> Adapter:
    ones = (1,) * len(shape[2:])
    down = random(rank, *shape[1:], seed=seed)
    return Adapter.lora(down, random(shape[0], rank, *ones, seed=seed + 1), alpha)


def file_of(rank: int, seed: int, **metadata: str) -> LoraFile:
    return LoraFile({name: lora(shape, rank, seed) for name, shape in SHAPES.items()}, metadata)


def delta(adapter: Adapter, shape: Sequence[int]) -> Tensor:
    """up · down · alpha / r in float64, from the tensors themselves."""
    of = {role: tensor.double() for role, tensor in adapter.tensors.items()}
    rank = len(of["down"])
    return (of["up"].flatten(1) @ of["down"].flatten(1) * of["alpha"] / rank).view(*shape)


def relative(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).norm() / other.double().norm())


# Spectrum


@pytest.mark.parametrize(("m", "n", "r"), [(12, 9, 3), (5, 40, 4), (4, 3, 7), (6, 6, 6)])
def test_spectrum_of_factors_is_that_of_their_product(m: int, n: int, r: int) -> None:
    down, up = random(r, n, seed=1), random(m, r, seed=2)
    product = up.double() @ down.double()
    its = Spectrum.of_factors(down, up)
    wanted = torch.linalg.svdvals(product)[: len(its.values)]
    assert torch.allclose(its.values.double(), wanted, rtol=1e-5, atol=1e-5)
    assert relative(its.left * its.values @ its.right, product) < 3e-6
    assert its.rank == min(m, n, r)
    half = its.factors()
    assert relative(half[1] @ half[0], product) < 3e-6
    assert distance(half, (down, up)) / its.norm < 3e-6


def test_rank_that_keeps_a_share_of_the_energy() -> None:
    its = Spectrum.of_matrix(torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.0])))  # 9 + 4 + 1 = 14
    shares = {0.5: 1, 0.64: 1, 0.65: 2, 0.92: 2, 0.93: 3, 1.0: 3}
    assert {keep: its.rank_for(keep) for keep in shares} == shares
    assert Spectrum.of_matrix(torch.zeros(4, 3)).rank_for(0.9) == 1


# Groups of layers


@pytest.mark.parametrize("base", ["sd1", "sd2", "sdxl", "sd3", "flux"])
def test_groups_are_those_of_the_modules_whatever_the_naming(base: str) -> None:
    words = build_name_map(base, architectures.read_keys(base))
    for name, slots in words.items():
        first = slots[0]
        prefix = "lora_unet_" if first.part == "denoiser" else f"lora_{first.part}_"
        assert group_of(name) == group_of(prefix + first.path.replace(".", "_")), name
    found = {group_of(name) for name in words}
    unet = {"conv"} if base in ("sd1", "sd2", "sdxl") else set()
    assert found == {"attention", "feed_forward", "text_encoder", "other", *unet}


def test_groups_agree_with_what_training_calls_so() -> None:
    for path in architectures.read_keys("sdxl")["denoiser"]:
        group = group_of("lora_unet_" + path.replace(".", "_"))
        trained = [
            name for name, pattern in UNET_TARGETS.items() if re.search(rf"\b({pattern})$", path)
        ]
        if trained:
            (narrow,) = trained
            assert group == WIDER.get(narrow, narrow), path
    assert list(GROUPS)[-1] == "other"


def test_losses_add_up_by_group() -> None:
    losses = Losses()
    losses.add(LINEAR, 3.0, 0.3)
    losses.add(LINEAR, 4.0, 0.4)  # its bias
    losses.add(CONV, 12.0, 0.0)
    assert losses.by_group() == pytest.approx({"attention": 0.5 / 5, "conv": 0.0, "all": 0.5 / 13})


# Merging, against peft


class Small(nn.Module):
    """Layers by the names of SHAPES."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(10, 12, bias=False)
        self.conv = nn.Conv2d(6, 8, 3, bias=False)


PATHS = {LINEAR: "linear", CONV: "conv"}


def in_peft(files: Sequence[LoraFile], rank: int) -> peft.LoraModel:
    """The files as peft's adapters a, b ... on a model with these layers."""
    config = peft.LoraConfig(r=rank, lora_alpha=3.0, target_modules=list(PATHS.values()))
    model = peft.LoraModel(Small(), config, "a")
    for letter in "bcd"[: len(files) - 1]:
        model.peft_config[letter] = config
        model.inject_adapter(model.model, letter)
    for letter, file in zip("abcd", files, strict=False):
        for name, path in PATHS.items():
            layer = model.model.get_submodule(path)
            layer.lora_A[letter].weight.data = file.layers[name].tensors["down"].clone()
            layer.lora_B[letter].weight.data = file.layers[name].tensors["up"].clone()
    return model


@pytest.mark.parametrize(
    ("method", "theirs", "options"),
    [
        ("concat", "cat", {}),
        ("linear", "svd", {"svd_rank": 3}),
        ("ties", "ties_svd", {"svd_rank": 3, "density": 0.4}),
        ("ties", "ties_svd", {"svd_rank": 5, "density": 1.0}),
    ],
)
@pytest.mark.filterwarnings("ignore:The density 1.0 is greater:UserWarning:peft")
def test_merge_means_what_peft_means(method: str, theirs: str, options: dict) -> None:
    files = [file_of(2, 10), file_of(2, 20), file_of(2, 30)]
    weights = [1.0, 0.5, -0.75]
    model = in_peft(files, 2)
    model.add_weighted_adapter(["a", "b", "c"], weights, "m", theirs, **options)
    rank, density = options.get("svd_rank"), options.get("density", 0.5)
    recipe = MergeMethod(method, rank=rank, density=density, dtype=FP32)  # type: ignore[arg-type]
    ours, _ = merge(files, weights, recipe)
    for name, path in PATHS.items():
        wanted = model.model.get_submodule(path).get_delta_weight("m")
        assert relative(delta(ours.layers[name], SHAPES[name]), wanted) < 1e-5
        assert ours.layers[name].rank == (rank or 6)


@pytest.mark.parametrize("method", ["dare", "dare_ties"])
def test_dare_is_the_same_draw_as_in_peft(method: str) -> None:
    files, weights = [file_of(3, 10), file_of(3, 20)], torch.tensor([0.8, 0.6])
    recipe = MergeMethod(method, rank=8, density=0.7, seed=5, dtype=FP32)  # type: ignore[arg-type]
    ours, _ = merge(files, weights.tolist(), recipe)
    combine = merge_utils.dare_linear if method == "dare" else merge_utils.dare_ties
    for name, shape in SHAPES.items():
        with torch.random.fork_rng():
            torch.manual_seed(generator_for(5, "dare", name, "weight").initial_seed())
            deltas = [delta(file.layers[name], shape).float() for file in files]
            wanted = combine(deltas, weights, 0.7).flatten(1)
        left, values, right = torch.linalg.svd(wanted.double(), full_matrices=False)
        best = (left[:, :8] * values[:8]) @ right[:8]
        assert relative(delta(ours.layers[name], shape).flatten(1), best) < 1e-5
    again, _ = merge(files, weights.tolist(), recipe)
    assert torch.equal(ours.layers[CONV].tensors["up"], again.layers[CONV].tensors["up"])


def test_linear_is_the_sum_of_changes_and_not_of_factors() -> None:
    one, other = file_of(2, 10), file_of(4, 20)
    ours, losses = merge([one, other], [1.0, 0.5], MergeMethod("linear", rank=6, dtype=FP32))
    for name, shape in SHAPES.items():
        wanted = delta(one.layers[name], shape) + 0.5 * delta(other.layers[name], shape)
        assert relative(delta(ours.layers[name], shape), wanted) < 1e-5
    assert losses.by_group()["all"] < 1e-5
    cut, losses = merge([one, other], [1.0, 0.5], MergeMethod("linear", dtype=FP32))
    assert cut.layers[CONV].rank == 4  # the larger of the two
    assert losses.by_group()["all"] > 0.01


def test_a_layer_that_only_one_file_has_is_weighted_all_the_same() -> None:
    one, other = file_of(2, 10), file_of(2, 20)
    del other.layers[CONV]
    ours, _ = merge([one, other], [0.5, 2.0], MergeMethod("concat", dtype=FP32))
    wanted = 0.5 * delta(one.layers[CONV], SHAPES[CONV])
    assert relative(delta(ours.layers[CONV], SHAPES[CONV]), wanted) < 1e-5
    assert ours.layers[CONV].rank == 2


def test_ranks_beyond_what_a_layer_holds_lose_nothing() -> None:
    files = [file_of(7, seed) for seed in (10, 20, 30)]  # 21 in all, of 10 and 8 possible
    ours, losses = merge(files, [1.0, 1.0, 1.0], MergeMethod("concat", dtype=FP32))
    assert [ours.layers[name].rank for name in (LINEAR, CONV)] == [10, 8]
    assert losses.by_group()["all"] < 1e-5


def test_files_for_different_models_do_not_merge() -> None:
    other = LoraFile({LINEAR: lora((12, 11), 2, 5)})
    with pytest.raises(LoraFileError, match=r"\(12, 10\) and \(12, 11\)"):
        merge([file_of(2, 1), other], [1.0, 1.0], MergeMethod())


def test_norms_and_biases_are_added_as_they_are() -> None:
    norm = "lora_unet_down_blocks_0_resnets_0_norm1"
    files = [
        LoraFile(
            {
                norm: Adapter(
                    "norm", {"w_norm": random(8, seed=s), "b_norm": random(8, seed=s + 1)}
                ),
                CONV: Adapter(
                    "full", {"diff": random(8, 6, 3, 3, seed=s), "diff_b": random(8, seed=s)}
                ),
                LINEAR: Adapter("full", {"diff_b": random(12, seed=s)}),
            }
        )
        for s in (1, 5)
    ]
    ours, losses = merge(files, [1.0, 2.0], MergeMethod("concat", dtype=FP32))
    wanted = {
        role: files[0].layers[norm].tensors[role] + 2 * files[1].layers[norm].tensors[role]
        for role in ("w_norm", "b_norm")
    }
    assert all(torch.allclose(ours.layers[norm].tensors[r], wanted[r]) for r in wanted)
    assert ours.layers[norm].kind == "norm"
    both = [file.layers[CONV].tensors for file in files]
    assert torch.allclose(
        ours.layers[CONV].tensors["diff_b"], both[0]["diff_b"] + 2 * both[1]["diff_b"]
    )
    sum_ = (both[0]["diff"] + 2 * both[1]["diff"]).double()
    assert relative(delta(ours.layers[CONV], SHAPES[CONV]), sum_) < 1e-5
    assert set(ours.layers[LINEAR].tensors) == {"diff_b"}
    assert losses.by_group()["all"] < 1e-5


# Resizing


@pytest.mark.parametrize("rank", [1, 3])
def test_resize_loses_what_eckart_and_young_say(rank: int) -> None:
    file = file_of(5, 40)
    ours, losses = resize(file, MergeMethod(rank=rank, dtype=FP32))
    lost = kept = 0.0
    for name, shape in SHAPES.items():
        values = torch.linalg.svdvals(delta(file.layers[name], shape).flatten(1))
        lost += float(values[rank:].square().sum())
        kept += float(values.square().sum())
        assert ours.layers[name].rank == rank
        miss = delta(ours.layers[name], shape) - delta(file.layers[name], shape)
        assert float(miss.norm()) == pytest.approx(float(values[rank:].norm()), rel=1e-4)
    assert losses.by_group()["all"] == pytest.approx(math.sqrt(lost / kept), rel=1e-4)


def test_resize_to_an_energy_takes_the_smallest_rank() -> None:
    file = file_of(5, 40)
    ours, _ = resize(file, MergeMethod(keep=0.8, dtype=FP32))
    for name, shape in SHAPES.items():
        squares = torch.linalg.svdvals(delta(file.layers[name], shape).flatten(1)).square()
        share = squares.cumsum(0) / squares.sum()
        rank = ours.layers[name].rank
        assert share[rank - 1] >= 0.8 > (share[rank - 2] if rank > 1 else 0)


def test_what_half_numbers_lose_is_counted() -> None:
    file = file_of(3, 40)
    halves, losses = resize(file, MergeMethod(rank=3, dtype=torch.bfloat16))
    assert halves.layers[CONV].tensors["down"].dtype == torch.bfloat16
    error = relative(
        delta(halves.layers[CONV], SHAPES[CONV]), delta(file.layers[CONV], SHAPES[CONV])
    )
    assert losses.by_group()["conv"] == pytest.approx(error, rel=1e-2)
    assert 1e-4 < error < 1e-2


KINDS = {
    "LoHa": {
        "hada_w1_a": random(12, 2, seed=1), "hada_w1_b": random(2, 10, seed=2),
        "hada_w2_a": random(12, 2, seed=3), "hada_w2_b": random(2, 10, seed=4),
    },
    "LoKr": {"lokr_w1": random(3, 2, seed=5), "lokr_w2": random(4, 5, seed=6)},
    "full": {"diff": random(12, 10, seed=7)},
    "DoRA": {
        "down": random(2, 10, seed=8), "up": random(12, 2, seed=9),
        "dora_scale": random(12, 1, seed=10).abs(),
    },
    "GLoRA": {
        "a1": random(10, 2, seed=11), "a2": random(2, 10, seed=12),
        "b1": random(12, 2, seed=13), "b2": random(2, 10, seed=14),
    },
    "OFT": {"oft_blocks": 0.1 * random(3, 4, 4, seed=15)},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_any_kind_becomes_a_lora(kind: str) -> None:
    weight = random(12, 10, seed=50)
    file = LoraFile({LINEAR: Adapter(kind, KINDS[kind])})
    ours, losses = resize(file, MergeMethod(keep=1.0, dtype=FP32), lambda name: weight)
    assert ours.layers[LINEAR].kind == "LoRA"
    wanted = file.layers[LINEAR].delta(weight)
    assert relative(delta(ours.layers[LINEAR], (12, 10)), wanted) < 1e-5
    assert losses.by_group()["all"] < 1e-5


def test_kinds_that_build_on_the_base_ask_for_it() -> None:
    for kind in ("DoRA", "GLoRA", "OFT"):
        with pytest.raises(LoraFileError, match="--model"):
            resize(LoraFile({LINEAR: Adapter(kind, KINDS[kind])}), MergeMethod(rank=2))
    # so does a convolution whose window a LoKr leaves open
    flat = Adapter("LoKr", {"lokr_w1": random(2, 2, seed=1), "lokr_w2": random(4, 27, seed=2)})
    with pytest.raises(LoraFileError, match="--model"):
        resize(LoraFile({CONV: flat}), MergeMethod(rank=2))
    conv = random(8, 6, 3, 3, seed=3)
    ours, _ = resize(LoraFile({CONV: flat}), MergeMethod(rank=8, dtype=FP32), lambda name: conv)
    assert ours.layers[CONV].shape == (8, 6, 3, 3)
    assert relative(delta(ours.layers[CONV], conv.shape), flat.delta(conv)) < 1e-5
