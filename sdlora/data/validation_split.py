"""Validation split: the pictures that a training is validated with, none of them learnt and none
that looks like one that is learnt.

Pictures that are one file, or look alike, stay together on one side; otherwise a falling loss would
only show that the pictures were seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sdlora.data.caption_augmentation import WordLists
from sdlora.data.dataset import Dataset, read_dataset
from sdlora.data.folder import Example, Problem
from sdlora.data.image_augmentation import seeded_random
from sdlora.data.image_stats import read_image_stats
from sdlora.data.near_duplicates import near_duplicates
from sdlora.messages import Message, Setting
from sdlora.settings.train import TrainSettings
from sdlora.workspace import Workspace

MIN_HELD_OUT = 3  # pictures on which a loss says little
DATA, SHARE = Setting("validation_data"), Setting("validation_share")


@dataclass(frozen=True)
class Split:
    """Training and validation pictures, each of the latter once, both in their order; the wildcard
    lists that their captions are drawn from; and the problems of the split."""

    learnt: list[Example]
    held_out: list[Example] = field(default_factory=list)
    lists: WordLists = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def split_dataset(gathered: Dataset, settings: TrainSettings, workspace: Workspace) -> Split:
    """Hold out a share of the dataset, or validate with a folder of its own, whose captions get the
    same trigger. DataError: there is no such folder, or nothing in it can be used."""
    examples, lists = gathered.examples, gathered.lists
    if not settings.validation_data:
        split = hold_out(examples, settings.validation_share, settings.seed, Path(settings.data))
        return replace(split, lists=lists)
    overrides = {"data": settings.validation_data, "more_data": (), "regularisation": ()}
    overrides["trigger_word"] = gathered.trigger
    others = read_dataset(settings.model_copy(update=overrides), workspace)
    split = exclude_duplicates(examples, others.examples, Path(settings.validation_data))
    problems = [*others.problems, *split.problems]
    return replace(split, lists={**others.lists, **lists}, problems=problems)


def hold_out(examples: Sequence[Example], share: float, seed: int, source: Path) -> Split:
    """Hold out `share` of the pictures to be learnt, one at least, chosen by the seed. What looks
    like a regularisation picture is learnt, and so is at least one picture."""
    if not share:
        return Split(list(examples))
    subjects = [index for index, example in enumerate(examples) if not example.regularisation]
    groups = dict(enumerate(_duplicate_groups(examples)))
    always_learnt = {
        index
        for group in groups.values()
        if any(other not in subjects for other in group)
        for index in group
    }
    order = [index for index in subjects if index not in always_learnt]
    seeded_random(seed, "held out").shuffle(order)
    target = min(max(1, round(share * len(subjects))), len(subjects) - 1)
    held_out = _choose_groups(target, [groups[index] for index in order], len(subjects))
    alike = [
        groups[index] for index in subjects if groups[index][0] == index and len(groups[index]) > 1
    ]
    named = [[examples[index].image.name for index in group] for group in alike]
    messages = _split_problems(len(held_out), len(subjects), share, named)
    return Split(
        [example for index, example in enumerate(examples) if index not in held_out],
        [replace(examples[index], repeats=1) for index in sorted(held_out)],
        problems=[Problem(source, message, advice) for message, advice in messages],
    )


def _choose_groups(target: int, groups: Sequence[Sequence[int]], count: int) -> set[int]:
    """Return at most `target` indices, of whole groups, the first that fit; where all are larger,
    those of the smallest group that is not the whole set."""
    chosen: set[int] = set()
    for group in groups:
        if len(chosen | {*group}) <= target:
            chosen.update(group)
    small = [group for group in groups if len(group) < count]
    return chosen or {*min(small, key=len, default=())} if target else set()


def _split_problems(
    held: int, count: int, share: float, alike: Sequence[Sequence[str]]
) -> Iterable[tuple[str, str]]:
    """Yield (message, advice) about a split."""
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
    elif held < MIN_HELD_OUT:
        yield (
            Message(
                "holds out {held} of {count} pictures: a loss on so few says little",
                held=held, count=count,
            ),
            Message("more pictures, or a folder of some with {data}, say more", data=DATA),
        )  # fmt: skip


def exclude_duplicates(learnt: Sequence[Example], others: Sequence[Example], source: Path) -> Split:
    """Return a split that validates with `others`, without those that are learnt as well."""
    groups = _duplicate_groups([*learnt, *others])
    first = len(learnt)
    seen = [any(place < first for place in group) for group in groups[first:]]
    held = [
        replace(e, repeats=1) for e, is_learnt in zip(others, seen, strict=True) if not is_learnt
    ]
    known = [e.image.name for e, is_learnt in zip(others, seen, strict=True) if is_learnt]
    message = Message(
        "has {count} of its {total} pictures among those that are learnt, or they look the same "
        "({files}): nothing is validated with them",
        count=len(known),
        total=len(others),
        files=[*known[:3], *(["..."] if len(known) > 3 else [])],
    )
    problem = Problem(source, message, "validate with pictures that are not learnt")
    return Split(list(learnt), held, problems=[problem] if known else [])


def _duplicate_groups(examples: Sequence[Example]) -> list[tuple[int, ...]]:
    """For every example the places of all that are the same file or look the same, itself among
    them; also through one another."""
    first: dict[str, int] = {}
    roots = [first.setdefault(e.digest or str(e.image), index) for index, e in enumerate(examples)]
    looks = {index: read_image_stats(examples[index].image) for index in sorted(set(roots))}
    different = [index for index, look in looks.items() if look.digest]
    matches = near_duplicates([looks[index].print for index in different])
    for later, (earlier, _) in matches.items():
        source, target = roots[different[later]], roots[different[earlier]]
        roots = [target if root == source else root for root in roots]
    groups: dict[int, list[int]] = {}
    for index, root in enumerate(roots):
        groups.setdefault(root, []).append(index)
    return [tuple(groups[root]) for root in roots]
