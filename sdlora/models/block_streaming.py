"""Streaming of a denoiser's blocks: their frozen weights lie in main memory and are copied to the
device one block after the other, the next while the present one computes.

A base model that only adapters learn on does not change: there is one master copy, pinned where the
device is a GPU, and nothing is ever copied back. Two buffers on the device take the blocks in turn.
Which block comes next is learnt from the order of the pass before: forward, backward, and at the
turn between them.

For backward a block's weights are copied once more, in the reverse order. So every block is
computed again there (gradient checkpointing, arXiv:1604.06174) whatever the settings say: what
autograd kept of a weight would be overwritten by another block's. Autograd takes the nodes of one
device in the reverse order of their making, so that all of a block's are through before an earlier
block is computed again, and its buffer is free.

Parameters always have their values: those in main memory, or those of the buffer. Streamed are the
weights of linear layers and convolutions; norms, biases and what is outside the blocks stay on the
device, as adapters do.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sdlora.errors import ModelError
from sdlora.messages import Setting, size_in_words

BUFFERS = 2  # one computes, one is filled
RESIDUAL_BLOCK = "ResnetBlock2D"  # of UNets; models name their other repeated blocks themselves
_ALIGNMENT = 256  # bytes; as allocators of processors and GPUs align what they give


@dataclass(frozen=True)
class _StreamedBlock:
    """Streamed tensors of a block, by owner and name; their master copy (bytes,) in main memory,
    their places in that and their views of it."""

    places: Sequence[tuple[nn.Module, str]]
    offsets: Sequence[int]  # bytes
    master: Tensor
    in_memory: Sequence[Tensor]

    def views(self, memory: Tensor) -> list[Tensor]:
        """Return the tensors as they lie in a copy of the master."""
        return [_view(memory, *pair) for pair in zip(self.offsets, self.in_memory, strict=True)]

    def use(self, views: Sequence[Tensor]) -> None:
        """Compute with these from now on."""
        for (owner, name), view in zip(self.places, views, strict=True):
            getattr(owner, name).data = view


@dataclass
class _Buffer:
    """Memory on the device; the number of the block that it holds, and when that has arrived."""

    memory: Tensor
    number: int | None = None
    copied: Any = None  # torch.cuda.Event


class BlockStreaming:
    """Streamed blocks of a denoiser, frozen, which lies in main memory or on the device."""

    def __init__(self, model: nn.Module, device: torch.device, share: float) -> None:
        self.device = device
        self._copies: Any = None
        if device.type == "cuda":
            self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        every = repeated_blocks(model)
        chosen = _spread(every, share)
        pinned = device.type == "cuda"
        self._blocks = [_moved(block, pinned) for block in chosen]  # which makes room for buffers
        largest = max((len(block.master) for block in self._blocks), default=0)
        self._buffers = [
            _Buffer(torch.empty(largest, dtype=torch.uint8, device=device)) for _ in range(BUFFERS)
        ]
        self._numbers = {
            owner: number for number, b in enumerate(self._blocks) for owner, _ in b.places
        }
        self._recent: tuple[int, int] = (0, 0)  # the present block is the second
        self._following: dict[tuple[int, int], int] = {}  # what came after two blocks last time
        self._of_all = len(every)
        numbers = {block: number for number, block in enumerate(chosen)}
        for block in every:
            block.__dict__["forward"] = self._streamed(block.forward, numbers.get(block))

    def __str__(self) -> str:
        total = sum(block.master.nbytes for block in self._blocks)
        return (
            f"{len(self._blocks)} of {self._of_all}: {size_in_words(total)} in main memory, "
            f"{size_in_words(self.buffer_bytes)} of buffers on the device"
        )

    @property
    def buffer_bytes(self) -> int:
        """Bytes of the buffers on the device."""
        return sum(buffer.memory.nbytes for buffer in self._buffers)

    def holds(self, layer: nn.Module) -> bool:
        """Return True for a layer whose weight is streamed."""
        return layer in self._numbers

    def fetch(self, layer: nn.Module) -> None:
        """Have a layer's weight on the device until other blocks take its place there; do nothing
        for one that is there always."""
        if layer in self._numbers:
            self._fetch(self._numbers[layer])

    @contextmanager
    def left_in_memory(self) -> Iterator[None]:
        """Let the model be moved to the device without its streamed weights."""
        for block in self._blocks:
            block.use([view.new_empty(0) for view in block.in_memory])
        try:
            yield
        finally:
            for block in self._blocks:
                block.use(block.in_memory)

    def _streamed(self, compute: Callable[..., Any], number: int | None) -> Callable[..., Any]:
        """Return a block's `forward` that has its weights copied first, and is computed again for
        backward; of a resident block, without a number, that alone."""

        def fetched(*arguments: Any, **named: Any) -> Any:
            if number is not None:
                self._fetch(number)
            return compute(*arguments, **named)

        def forward(*arguments: Any, **named: Any) -> Any:
            if not torch.is_grad_enabled():
                return fetched(*arguments, **named)
            return checkpoint(fetched, *arguments, use_reentrant=False, **named)

        return forward

    def _fetch(self, number: int) -> None:
        """Let a block compute with its weights on the device, and begin to copy the block that is
        likely to follow."""
        buffer = next((b for b in self._buffers if b.number == number), None)
        buffer = buffer or self._fill(number)
        if buffer.copied is not None:
            torch.cuda.current_stream(self.device).wait_event(buffer.copied)
        self._buffers.sort(key=lambda each: each is buffer)  # the one in use is the last
        block = self._blocks[number]
        block.use(block.views(buffer.memory))
        self._following[self._recent] = number
        self._recent = self._recent[1], number
        following = self._following.get(self._recent)
        if following is not None and all(b.number != following for b in self._buffers):
            self._fill(following)

    def _fill(self, number: int) -> _Buffer:
        """Copy a block into the buffer that was in use before, when the device is through with what
        it holds."""
        buffer, master = self._buffers[0], self._blocks[number].master
        if buffer.number is not None:
            before = self._blocks[buffer.number]
            before.use(before.in_memory)
            buffer.number = None
        part = buffer.memory[: len(master)]
        if self._copies is None:
            part.copy_(master)
        else:
            self._copies.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(self._copies):
                part.copy_(master, non_blocking=True)
                buffer.copied = self._copies.record_event()
        buffer.number = number
        return buffer


@torch.no_grad()
def _moved(block: nn.Module, pinned: bool) -> _StreamedBlock:
    """Move a block's frozen weights, and scales if they are held in few bits, to main memory."""
    places: list[tuple[nn.Module, str]] = [
        (layer, name)
        for layer in block.modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
        for name, tensor in (*layer.named_parameters("", False), *layer.named_buffers("", False))
        if name != "bias" and not tensor.requires_grad
    ]
    originals = [getattr(owner, name).data for owner, name in places]
    sizes = [math.ceil(t.nbytes / _ALIGNMENT) * _ALIGNMENT for t in originals]
    offsets = [0, *itertools.accumulate(sizes)]
    master = _main_memory(offsets.pop(), pinned)
    in_memory = [_view(master, *pair) for pair in zip(offsets, originals, strict=True)]
    for view, original in zip(in_memory, originals, strict=True):
        view.copy_(original)
    moved = _StreamedBlock(places, offsets, master, in_memory)
    moved.use(in_memory)
    return moved


