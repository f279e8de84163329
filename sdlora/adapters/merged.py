"""LoRAs merged into the weights: W = cast(W0.float() + sum of strength * delta(W0)).

Computed from W0 whenever it changes and never by subtracting, so that taking all away gives W0 back
bit for bit and nothing drifts. W0 is kept of what is touched only.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sdlora.adapters.places import Place
from sdlora.adapters.pristine import Pristine, room_for
from sdlora.families.base import Family
from sdlora.lora.adapter import Adapter
from sdlora.lora.refusals import refusal

Recipe = tuple[tuple[Adapter, float], ...]

# quantised weights have another type, or too few bits to hold a sum
MERGEABLE = (torch.float32, torch.float16, torch.bfloat16)
BLOCK_VALUES = 2**17  # that one thread of a processor works on at once: they stay in its cache


def is_mergeable(family: Family, place: Place) -> bool:
    """Whether the parameter is an ordinary one, that can hold the sum."""
    parameter = _parameter(family, place)
    return parameter.dtype in MERGEABLE and type(parameter.data) is Tensor


class Merged:
    """What stands in the weights of an open family, and how they were before."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self._standing: dict[Place, Recipe] = {}
        self._pristine: dict[Place, Pristine] = {}

    def original(self, place: Place) -> Tensor:
        """A parameter as the model has it without any LoRA, on the model's device."""
        kept = self._pristine.get(place)
        return kept().to(self.family.device) if kept else _parameter(self.family, place).detach()

    @torch.no_grad()
    def stand(self, wanted: Mapping[Place, Recipe]) -> None:
        """Make exactly these recipes stand; what stands already is not touched.

        LoraFileError when a sum overflows. Whatever interrupts this, `clear` makes it pristine.
        """
        for place in [place for place in self._standing if place not in wanted]:
            self._restore(place)
        changed = [place for place, recipe in wanted.items() if self._standing.get(place) != recipe]
        self._put_aside([place for place in changed if place not in self._pristine])
        norms: list[Tensor] = []
        for place in changed:
            self._standing[place] = wanted[place]
            target = _parameter(self.family, place).data
            norms += merge(target, place[2], self.original(place), wanted[place])
        if not self._is_finite(changed, norms):
            raise refusal("overflow")

    @torch.no_grad()
    def clear(self) -> None:
        """Give the pristine weights back, bit for bit."""
        for place in list(self._pristine):
            self._restore(place)

    def _is_finite(self, places: list[Place], norms: list[Tensor]) -> bool:
        """No value is larger than its norm; where that is too large each value is looked at."""
        # asked once, for it waits for the device
        if not norms or torch.stack(norms).le(torch.finfo(torch.float16).max).all():
            return True
        return all(bool(_parameter(self.family, place).isfinite().all()) for place in places)

    def _put_aside(self, places: list[Place]) -> None:
        parameters = {place: _parameter(self.family, place) for place in places}
        needed = sum(parameter.nbytes for parameter in parameters.values())
        room = room_for(self.family.device, needed)
        for (part, path, name), parameter in parameters.items():
            model = self.family.parts[part]
            self._pristine[part, path, name] = room.keep(model, f"{path}.{name}", parameter)

    def _restore(self, place: Place) -> None:
        _parameter(self.family, place).data.copy_(self._pristine[place]())
        self._standing.pop(place, None)
        del self._pristine[place]


def merge(target: Tensor, name: str, original: Tensor, recipe: Recipe) -> list[Tensor]:
    """Write original + sum of strength * delta, summed in float32, into `target` of its shape.

    `name`: which parameter of its module it is. Low-rank changes are one product, which is added to
    the sum as it is computed: [s1 B1 ... sn Bn] [A1; ...; An]. Returns norms (0-d): none of the
    values in float32 exceeds the largest.
    """
    factors = [adapter.factors() if name == "weight" else None for adapter, _ in recipe]
    whole = [row for row, its in zip(recipe, factors, strict=True) if its is None]
    halves = [(*its, s) for its, (_, s) in zip(factors, recipe, strict=True) if its is not None]
    if halves:
        down = torch.cat([down.flatten(1) for down, _, _ in halves]).to(target.device)
        up = torch.cat([up.flatten(1) * s for _, up, s in halves], 1).to(target.device)
    norms = []
    for rows in _blocks(target, is_divisible=not whole):
        block = target[rows]
        total = _sum_in(block).copy_(original[rows])
        for adapter, strength in whole:
            total.add_(adapter.delta(original, name).view_as(total), alpha=strength)
        if halves:
            total.view(len(total), -1).addmm_(up[rows], down)
        norms.append(torch.linalg.vector_norm(total))
        if total is not block:
            block.copy_(total)
    return norms


def _sum_in(rows: Tensor) -> Tensor:
    """Where a float32 sum for these rows is computed: in their own place when it can be."""
    if rows.dtype == torch.float32 and rows.is_contiguous():
        return rows
    return torch.empty(rows.shape, dtype=torch.float32, device=rows.device)


def _blocks(target: Tensor, is_divisible: bool) -> list[slice]:
    """Rows to work on at a time; all of them where a change needs the whole weight."""
    if target.device.type != "cpu" or not is_divisible:
        return [slice(None)]
    step = max(1, BLOCK_VALUES * torch.get_num_threads() // target[0].numel())
    return [slice(first, first + step) for first in range(0, len(target), step)]


def _parameter(family: Family, place: Place) -> Tensor:
    part, path, name = place
    parameter: Tensor = getattr(family.layers[part][path], name)
    return parameter
