"""LoRAs merged into the weights: W = cast(W0.float() + sum of strength * delta(W0)).

Computed from W0 whenever it changes and never by subtracting, so that taking all away gives W0 back
bit for bit and nothing drifts. W0 is kept of what is touched only: beside the model while its
device has room; else in the computer's memory, pinned where there is a GPU that can fetch it from
there; else nowhere: it is read again from the file that the model was opened from. All three give
the same bits back.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from sdlora.adapters.matching import ParameterPath
from sdlora.device import free_memory_gib
from sdlora.lora.format.errors import refusal
from sdlora.lora.format.layer import Adapter
from sdlora.models.base import ModelFamily

SPARE_GIB = 1.0  # left free wherever weights are put aside
# what stands before a parameter's name in some files: transformers 5 has dropped it from models
_BEFORE = ("", "text_model.")

Pristine = Callable[[], Tensor]  # gives a parameter as it was, bit for bit, on some device


@dataclass(frozen=True)
class WeightStore:
    """One place for backups of weights: a test for space, and how they are stored there.

    `keep(model, key, parameter)`: `key` is the parameter's name in `model`, a part of a family.
    """

    name: str
    has_space: Callable[[torch.device, float], bool]
    keep: Callable[[Any, str, Tensor], Pristine]


def _on_device(_model: Any, _key: str, parameter: Tensor) -> Pristine:
    copy = parameter.detach().clone()
    return lambda: copy


def _in_memory(_model: Any, _key: str, parameter: Tensor) -> Pristine:
    copy = parameter.detach().to("cpu", copy=True)
    copy = copy.pin_memory() if parameter.is_cuda else copy
    return lambda: copy


def _in_file(model: Any, key: str, parameter: Tensor) -> Pristine:
    """Read again when asked for; kept in memory after all when no file holds just these bits."""
    for spelling in (before + key for before in _BEFORE):
        for path in _holders(Path(model.config._name_or_path)).get(spelling, ()):
            if _same_bits(_read_tensor(path, spelling, parameter.dtype), parameter):
                return partial(_read_tensor, path, spelling, parameter.dtype)
    return _in_memory(model, key, parameter)


WEIGHT_STORES = (
    WeightStore("device", lambda device, gib: _is_free(device, gib), _on_device),
    WeightStore(
        "memory",
        lambda device, gib: device.type != "cpu" and _is_free(torch.device("cpu"), gib),
        _in_memory,
    ),
    WeightStore("file", lambda _device, _gib: True, _in_file),
)


def weight_store_for(device: torch.device, needed_bytes: int) -> WeightStore:
    """Return the first store with space for so much, of a model on `device`."""
    return next(room for room in WEIGHT_STORES if room.has_space(device, needed_bytes / 2**30))


def _is_free(device: torch.device, gib: float) -> bool:
    return free_memory_gib(device) > gib + SPARE_GIB


@lru_cache(maxsize=4)  # the parts of a family
def _holders(folder: Path) -> dict[str, list[Path]]:
    """Tensor -> the files of a model's folder that hold it; a folder may hold two precisions."""
    holders: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  it is no dict
                holders.setdefault(key, []).append(path)
    return holders


def _read_tensor(path: Path, key: str, dtype: torch.dtype) -> Tensor:
    with safe_open(path, framework="pt") as file:
        tensor: Tensor = file.get_tensor(key)
    return tensor.to(dtype)


def _same_bits(tensor: Tensor, other: Tensor) -> bool:
    if tensor.shape != other.shape or tensor.dtype != other.dtype:
        return False
    first, second = (t.detach().cpu().contiguous().view(torch.uint8) for t in (tensor, other))
    return torch.equal(first, second)


WeightedAdapters = tuple[tuple[Adapter, float], ...]

# quantised weights have another type, or too few bits to hold a sum
MERGEABLE = (torch.float32, torch.float16, torch.bfloat16)
# Values in work at once. On a processor, for each of its threads: they stay in its cache. On a GPU
# so many that it takes longer to compute them than to start that.
VALUES_AT_ONCE, VALUES_ELSEWHERE = 2**19, 2**25


