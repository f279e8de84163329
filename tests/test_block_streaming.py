"""Streamed blocks compute the same bits as the resident model, forward and backward."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapter_gradients import adapted, gradients, kept, random, step
from mixed_loras import mixed_loras
from sdlora.adapters import Blend, compile_blocks
from sdlora.errors import DeviceError, ModelError
from sdlora.models.base import ModelFamily
from sdlora.models.block_streaming import BlockStreaming, repeated_blocks
from sdlora.models.options import ModelOptions
from sdlora.models.registry import open_family
from sdlora.settings.adapter_choices import ADAPTER_CHOICES
from tiny import CPU, KINDS, LATENT, TRANSFORMERS, tiny, tiny_lora, weights_hash


def opened(
    kind: str, stream: float = 1.0, precision: Any = "full", dtype: torch.dtype = torch.float32
) -> ModelFamily:
    options = ModelOptions(base_precision=precision, stream_blocks=stream)
    return open_family(str(tiny(kind)), dtype, CPU, options)


def prediction(family: ModelFamily, pictures: int = 2) -> Tensor:
    x, t = random(pictures, family.latent_channels, LATENT, LATENT), torch.tensor([300])
    with torch.no_grad():
        text = family.encode_prompts(["a cat", "a dog"][:pictures])
        sizes = torch.tensor([[64, 64, 0, 0, 64, 64]])
        return family.predict(x, t, family.condition_on_size(text, sizes))


@contextmanager
def copies(family: ModelFamily) -> Iterator[list[int]]:
    """Numbers of the blocks that are copied, in their order."""
    streaming, found = family.streaming, list[int]()
    assert streaming
    fill = streaming._fill

    def counted(number: int) -> Any:
        found.append(number)
        return fill(number)

    streaming.__dict__["_fill"] = counted
    yield found
    del streaming.__dict__["_fill"]


@pytest.mark.parametrize("kind", [*KINDS, *TRANSFORMERS])
@pytest.mark.parametrize("stream", [1.0, 0.4])
def test_predictions_are_those_of_the_resident_model(kind: str, stream: float) -> None:
    resident, family = opened(kind, 0), opened(kind, stream)
    was, layers = weights_hash(resident), [*family.denoiser.modules()]
    assert family.streaming and any(family.streaming.holds(layer) for layer in layers)
    assert weights_hash(family) == was and resident.streaming is None
    for _ in range(2):
        assert torch.equal(prediction(family), prediction(resident))
    assert weights_hash(family) == was, "parameters have their values wherever they lie"


@pytest.mark.parametrize(
    ("kind", "stream", "precision"),
    [("sdxl", 1, "full"), ("sdxl", 0.4, "int8"), ("sdxl", 1, "fp8"), ("sd1", 1, "int8")],
)
def test_gradients_are_those_of_the_resident_model(
    kind: str, stream: float, precision: Any
) -> None:
    """Step for step, and with another pass without gradients in between."""
    targets = ("attention", "feed_forward", "conv")
    resident, family = opened(kind, 0, precision), opened(kind, stream, precision)
    both = [(it, adapted(it, targets=targets, conv_rank=2)) for it in (resident, family)]
    for _ in range(2):
        ours, expected = (step(*pair) for pair in both)
        assert torch.equal(ours, expected) and ours.abs().max() > 0
        assert torch.equal(prediction(family), prediction(resident))


@pytest.mark.parametrize("adapter", list(ADAPTER_CHOICES))
def test_every_adapter_type_learns_the_same(adapter: str) -> None:
    ours, expected = (gradients(opened("sdxl", s), adapter=adapter, dropout=0.0) for s in (1, 0))
    assert torch.equal(ours, expected)


def test_gradients_in_bf16_are_near_those_in_fp32() -> None:
    expected = gradients(opened("sdxl", 0))
    for precision, least in (("full", 0.999), ("int8", 0.998), ("fp8", 0.99)):
        ours = gradients(opened("sdxl", 1, precision, torch.bfloat16))
        assert torch.cosine_similarity(ours, expected, 0) > least


def test_a_block_computes_in_a_buffer_and_rests_in_main_memory() -> None:
    family = opened("sdxl")
    streaming = family.streaming
    assert streaming
    pointers = {buffer.memory.untyped_storage().data_ptr() for buffer in streaming._buffers}
    masters = {block.master.data_ptr() for block in streaming._blocks}
    assert len(pointers) == 2 and len(masters) == len(streaming._blocks) > 2
    seen: list[bool] = []

    def look(layer: Any, *_: Any) -> None:
        seen.append(layer.weight.untyped_storage().data_ptr() in pointers)

    layers = [m for m in family.denoiser.modules() if streaming.holds(m)]
    hooks = [layer.register_forward_pre_hook(look) for layer in layers]
    prediction(family)
    assert all(seen) and len(seen) == len(layers)
    for hook in hooks:
        hook.remove()
    lying = [layer.weight.untyped_storage().data_ptr() for layer in layers]  # type: ignore[union-attr]
    assert len(set(lying) & pointers) <= 2 and set(lying) <= pointers | masters
    biases = [m.bias for m in layers if isinstance(m.bias, Tensor)]
    assert biases and not {b.untyped_storage().data_ptr() for b in biases} & (pointers | masters)


def test_the_next_block_is_copied_while_one_computes() -> None:
    """From the second pass on: each once per pass, in the order of use, before it is asked for."""
    family = opened("sdxl")
    streaming, parameters = family.streaming, adapted(family)
    assert streaming
    with copies(family) as first:
        step(family, parameters)
    count = len(streaming._blocks)
    order = first[:count]
    assert sorted(order) == list(range(count)), "each once, forward"
    with copies(family) as again:
        step(family, parameters)
    assert len(again) <= 2 * count and again != first
    waited: list[int] = []
    fetch = streaming._fetch

    def watched(number: int) -> None:
        waited.extend([number] * all(b.number != number for b in streaming._buffers))
        fetch(number)

    streaming.__dict__["_fetch"] = watched
    step(family, parameters)
    assert not waited, "none was waited for"


def test_nothing_of_a_block_is_kept_for_backward() -> None:
    """Neither its weights nor its activations: only what goes into it."""
    sizes = {}
    for stream in (0, 1):
        family = opened("sdxl", stream)
        adapted(family)
        x, t = random(1, 4, LATENT, LATENT).requires_grad_(), torch.tensor([500])
        with torch.no_grad():
            text = family.encode_prompts(["a cat"])
        text = family.condition_on_size(text, torch.tensor([[64, 64, 0, 0, 64, 64]]))
        with kept(family.denoiser) as tensors:
            family.predict(x, t, text)
        sizes[stream] = sum(tensor.nbytes for tensor in tensors)
        if family.streaming:
            memories = {b.memory.untyped_storage().data_ptr() for b in family.streaming._buffers}
            assert not memories & {t.untyped_storage().data_ptr() for t in tensors}
    assert sizes[1] < sizes[0] / 4


@pytest.mark.parametrize("precision", ["full", "int8"])
def test_blends_are_those_of_hooks_on_the_resident_model(precision: Any) -> None:
    """To the bit; but for what is merged outside the blocks, where weights are constant."""
    resident, family = opened("sdxl", 0, precision), opened("sdxl", 1, precision)
    in_blocks = {"targets": ("attention", "feed_forward"), "train_text_encoder": False}
    files = [tiny_lora(resident, seed, **in_blocks) for seed in (1, 2)]
    before, was = prediction(family), weights_hash(family)
    blends = Blend(resident), Blend(family)
    blends[0].set_row_weights([(f, [w], [0.0]) for f, w in zip(files, (0.7, -0.4), strict=True)])
    blends[1].apply([(f, w, 0.0) for f, w in zip(files, (0.7, -0.4), strict=True)])
    streamed = [m for m in family.denoiser.modules() if family.streaming.holds(m)]  # type: ignore[union-attr]
    assert any(m._forward_hooks for m in streamed)
    hooked = prediction(family)
    torch.testing.assert_close(hooked, prediction(resident), rtol=1e-5, atol=1e-5)
    assert (hooked - before).abs().max() > 1e-2
    for blend in blends:
        blend.clear()
        blend.set_row_weights([(f, [0.3, 0.9], [0.0]) for f in files])
    assert torch.equal(prediction(family), prediction(resident))
    for blend in blends:
        blend.clear()
    assert weights_hash(family) == was and torch.equal(prediction(family), before)


def test_loras_of_every_kind_act_on_streamed_blocks() -> None:
    """Those that build on the weight too; norms and biases are merged, as on the resident model."""
    resident, family = opened("sd1", 0), opened("sd1")
    was, files = weights_hash(family), mixed_loras(resident)
    blends = Blend(resident), Blend(family)
    for blend in blends:
        blend.apply([(f, 0.6, 0.4) for f in files])
    torch.testing.assert_close(prediction(family), prediction(resident), rtol=1e-3, atol=1e-4)
    blends[1].clear()
    assert weights_hash(family) == was


def test_a_share_is_spread_over_the_blocks() -> None:
    family = opened("sdxl", 0.5)
    blocks = repeated_blocks(family.denoiser)
    streaming = family.streaming
    assert streaming
    held = [any(streaming.holds(m) for m in block.modules()) for block in blocks]
    assert sum(held) == (len(blocks) + 1) // 2
    assert not any(a and b for a, b in zip(held, held[1:], strict=False))
    assert family.details["streamed blocks"].startswith(f"{sum(held)} of {len(blocks)}: ")


def test_weights_keep_their_order_in_memory() -> None:
    model, block = nn.Module(), nn.Sequential(nn.Conv2d(8, 16, 3))
    model.block, model.__dict__["_repeated_blocks"] = block, ["Sequential"]
    block.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    weight, x = block[0].weight, random(1, 8, 5, 5)
    was, expected = weight.detach().clone(), block(x)
    BlockStreaming(model, CPU, 1.0)
    assert torch.equal(block(x), expected) and torch.equal(weight, was)
    assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("precision", ["full", "int8"])
def test_streaming_begins_while_a_model_learns(precision: Any) -> None:
    """As when memory runs out: the same gradients as before."""
    family = opened("sdxl", 0, precision)
    parameters = adapted(family, targets=("attention", "feed_forward", "conv"), conv_rank=2)
    family.enable_gradient_checkpointing()
    expected = step(family, parameters)
    for parameter in parameters:
        parameter.grad = None
    family.stream_blocks(1.0)
    family.stream_blocks(1.0)
    for _ in range(2):
        assert torch.equal(step(family, parameters), expected)
        for parameter in parameters:
            parameter.grad = None
    assert all(p.requires_grad for p in parameters) and family.streaming
    memories = [buffer.memory for buffer in family.streaming._buffers]
    masters = [block.master for block in family.streaming._blocks]
    own = {t.untyped_storage().data_ptr() for t in (*memories, *masters)}
    assert not own & {p.untyped_storage().data_ptr() for p in parameters}


def test_a_model_without_repeated_blocks_is_refused() -> None:
    with pytest.raises(ModelError, match="Sequential has no repeated blocks"):
        BlockStreaming(nn.Sequential(nn.Linear(2, 2)), CPU, 1.0)


def test_compiled_blocks_are_refused() -> None:
    with pytest.raises(DeviceError, match="do not go together"):
        compile_blocks(opened("sd1"), backend="eager")
