"""Which pictures a training is validated with: none that it learns from, nor one that looks alike.

What is one file, or looks alike, stays together on one side, or a loss that falls would only say
that the pictures were seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sdlora.data.caption_augmentation import WordLists
from sdlora.data.dataset import Dataset, gather
from sdlora.data.folder import Example, Problem
from sdlora.data.image_augmentation import dice
from sdlora.data.image_stats import look_at
from sdlora.data.near_duplicates import near_duplicates
from sdlora.messages import Message, Setting
from sdlora.settings.train import TrainSettings
from sdlora.workspace import Workspace

FEW = 3  # pictures on which a loss says little
DATA, SHARE = Setting("validation_data"), Setting("validation_share")


@dataclass(frozen=True)
class Split:
    """The pictures to learn from and those to validate with, each of these once, both in their
    order; the lists that their captions are drawn from; and what is to be said of it."""

    learnt: list[Example]
    held_out: list[Example] = field(default_factory=list)
    lists: WordLists = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def divide(gathered: Dataset, settings: TrainSettings, workspace: Workspace) -> Split:
    """Hold out a share of what was gathered, or validate with a folder of its own, which is called
    as the others are. DataError: there is no such folder, or nothing in it can be used."""
    examples, lists = gathered.examples, gathered.lists
    if not settings.validation_data:
        split = hold_out(examples, settings.validation_share, settings.seed, Path(settings.data))
        return replace(split, lists=lists)
    alone = {"data": settings.validation_data, "more_data": (), "regularisation": ()}
    alone["trigger_word"] = gathered.trigger
    others = gather(settings.model_copy(update=alone), workspace)
    split = apart(examples, others.examples, Path(settings.validation_data))
    problems = [*others.problems, *split.problems]
    return replace(split, lists={**others.lists, **lists}, problems=problems)


def hold_out(examples: Sequence[Example], share: float, seed: int, source: Path) -> Split:
    """Hold out `share` of the pictures to be learnt, one at least, chosen by the seed. What looks
    like a regularisation picture is learnt, and so is at least one picture."""
    if not share:
        return Split(list(examples))
    own = [place for place, example in enumerate(examples) if not example.regularisation]
    groups = dict(enumerate(_alike(examples)))
    learnt_anyhow = {p for its in groups.values() if any(q not in own for q in its) for p in its}
    order = [place for place in own if place not in learnt_anyhow]
    dice(seed, "held out").shuffle(order)
    wanted = min(max(1, round(share * len(own))), len(own) - 1)
    held = _filled(wanted, [groups[place] for place in order], len(own))
    alike = [groups[place] for place in own if groups[place][0] == place and len(groups[place]) > 1]
    named = [[examples[place].image.name for place in group] for group in alike]
    said = _about(len(held), len(own), share, named)
    return Split(
        [example for place, example in enumerate(examples) if place not in held],
        [replace(examples[place], repeats=1) for place in sorted(held)],
        problems=[Problem(source, what, advice) for what, advice in said],
    )


def _filled(wanted: int, groups: Sequence[Sequence[int]], count: int) -> set[int]:
    """At most `wanted` places, of whole groups, the first that fit; where all are larger, those of
    the smallest that is not all there is."""
    held: set[int] = set()
    for group in groups:
        if len(held | {*group}) <= wanted:
            held.update(group)
    small = [group for group in groups if len(group) < count]
    return held or {*min(small, key=len, default=())} if wanted else set()


def _about(
    held: int, count: int, share: float, alike: Sequence[Sequence[str]]
) -> Iterable[tuple[str, str]]:
    """(what, advice) of a split."""
    if alike:
        yield (
            Message(
                "has {count} pictures that are the same as others or look alike, such as {files}: "
                "they are held out together or learnt together",
                count=sum(map(len, alike)),
                files=alike[0][:3],
            ),
            "leave out what is there twice",
        )
    if not held:
        yield (
            Message(
                "holds out none of {count}, at {setting} = {share:g}: they are too few, or all "
                "alike",
                count=count, setting=SHARE, share=share,
            ),
            Message("give further ones with {data}, or set {share} to 0", data=DATA, share=SHARE),
        )  # fmt: skip
    elif held < FEW:
        yield (
            Message(
                "holds out {held} of {count} pictures: a loss on so few says little",
                held=held, count=count,
            ),
            Message("more pictures, or a folder of some with {data}, say more", data=DATA),
        )  # fmt: skip


def apart(learnt: Sequence[Example], others: Sequence[Example], source: Path) -> Split:
    """Validate with others, but not with those that are learnt as well."""
    groups = _alike([*learnt, *others])
    first = len(learnt)
    seen = [any(place < first for place in group) for group in groups[first:]]
    held = [replace(e, repeats=1) for e, its in zip(others, seen, strict=True) if not its]
    known = [example.image.name for example, its in zip(others, seen, strict=True) if its]
    what = Message(
        "has {count} of its {of} pictures among those that are learnt, or they look the same "
        "({files}): nothing is validated with them",
        count=len(known),
        of=len(others),
        files=[*known[:3], *(["..."] if len(known) > 3 else [])],
    )
    problem = Problem(source, what, "validate with pictures that are not learnt")
    return Split(list(learnt), held, problems=[problem] if known else [])


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