def is_mergeable(family: ModelFamily, place: ParameterPath) -> bool:
    """Return whether the parameter is an ordinary one, which can hold the sum; a quantised layer
    may compute its weight and have none, and a streamed one is a copy."""
    part, path, name = place
    if name == "weight" and family.is_streamed(part, path):
        return False
    parameter = dict(family.adaptable_layers[part][path].named_parameters(recurse=False)).get(name)
    if parameter is None:
        return False
    return parameter.dtype in MERGEABLE and type(parameter.data) is Tensor


@dataclass(frozen=True)
class WeightGroup:
    """Parameters that are computed together: one, or small ones with as many low-rank changes.

    What is in a group hangs on the blend alone and not on the way to it, for a product of several
    matrices at once may round otherwise than that of each.
    """

    places: tuple[ParameterPath, ...]
    recipes: tuple[WeightedAdapters, ...]


class MergedWeights:
    """The LoRAs merged into the weights of an open family, and the backup of these."""

    def __init__(self, family: ModelFamily) -> None:
        self.family = family
        self._current: dict[ParameterPath, WeightGroup] = {}
        self._pristine: dict[ParameterPath, tuple[Pristine, Tensor]] = {}  # with its norm, 0-d

    def original(self, place: ParameterPath) -> Tensor:
        """A parameter as the model has it without any LoRA, on the model's device."""
        backup = self._pristine.get(place)
        if not backup:
            return _parameter(self.family, place).detach()
        return backup[0]().to(self.family.device, non_blocking=True)

    @torch.no_grad()
    def set_adapters(self, changes: Mapping[ParameterPath, WeightedAdapters]) -> None:
        """Merge exactly these adapters; what is merged already is not touched.

        LoraFileError when a sum overflows. Whatever interrupts this, `clear` makes it pristine.
        """
        for place in [place for place in self._current if place not in changes]:
            self._restore(place)
        changed = [g for g in self._groups(changes) if self._current.get(g.places[0]) != g]
        places = [place for group in changed for place in group.places]
        self._put_aside([place for place in places if place not in self._pristine])
        bounds: list[Tensor] = []
        for group in changed:
            self._current |= dict.fromkeys(group.places, group)
            targets = [_parameter(self.family, place).data for place in group.places]
            originals = [self.original(place) for place in group.places]
            bounds.append(merge(targets, group.places[0][2], originals, group.recipes))
        if bounds and not self._is_finite(places, torch.cat(bounds)):
            raise refusal("overflow")

    @torch.no_grad()
    def clear(self) -> None:
        """Give the pristine weights back, bit for bit."""
        for place in list(self._pristine):
            self._restore(place)

    def _groups(self, changes: Mapping[ParameterPath, WeightedAdapters]) -> Iterator[WeightGroup]:
        limit = _values_at_once(self.family.device)
        alike: dict[Hashable, list[ParameterPath]] = defaultdict(list)
        for place, recipe in changes.items():
            ranks = _ranks(place[2], recipe)
            shape = _parameter(self.family, place).shape
            alike[(place[0], shape, ranks) if ranks else place].append(place)
        for places in alike.values():
            count = max(1, limit // _parameter(self.family, places[0]).numel())
            for first in range(0, len(places), count):
                group = places[first : first + count]
                yield WeightGroup(tuple(group), tuple(changes[place] for place in group))

    def _is_finite(self, places: Sequence[ParameterPath], bounds: Tensor) -> bool:
        """No value is larger than the norms' sum; where that is too large each is looked at."""
        norms = torch.stack([self._pristine[place][1] for place in places])
        # asked once, for it waits for the device
        if (norms + bounds).le(torch.finfo(torch.float16).max).all():
            return True
        return all(bool(_parameter(self.family, place).isfinite().all()) for place in places)

    def _put_aside(self, places: list[ParameterPath]) -> None:
        parameters = {place: _parameter(self.family, place) for place in places}
        needed = sum(parameter.nbytes for parameter in parameters.values())
        store = weight_store_for(self.family.device, needed)
        for place, parameter in parameters.items():
            part, path, name = place
            backup = store.keep(self.family.components[part], f"{path}.{name}", parameter)
            norm = torch.linalg.vector_norm(parameter.detach(), dtype=torch.float32)
            self._pristine[place] = (backup, norm)

    def _restore(self, place: ParameterPath) -> None:
        _parameter(self.family, place).data.copy_(self._pristine[place][0]())
        self._current.pop(place, None)
        del self._pristine[place]


def merge(
    targets: Sequence[Tensor],
    name: str,
    originals: Sequence[Tensor],
    recipes: Sequence[WeightedAdapters],
) -> Tensor:
    """Write original + sum of strength * delta, summed in float32, into each target.

    `name`: which parameter of its module each is. All have one shape; several have low-rank changes
    only, of the same ranks. Those are one product, which is added to the sum as it is computed:
    [s1 B1 ... sn Bn] [A1; ...; An]. Returns (targets,): no value changes by more.
    """
    if len(targets) == 1 and not (_ranks(name, recipes[0]) and targets[0].is_contiguous()):
        (target,), (original,), (recipe,) = targets, originals, recipes
        return _merge_deltas(target, name, original, recipe)
    down, up = _joined(recipes, targets[0].device)
    if len(targets) > 1:
        _merge_alike(targets, originals, down, up)
    else:
        _merge_product(targets[0], originals[0], down[0], up[0])
    # |sum of b a| is at most |b| |a| (Cauchy and Schwarz)
    down_norms: Tensor = torch.linalg.vector_norm(down, dim=(1, 2))
    up_norms: Tensor = torch.linalg.vector_norm(up, dim=(1, 2))
    return down_norms * up_norms


def _merge_deltas(target: Tensor, name: str, original: Tensor, recipe: WeightedAdapters) -> Tensor:
    total = original.to(torch.float32, copy=True)
    change = total.new_zeros(1)
    for adapter, strength in recipe:
        delta = adapter.delta(original, name).view_as(total)
        change += abs(strength) * torch.linalg.vector_norm(delta)
        total.add_(delta, alpha=strength)
    target.copy_(total)
    return change


def _joined(recipes: Sequence[WeightedAdapters], device: torch.device) -> tuple[Tensor, Tensor]:
    """float32 (recipes,R,in k k) and (recipes,out,R), whose products are the changes."""
    downs, ups = [], []
    for column in zip(*recipes, strict=True):
        products = [adapter.product for adapter, _ in column]
        down, up = (torch.stack([row[half] for row in products]) for half in (0, 1))
        downs.append(down.to(device, torch.float32))
        ups.append(up.to(device, torch.float32))
        scales = [row[2] * strength for row, (_, strength) in zip(products, column, strict=True)]
        alike = len(set(scales)) == 1  # and need not be sent to the device
        ups[-1] *= scales[0] if alike else torch.tensor(scales, device=device).view(-1, 1, 1)
    return (downs[0], ups[0]) if len(downs) == 1 else (torch.cat(downs, 1), torch.cat(ups, 2))


def _merge_product(target: Tensor, original: Tensor, down: Tensor, up: Tensor) -> None:
    """One target: in float32 computed in its place, else a part of the rows at a time."""
    into, of = target.view(len(target), -1), original.reshape(len(original), -1)
    if target.dtype == torch.float32:
        torch.addmm(of, up, down, out=into)
        return
    step = max(1, _values_at_once(target.device) // into.shape[1])
    sums = torch.empty(min(step, len(into)), into.shape[1], device=target.device)
    for first in range(0, len(into), step):
        rows = slice(first, first + step)
        total = sums[: len(into[rows])].copy_(of[rows])
        into[rows] = total.addmm_(up[rows], down)


def _merge_alike(
    targets: Sequence[Tensor], originals: Sequence[Tensor], down: Tensor, up: Tensor
) -> None:
    """Several targets, with as many computations as for one."""
    sums = torch.empty(len(targets), up.shape[1], down.shape[2], device=up.device)
    shaped = [total.view_as(target) for total, target in zip(sums, targets, strict=True)]
    torch._foreach_copy_(shaped, list(originals))
    sums.baddbmm_(up, down)
    torch._foreach_copy_(list(targets), shaped)


def _ranks(name: str, recipe: WeightedAdapters) -> tuple[int, ...]:
    """Of low-rank changes of a weight; () when one is of another kind."""
    products = name == "weight" and all([adapter.is_product for adapter, _ in recipe])
    return tuple([adapter.rank for adapter, _ in recipe]) if products else ()


def _values_at_once(device: torch.device) -> int:
    return VALUES_AT_ONCE * torch.get_num_threads() if device.type == "cpu" else VALUES_ELSEWHERE


def _parameter(family: ModelFamily, place: ParameterPath) -> Tensor:
    part, path, name = place
    parameter: Tensor = getattr(family.adaptable_layers[part][path], name)
    return parameter
