"""Blending: the sum is right, nothing is left of it, and what does not fit is refused by name."""

import hashlib
import random
import sys
from collections.abc import Callable
from types import FrameType

import pytest
import torch

from mixed_loras import FILES, mixed_lora, mixed_loras
from sdlora.adapters import Blend, match_layers, merged_weights
from sdlora.adapters.matching import ParameterPath
from sdlora.errors import LoraFileError
from sdlora.lora.format.file import LoraFile
from sdlora.lora.format.layer import Adapter
from sdlora.models.base import ModelFamily
from sdlora.models.registry import open_family
from sdlora.workspace import STARTER_MODEL
from tiny import CPU, open_tiny, prompt_embeds, tiny_lora, weights_hash

UNET = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
TEXT = "lora_te_text_model_encoder_layers_0_mlp_fc1"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(scope="module")
def family() -> ModelFamily:
    return open_tiny("sd1")


@pytest.fixture(scope="module")
def loras(family: ModelFamily) -> list[LoraFile]:
    return [
        tiny_lora(family, 1),
        tiny_lora(family, 2, targets=("attention",)),
        tiny_lora(family, 3, targets=("conv",), train_text_encoder=False),
        tiny_lora(family, 4, rank=8, alpha=8),
    ]


def weight(family: ModelFamily, name: str) -> torch.Tensor:
    part, path = family.module_names()[name]
    return family.components[part].get_submodule(path).weight


def parameter(family: ModelFamily, place: ParameterPath) -> torch.Tensor:
    part, path, name = place
    return getattr(family.components[part].get_submodule(path), name)


def product(adapter: Adapter) -> torch.Tensor:
    """alpha / r · up · down in float64."""
    down, up = (adapter.tensors[half].double().flatten(1) for half in ("down", "up"))
    return (up @ down) * (adapter.tensors["alpha"].item() / len(down))


def test_sum_is_that_of_float64(family: ModelFamily, loras: list[LoraFile]) -> None:
    first, second = loras[0], loras[3]
    before = {name: weight(family, name).double() for name in first.layers}
    blend = Blend(family)
    blend.apply([(first, 0.8, 0.3), (second, -0.5, 1.0)])
    for name, was in before.items():
        strengths = (0.3, 1.0) if name.startswith("lora_te") else (0.8, -0.5)
        expected = was.clone()
        for strength, file in zip(strengths, (first, second), strict=True):
            expected += strength * product(file.layers[name]).view_as(expected)
        torch.testing.assert_close(weight(family, name).double(), expected, atol=1e-6, rtol=1e-6)
    blend.clear()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("at_once", [100, 2**19])