def _view(memory: Tensor, offset: int, like: Tensor) -> Tensor:
    """Return bytes of a memory as a tensor of the same type, shape and order."""
    values = memory[offset : offset + like.nbytes].view(like.dtype)
    dense = like.is_contiguous() or like.is_contiguous(memory_format=torch.channels_last)
    return values.as_strided(like.shape, like.stride()) if dense else values.view(like.shape)


def _main_memory(size: int, pinned: bool) -> Tensor:
    """Return main memory that a GPU reads by itself, if `pinned` and there is as much of it."""
    if pinned:
        try:
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)
        except RuntimeError:  # copies from other memory take longer
            pass
    return torch.empty(size, dtype=torch.uint8)


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the blocks that a denoiser repeats, none of which is in another. ModelError: there are
    none."""
    names: Any = [getattr(model, name, None) for name in ("_repeated_blocks", "_no_split_modules")]
    kinds = {RESIDUAL_BLOCK, *(names[0] or names[1] or ())}
    blocks: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{outer}.") for outer in blocks)
        if type(module).__name__ in kinds and not inside:
            blocks[path] = module
    if not blocks:
        raise ModelError(
            "{model} has no repeated blocks; leave {setting} at 0",
            model=type(model).__name__, setting=Setting("stream_blocks"),
        )  # fmt: skip
    return list(blocks.values())


def _spread(blocks: Sequence[nn.Module], share: float) -> list[nn.Module]:
    """Return a share of the blocks, at even distances: what computes between them hides copies."""
    count = math.ceil(len(blocks) * share)
    return [
        block for place, block in enumerate(blocks)
        if (place + 1) * count // len(blocks) > place * count // len(blocks)
    ]  # fmt: skip
