"""What frozen weights in few bits cost and save in training: `python -m benchmarks.memory`.

A UNet in the shape of SDXL with random weights, LoRA on its attention and feed-forward layers; the
base as usual, in int8, fp8 and nf4, and with its blocks streamed, each with and without gradient
checkpointing, which streamed blocks always have. Of every form: the cosine of all LoRA gradients to
those on the base in float32, and to those on the base as usual; the bytes of the denoiser, the
bytes that are kept for the backward pass beside them, and the seconds of a step as a ratio to the
base as usual. "int8, dequantised first" is a product with the dequantised weight, as libraries have
it. nf4 is computed by bitsandbytes where it is installed.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from benchmarks.blend import UNETS, open_unet
from benchmarks.report import show
from benchmarks.training import Encoded, seconds
from sdlora.device import DTYPES
from sdlora.models.base import ModelFamily
from sdlora.models.frozen_weights import FrozenLinear, freeze_linears
from sdlora.settings.model import BasePrecision
from sdlora.settings.train import TrainSettings
from sdlora.training.train_state import TrainState

CPU = torch.device("cpu")
BASES: dict[str, BasePrecision] = {
    "full": "full", "int8": "int8", "fp8": "fp8", "nf4": "nf4", "streamed": "full",
    "int8, streamed": "int8", "int8, dequantised first": "int8",
}  # fmt: skip


def unet_family(
    kind: str, base: str, device: torch.device = CPU, dtype: torch.dtype = torch.float32
) -> ModelFamily:
    """A family with a random UNet, the same one every time, held as a row of BASES says before it
    is on the device."""
    torch.manual_seed(0)
    family = open_unet(kind, CPU, torch.float32)
    family.denoiser.to(dtype)
    freeze_linears(family.denoiser, BASES[base])
    if base.endswith("first"):
        for layer in family.denoiser.modules():
            if isinstance(layer, FrozenLinear):
                layer.forward = partial(_dequantised_first, layer)  # type: ignore[method-assign]
    family.pipeline.to(dtype=dtype)
    share = float(base.endswith("streamed"))
    return type(family)(family.name, family.pipeline, device, dtype, share)


def device_bytes(family: ModelFamily) -> int:
    """Return the bytes of a denoiser that are on its device: not those of streamed blocks in main
    memory, but their buffers."""
    modules, streaming = family.denoiser.modules(), family.streaming
    staying = [m for m in modules if not (streaming and streaming.holds(m))]
    tensors = [t for m in staying for t in (*m.parameters(False), *m.buffers(False))]
    biases = [m.bias for m in family.denoiser.modules() if m not in {*staying}]
    return sum(t.nbytes for t in (*tensors, *biases) if t is not None) + (
        streaming.buffer_bytes if streaming else 0
    )


def _dequantised_first(layer: FrozenLinear, x: Tensor) -> Tensor:
    return linear(x, layer.weight, layer.bias)


def train_state(family: ModelFamily, options: argparse.Namespace, **more: Any) -> TrainState:
    """A training on random pictures, whose adapters have learnt something already."""
    settings = TrainSettings(
        data="random", name="random", rank=options.rank, alpha=options.rank, steps=100_000,
        batch_size=options.batch, targets=("attention", "feed_forward"), **more,
    )  # fmt: skip
    data = Encoded(family, options.batch, options.pixels)
    state = TrainState(family, data, settings)  # type: ignore[arg-type]
    rng = torch.Generator().manual_seed(0)
    for parameter in state.parameters:
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=rng).to(parameter.device)
    return state


@contextmanager
def kept_bytes(model: nn.Module) -> Iterator[list[int]]:
    """Count the bytes that autograd keeps for backward beside the model's own, into a list of
    one."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}  # the tensors live until all are counted

    def keep(tensor: Tensor) -> Tensor:
        if (pointer := tensor.untyped_storage().data_ptr()) not in own:
            kept[pointer] = tensor
        return tensor

    total = [0]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield total
    total[0] = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def gradient(state: TrainState) -> tuple[Tensor, int]:
    """Return the gradient of all adapters for one batch, float64, and the bytes kept for it."""
    family, batch = state.family, state.dataset.batch(1).to(state.family.device)
    t = torch.full((len(batch),), 500, device=family.device)
    text = family.condition_on_size(batch.conditioning.to(family.device, family.dtype), batch.sizes)
    with kept_bytes(family.denoiser) as kept, family.autocast():
        loss = family.predict(batch.latents, t, text).float().square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    grads = [p.grad.double().flatten() for p in state.parameters if p.grad is not None]
    state.optimizer.zero_grad()
    return torch.cat(grads), kept[0]


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row per base and checkpointing; steps are timed in turn, round by round."""
    dtype = DTYPES[options.dtype]
    usual_grads, _ = expected, _ = gradient(train_state(unet_family(options.unet, "full"), options))
    rows: list[dict[str, Any]] = []
    states = []
    for checkpointing in (False, True):
        for base in BASES:
            family = unet_family(options.unet, base, CPU, dtype)
            weights = device_bytes(family)
            state = train_state(family, options, gradient_checkpointing=checkpointing)
            grads, kept = gradient(state)
            usual_grads = grads if base == "full" else usual_grads
            rows.append({
                "base": base, "checkpointing": checkpointing,
                "cosine": torch.cosine_similarity(grads, expected, 0).item(),
                "cosine_to_usual": torch.cosine_similarity(grads, usual_grads, 0).item(),
                "denoiser_mib": weights / 2**20, "kept_mib": kept / 2**20,
            })  # fmt: skip
            states.append(state)
    times = [[seconds(s.train_step, options) for s in states] for _ in range(options.rounds)]
    for number, row in enumerate(rows):
        usual = number - number % len(BASES)  # the base as usual, with the same checkpointing
        row["step_ratio"] = statistics.median(r[number] / r[usual] for r in times)
    return rows


def options_of(words: list[str] | None = None) -> argparse.Namespace:
    """Return the command line's options; `words` in place of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--unet", choices=UNETS, default="small")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--pixels", type=int, default=128, help="a side")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="steps a round")
    options = parser.parse_args(words)
    options.device, options.clock = CPU, "processor"
    return options


def main() -> None:
    """Measure and print as JSON."""
    options = options_of()
    asked = {name: str(value) for name, value in vars(options).items()}
    show({"asked": asked, "threads": torch.get_num_threads(), "rows": measure(options)})


if __name__ == "__main__":
    main()