def test_sum_of_mixed_kinds_is_cast_once(
    at_once: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A parameter is what float64 makes of all deltas together, to the last bit of its format;
    computed a few rows at a time, or with all that have its shape."""
    monkeypatch.setattr(merged_weights, "VALUES_AT_ONCE", at_once)
    family = open_tiny("sd1", dtype)
    files, blend = mixed_loras(family), Blend(family)
    every = {place for file in files for place in blend.match(file).places}
    assert {place[2] for place in every} == {"weight", "bias"}
    before = {p: parameter(family, p).clone() for p in every}
    blend.apply([(file, 0.6, 0.6) for file in files])
    for place, was in before.items():
        its = [places[place] for f in files if place in (places := blend.match(f).places)]
        total = was.double() + sum(0.6 * one.delta(was, place[2]).double() for one in its)
        now = parameter(family, place)
        assert not torch.equal(now, was)
        step = torch.finfo(dtype).eps / 2 if dtype != torch.float32 else 2e-6
        torch.testing.assert_close(now.double(), total, rtol=1.01 * step, atol=1e-6)
    blend.clear()
    assert all(torch.equal(was, parameter(family, p)) for p, was in before.items())


def switches(
    family: ModelFamily, files: list[LoraFile], count: int, look: Callable[[], str]
) -> None:
    """Random blends; `look` gives the same hash after every return to none and at the end."""
    pristine, blend, rng = look(), Blend(family), random.Random(0)
    returns = 0
    for _ in range(count):
        chosen = rng.sample(files, rng.choice([0, 1, 1, 2, 3]))
        blend.apply([(file, rng.uniform(-2, 2), rng.uniform(-2, 2)) for file in chosen])
        if not chosen:
            returns += 1
            assert look() == pristine
    blend.apply([(files[0], 1.0, 1.0)])
    assert look() != pristine
    blend.clear()
    assert look() == pristine and returns > count / 10


def picture(family: ModelFamily) -> bytes:
    """Two steps without any LoRA."""
    texts = prompt_embeds(family, ["a cat"], [""])
    pipeline, rng = family.pipeline, torch.Generator().manual_seed(1)
    with torch.no_grad():
        image = pipeline(**texts, num_inference_steps=2, generator=rng, output_type="pt").images
    return image.float().numpy().tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_thousand_switches_leave_no_trace(dtype: torch.dtype) -> None:
    family = open_tiny("sd1", dtype)
    before = picture(family)
    switches(family, mixed_loras(family), 1000, lambda: weights_hash(family))
    assert picture(family) == before


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_thousand_switches_on_the_starter_model(dtype: torch.dtype) -> None:
    family = open_family(str(STARTER_MODEL), dtype, CPU)
    files = mixed_loras(family)
    places = sorted({place for file in files for place in match_layers(file, family).places})

    def touched() -> str:
        values = (parameter(family, p) for p in places)
        joined = torch.cat([value.detach().flatten().view(torch.uint8) for value in values])
        return hashlib.sha256(joined.numpy().tobytes()).hexdigest()

    pristine, before = weights_hash(family), picture(family)
    switches(family, files, 1000, touched)
    assert weights_hash(family) == pristine and picture(family) == before


def test_the_way_to_a_blend_does_not_matter(family: ModelFamily, loras: list[LoraFile]) -> None:
    """Nor do the layers that are computed with one: they hang on the blend, not on what changed."""
    blend = Blend(family)
    wanted = [(loras[0], 0.7, 0.7), (loras[1], 0.5, 0.0)]
    blend.apply(wanted)
    straight = weights_hash(family)
    blend.apply([(loras[3], 1.0, 1.0), (loras[0], 0.7, 0.7)])
    blend.apply([(loras[2], 2.0, 2.0)])
    blend.apply(wanted)
    assert weights_hash(family) == straight
    blend.clear()


def test_weight_zero_is_no_lora(
    family: ModelFamily, loras: list[LoraFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    pristine, blend = weights_hash(family), Blend(family)
    monkeypatch.setattr(merged_weights, "merge", None)  # not called
    fits = blend.apply([(loras[0], 0.0, 0.0)])
    assert fits[0].layers == len(loras[0].layers)
    assert weights_hash(family) == pristine


def test_only_what_changed_is_computed(
    family: ModelFamily, loras: list[LoraFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[torch.Tensor]] = []
    merge = merged_weights.merge
    monkeypatch.setattr(merged_weights, "merge", lambda *its: calls.append(its[0]) or merge(*its))
    blend = Blend(family)
    blend.apply([(loras[0], 1.0, 1.0)])
    # and layers of one shape together: on a GPU each call takes as long as its start
    assert sum(map(len, calls)) == len(loras[0].layers) > 2 * len(calls)
    calls.clear()
    blend.apply([(loras[0], 1.0, 1.0)])
    assert not calls
    blend.apply([(loras[0], 1.0, 0.5)])
    pointers = {target.data_ptr() for targets in calls for target in targets}
    changed = {n for n in loras[0].layers if weight(family, n).data_ptr() in pointers}
    assert changed == {name for name in loras[0].layers if name.startswith("lora_te")}
    blend.clear()


def test_pristine_weights_are_kept_of_touched_layers_only(
    family: ModelFamily, loras: list[LoraFile]
) -> None:
    blend = Blend(family)
    blend.apply([(loras[2], 1.0, 1.0)])
    assert len(blend._merged._pristine) == len(loras[2].layers) < len(family.module_names()) / 3
    blend.clear()
    assert not blend._merged._pristine


def test_same_lora_twice_adds_up(family: ModelFamily, loras: list[LoraFile]) -> None:
    blend = Blend(family)
    blend.apply([(loras[0], 0.5, 0.5), (loras[0], 0.3, 0.3)])
    twice = weight(family, UNET).clone()
    blend.apply([(loras[0], 0.8, 0.8)])
    torch.testing.assert_close(weight(family, UNET), twice)
    blend.clear()


@pytest.mark.parametrize("failure", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("after", [0, 1, 10])
def test_interrupted_in_the_middle_the_model_is_pristine(
    after: int, failure: type[BaseException], family: ModelFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a weight: what is written stays, then the failure comes."""
    loras = [tiny_lora(family, 1), mixed_lora(family, "DoRA")]
    pristine, blend = weights_hash(family), Blend(family)
    blend.apply([(loras[1], 1.0, 1.0)])
    merge, calls = merged_weights.merge, iter(range(after))

    def failing(targets: list[torch.Tensor], *its: object) -> torch.Tensor:
        if next(calls, None) is None:
            targets[0][:1] = 7.0
            raise failure
        return merge(targets, *its)

    monkeypatch.setattr(merged_weights, "merge", failing)
    with pytest.raises(failure):
        blend.apply([(loras[0], 1.0, 1.0)])
    assert weights_hash(family) == pristine
    monkeypatch.undo()
    blend.apply([(loras[0], 1.0, 1.0)])
    assert weights_hash(family) != pristine
    blend.clear()
    assert weights_hash(family) == pristine


def test_interrupted_at_any_line_it_is_nothing_or_all(family: ModelFamily) -> None:
    files = [mixed_lora(family, name) for name in ("LoCon", "DoRA", "full and norm")]
    wanted = [(file, 0.7, 0.7) for file in files]
    pristine, blend = weights_hash(family), Blend(family)

    def interrupted_at(last: int) -> int:
        """Lines of the package that ran before the interruption; fewer than `last`: none came."""
        lines = 0

        def trace(frame: FrameType, event: str, _: object) -> Callable[..., object] | None:
            nonlocal lines
            if "adapters" not in frame.f_code.co_filename:
                return None
            lines += event == "line"
            if lines == last:
                sys.settrace(None)
                raise KeyboardInterrupt
            return trace

        sys.settrace(trace)
        try:
            blend.apply(wanted)
        finally:
            sys.settrace(None)
        return lines

    blend.apply(wanted)
    blended = weights_hash(family)
    blend.clear()
    total = interrupted_at(10**9)
    for last in random.Random(0).sample(range(1, total), 50):
        blend.clear()
        with pytest.raises(KeyboardInterrupt):
            interrupted_at(last)
        assert weights_hash(family) in (pristine, blended), last
    blend.clear()
    assert weights_hash(family) == pristine != blended


@pytest.mark.parametrize(("dtype", "strength"), [(torch.float16, 1e7), (torch.float32, 3e38)])
def test_overflow_is_refused(dtype: torch.dtype, strength: float) -> None:
    family = open_tiny("sd1", dtype)
    pristine = weights_hash(family)
    file = LoraFile({UNET: Adapter.lora(torch.full((1, 32), 3.0), torch.ones(32, 1), 1.0)})
    with pytest.raises(LoraFileError, match="too high"):
        Blend(family).apply([(file, strength, 1.0)])
    assert weights_hash(family) == pristine


def test_large_is_not_overflow() -> None:
    """The norm of a weight is beyond float16, each of its values is not."""
    family = open_tiny("sd1", torch.float16)
    file = LoraFile({UNET: Adapter.lora(torch.ones(1, 32), torch.ones(32, 1), 1.0)})
    blend = Blend(family)
    blend.apply([(file, 60000.0, 1.0)])
    assert weight(family, UNET).mean() > 59000
    blend.clear()


def test_one_by_one_convolution_fits_a_linear_layer(family: ModelFamily) -> None:
    down, up = torch.randn(2, 32), torch.randn(32, 2)
    blend = Blend(family)
    mixed = []
    for ones in ((), (1, 1)):
        pair = Adapter.lora(down.view(2, 32, *ones), up.view(32, 2, *ones), 2.0)
        blend.apply([(LoraFile({UNET: pair}), 1.0, 1.0)])
        mixed.append(weight(family, UNET).clone())
    assert torch.equal(*mixed)
    blend.clear()


def test_stability_names_and_spellings_of_te_find_the_same_layers(
    family: ModelFamily, loras: list[LoraFile]
) -> None:
    one, text = loras[0].layers[UNET], loras[0].layers[TEXT]
    stability = UNET.replace("mid_block_attentions_0", "middle_block_1")
    found = match_layers(LoraFile({stability: one, TEXT.replace("_te_", "_te1_"): text}), family)
    assert found.places == match_layers(LoraFile({UNET: one, TEXT: text}), family).places


def test_matrices_are_kept_on_the_device_and_numbers_are_not(
    family: ModelFamily, loras: list[LoraFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(family, "device", torch.device("meta"))
    for adapter in match_layers(loras[0], family).places.values():
        assert adapter.tensors["down"].is_meta and adapter.tensors["up"].is_meta
        assert adapter.tensors["alpha"].device == CPU


def test_few_strays_are_told_and_many_refused(family: ModelFamily, loras: list[LoraFile]) -> None:
    known = loras[0].layers

    def with_strays(count: int, of: dict[str, Adapter] = known) -> LoraFile:
        return LoraFile({**of, **{f"lora_unet_astray_{i}": known[UNET] for i in range(count)}})

    found = match_layers(with_strays(12), family)
    assert found.layers == len(known) and len(found.unmatched) == 12
    assert found.unmatched[0] == "lora_unet_astray_0"
    with pytest.raises(LoraFileError, match="12 of its .* layers .*lora_unet_astray_0"):
        match_layers(with_strays(12), family, strict=True)
    for file in (with_strays(13), with_strays(2, {UNET: known[UNET]}), with_strays(1, {})):
        with pytest.raises(LoraFileError, match="do not fit the open model, Stable Diffusion 1"):
            match_layers(file, family)


def test_two_names_of_one_layer_are_refused(family: ModelFamily, loras: list[LoraFile]) -> None:
    one = loras[0].layers[UNET]
    twice = {UNET: one, UNET.replace("mid_block_attentions_0", "middle_block_1"): one}
    with pytest.raises(LoraFileError, match="occurs twice"):
        match_layers(LoraFile(twice), family)


def test_a_bias_that_the_layer_lacks_is_a_misfit(family: ModelFamily) -> None:
    file = LoraFile({UNET: Adapter("full", {"diff_b": torch.ones(32)})})
    with pytest.raises(LoraFileError, match="do not fit"):
        match_layers(file, family)


@pytest.mark.parametrize(
    ("width", "title"),
    [(1024, "Stable Diffusion 2"), (2048, "Stable Diffusion XL"), (128, "the starter model")],
)
def test_wrong_base_names_both(width: int, title: str, family: ModelFamily) -> None:
    name = UNET.replace("attn1_to_q", "attn2_to_k")
    file = LoraFile({name: Adapter.lora(torch.ones(2, width), torch.ones(32, 2), 2.0)})
    pristine = weights_hash(family)
    with pytest.raises(LoraFileError, match=f"for {title}; .* is Stable Diffusion 1$"):
        Blend(family).apply([(file, 1.0, 1.0)])
    assert weights_hash(family) == pristine


def test_same_base_of_another_size_is_told_too(loras: list[LoraFile]) -> None:
    with pytest.raises(LoraFileError, match="do not fit the open model, Stable Diffusion 2"):
        match_layers(loras[0], open_tiny("sd2"))


def test_every_row_of_mixed_files_fits(family: ModelFamily) -> None:
    for name in FILES:
        assert match_layers(mixed_lora(family, name), family, strict=True).layers >= 2, name
