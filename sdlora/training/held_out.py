"""Which pictures a training is validated with: none that it learns from, or that
looks like one of them.

What is one file, or looks alike, stays together on one side, or a loss that falls would only say
that the pictures were seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch

from sdlora.data.folder import Example
from sdlora.data.likeness import near_duplicates
from sdlora.data.looks import look_at
from sdlora.device import generator_for
from sdlora.events import Warned
from sdlora.settings import TrainSettings

FEW = 3  # pictures on which a loss says little


@dataclass(frozen=True)
class Split:
    """The pictures to learn from and those to validate with, each once, both in their order; and
    what is to be said of it."""

    learnt: list[Example]
    held_out: list[Example] = field(default_factory=list)
    told: list[Warned] = field(default_factory=list)


def hold_out(examples: Sequence[Example], share: float, seed: int) -> Split:
    """Hold out `share` of the pictures to be learnt, one at least, chosen by the seed. What looks
    like a regularisation picture is learnt, and so is at least one picture."""
    if not share:
        return Split(list(examples))
    own = [place for place, example in enumerate(examples) if not example.regularisation]
    groups = dict(enumerate(_alike(examples)))
    learnt_anyhow = {p for its in groups.values() if any(q not in own for q in its) for p in its}
    free = {place: groups[place] for place in own if place not in learnt_anyhow}
    order = torch.randperm(len(own), generator=generator_for(seed, "held out")).tolist()
    wanted = min(max(1, round(share * len(own))), len(own) - 1)
    held = _filled(wanted, [free[own[turn]] for turn in order if own[turn] in free], len(own))
    alike = [groups[place] for place in own if groups[place][0] == place and len(groups[place]) > 1]
    learnt = [example for place, example in enumerate(examples) if place not in held]
    held_out = [replace(examples[place], repeats=1) for place in sorted(held)]
    named = [[examples[place].image.name for place in group] for group in alike]
    return Split(learnt, held_out, [*_about(len(held), len(own), share, named)])


def _filled(wanted: int, groups: Sequence[Sequence[int]], count: int) -> set[int]:
    """At most `wanted` places, of whole groups, the first that fit; where all are larger, those of
    the smallest that is not all there is."""
    held: set[int] = set()
    for group in groups:
        if len(held | {*group}) <= wanted:
            held.update(group)
    small = [group for group in groups if len(group) < count]
    return held or {*min(small, key=len, default=())} if wanted else set()


def _about(held: int, count: int, share: float, alike: Sequence[Sequence[str]]) -> Iterable[Warned]:
    if alike:
        yield Warned(
            f"{sum(map(len, alike))} pictures are the same as others or look alike, such as "
            f"{', '.join(alike[0][:3])}: they are held out together or learnt together",
            "leave out what is there twice",
        )
    if not held:
        yield Warned(
            f"validation_share = {share:g} of {count} pictures holds nothing out: they are too "
            "few, or all alike",
            "give further ones with validation_data, or set validation_share to 0",
        )
    elif held < FEW:
        yield Warned(
            f"{held} of {count} pictures {'is' if held == 1 else 'are'} held out: a loss on so few "
            "says little",
            "more pictures, or a folder of some with validation_data, say more",
        )


def besides(settings: TrainSettings, trigger: str) -> TrainSettings:
    """The settings with which the folder `validation_data` is read: it alone, called as the others
    are."""
    alone = {"data": settings.validation_data, "more_data": (), "regularisation": ()}
    return settings.model_copy(update={**alone, "trigger_word": trigger})


def apart(learnt: Sequence[Example], others: Sequence[Example]) -> Split:
    """Validate with others, but not with those that are learnt as well."""
    groups = _alike([*learnt, *others])
    first = len(learnt)
    seen = [any(place < first for place in group) for group in groups[first:]]
    known = [example.image.name for example, its in zip(others, seen, strict=True) if its]
    told = []
    if known:
        names = ", ".join(known[:3]) + (" ..." if len(known) > 3 else "")
        told.append(Warned(
            f"{len(known)} of {len(others)} pictures to validate with are learnt as well, or look "
            f"the same as one that is ({names}): they are left out",
            "validate with pictures that are not learnt",
        ))  # fmt: skip
    held = [replace(e, repeats=1) for e, its in zip(others, seen, strict=True) if not its]
    return Split(list(learnt), held, told)


def _alike(examples: Sequence[Example]) -> list[tuple[int, ...]]:
    """For every example the places of all that are the same file or look the same, itself among
    them; also through one another."""
    first: dict[str, int] = {}
    roots = [first.setdefault(e.digest or str(e.image), place) for place, e in enumerate(examples)]
    looks = {place: look_at(examples[place].image) for place in sorted(set(roots))}
    different = [place for place, look in looks.items() if look.digest]
    found = near_duplicates([looks[place].print for place in different])
    for one, (other, _) in found.items():
        here, there = roots[different[one]], roots[different[other]]
        roots = [there if root == here else root for root in roots]
    groups: dict[int, list[int]] = {}
    for place, root in enumerate(roots):
        groups.setdefault(root, []).append(place)
    return [tuple(groups[root]) for root in roots]
