"""Memory that a training needs on its device, predicted before the model is loaded.

From the headers of its files: the denoiser's weights as they will be held, the adapter with its
gradients and optimizer, and the activations of models of a known size. VAE and text encoders are
put away before the first step and not counted; nor are what is in use for a moment, a loss's own
tensors and the allocator's gaps. So peaks lie above it, by 1 to 6 GB in published trainings: it
says what cannot fit. A measured step (`measure_step`) says what does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sdlora.architectures import FAMILIES
from sdlora.messages import size_in_words
from sdlora.models.block_streaming import BUFFERS
from sdlora.models.checkpoint_header import Shape
from sdlora.models.frozen_weights import is_held
from sdlora.models.registry import model_facts, tensor_shapes
from sdlora.models.weight_formats import FORMATS
from sdlora.settings.layer_groups import WIDER
from sdlora.settings.train import TrainSettings
from sdlora.training.optim import OPTIMIZERS

GIB = 2**30
CONTEXT_BYTES = GIB // 2  # of CUDA itself, at least
PRODUCTS = ("lora", "dora", "rslora", "pissa")  # adapters with r (in + out) numbers per layer
# The attention blocks of single files, which have diffusers' names below this
_ATTENTIONS = re.compile(r"^(?:(?:in|out)put_blocks\.\d+\.1|middle_block\.1)\.")


@dataclass(frozen=True)
class Activations:
    """GiB that autograd keeps of one picture: of all, and of the blocks' inputs alone.

    Counted on the meta device in bf16, at `side` pixels, with flash-like attention and LoRA of rank
    16 on every linear layer of the blocks; fewer layers keep less.
    """

    family: str
    parameters: float  # 1e9
    blocks: int
    kept_gib: float
    inputs_gib: float
    side: int = 1024


ACTIVATIONS = (
    Activations("sd1", 0.860, 16, 0.9, 0.02, 512),
    Activations("sdxl", 2.567, 70, 6.2, 0.22),
    Activations("sd3", 2.24, 24, 10.1, 0.30),
    Activations("sd3", 8.06, 38, 20.7, 0.76),
    Activations("flux", 11.90, 57, 33.2, 1.50),
)
# Repeated blocks by the names of diffusers, and the residual blocks of single files by theirs
_BLOCK = re.compile(
    r"(.*\b(?:resnets|(?:single_)?transformer_blocks)\.\d+"
    r"|(?:(?:in|out)put_blocks\.\d+\.0|middle_block\.[02])"
    r"(?=\.(?:in_layers|out_layers|emb_layers|skip_connection)\.))\."
)
_LIKE = 0.1  # a model is of a row's size when it differs by no larger a share


@dataclass(frozen=True)
class MemoryPrediction:
    """Bytes that a training needs at least; `activations` None: of a model that has no row."""

    weights: int
    adapter: int  # with gradients and optimizer
    activations: int | None
    context: int = 0

    @property
    def total(self) -> int:
        """Bytes of all that is counted."""
        return self.weights + self.adapter + (self.activations or 0) + self.context

    def __str__(self) -> str:
        activations = (
            "activations not counted" if self.activations is None
            else f"activations {size_in_words(self.activations)}"
        )  # fmt: skip
        return (
            f"{size_in_words(self.total)} or more: weights {size_in_words(self.weights)}, adapter "
            f"and optimizer {size_in_words(self.adapter)}, {activations}"
        )


def predict_memory(
    settings: TrainSettings, source: str, itemsize: int, on_gpu: bool
) -> MemoryPrediction | None:
    """Return the prediction for a model in a file or folder, in numbers of `itemsize` bytes; None
    for one that is not here yet. ModelError: it is damaged.

    W + 4 L (weights) + 4 L (gradients) + the optimizer's share of L + activations, with L numbers
    that learn; activations: all that is kept, or with checkpointing the blocks' inputs and two
    blocks, one of which is being computed again.
    """
    path = Path(source).expanduser()
    if not path.exists():
        return None
    facts = model_facts(path)
    shapes = tensor_shapes(path)
    learnt = sum(_lora_numbers(settings, facts.family, shapes))
    small = settings.optimizer.endswith("8bit")
    state = 2.0 if small else 4 * OPTIMIZERS[settings.optimizer].remembers
    return MemoryPrediction(
        weights=_weight_bytes(shapes, settings, itemsize),
        adapter=round(learnt * (8 + state)),
        activations=_activation_bytes(
            settings, facts.family, settings.resolution or facts.resolution, shapes, itemsize
        ),
        context=CONTEXT_BYTES if on_gpu else 0,
    )


def _weight_bytes(shapes: Mapping[str, Shape], settings: TrainSettings, itemsize: int) -> int:
    """Return the bytes of the denoiser on the device: all, or with streamed blocks those that stay
    and the buffers."""
    total, blocks = 0, dict[str, int]()
    for name, shape in shapes.items():
        layer, _, parameter = name.rpartition(".")
        held = parameter == "weight" and len(shape) == 2 and is_held(layer)
        size = math.prod(shape) * itemsize
        if held and settings.base_precision != "full":
            size = FORMATS[settings.base_precision].held_bytes(shape)
        total += size
        if parameter == "weight" and len(shape) > 1 and (block := _BLOCK.match(name)):
            blocks[block[1]] = blocks.get(block[1], 0) + size
    if not settings.stream_blocks or not blocks:
        return total
    share = math.ceil(settings.stream_blocks * len(blocks)) / len(blocks)
    return round(total - share * sum(blocks.values())) + BUFFERS * max(blocks.values())


def _lora_numbers(
    settings: TrainSettings, family: str, shapes: Mapping[str, Shape]
) -> Iterator[int]:
    """Yield the numbers of each layer's adapter that can be told from the shapes."""
    if not settings.train_unet or settings.adapter not in PRODUCTS:
        return
    targets, asked = FAMILIES[family].target_groups, set(settings.targets)
    for group in (group for group in targets if {group, WIDER.get(group)} & asked):
        rank, pattern = settings.of_group("rank", group), rf".*\b({targets[group]})\.weight"
        for name, (out, *inner) in shapes.items():
            if inner and re.fullmatch(pattern, _ATTENTIONS.sub("attentions.0.", name)):
                yield min(rank, out, math.prod(inner)) * (out + math.prod(inner))


def _activation_bytes(
    settings: TrainSettings, family: str, side: int, shapes: Mapping[str, Shape], itemsize: int
) -> int | None:
    billions = sum(map(math.prod, shapes.values())) / 1e9
    for row in ACTIVATIONS:
        if row.family == family and abs(billions / row.parameters - 1) <= _LIKE:
            break
    else:
        return None
    if settings.offload:
        return 0
    picture_gib = row.kept_gib
    if settings.gradient_checkpointing or settings.stream_blocks:
        picture_gib = row.inputs_gib + 2 * row.kept_gib / row.blocks
    return round(picture_gib * GIB * settings.batch_size * (side / row.side) ** 2 * itemsize / 2)
