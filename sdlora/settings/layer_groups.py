"""Groups of layers to train, and values of a setting for single groups; no torch.

Values for some groups are written as entries, `cross_attention=8 conv=4`, in flags, forms and
files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal, TypeVar, get_args

from sdlora.errors import did_you_mean
from sdlora.settings.base import InvalidValue

TargetGroup = Literal["attention", "self_attention", "cross_attention", "feed_forward", "conv"]
TEXT_ENCODER = "text_encoder"
GROUPS: tuple[str, ...] = (*get_args(TargetGroup), TEXT_ENCODER)
# A group that is part of another, and that one
WIDER = {"self_attention": "attention", "cross_attention": "attention"}
ValueT = TypeVar("ValueT")


def by_group(entries: Iterable[str], read: Callable[[str], ValueT]) -> dict[str, ValueT]:
    """Return group -> value, of entries such as conv=4. ValueError: an invalid entry."""
    values: dict[str, ValueT] = {}
    for entry in entries:
        group, equals, text = entry.partition("=")
        if not equals or group not in GROUPS:
            raise InvalidValue(
                "{entry!r} is not GROUP=VALUE, such as conv=4; the groups are {groups}.{near}",
                entry=entry, groups=GROUPS, near=did_you_mean(group, GROUPS),
            )  # fmt: skip
        if group in values:
            raise InvalidValue("{group} is given twice", group=group)
        values[group] = read(text)
    return values


def of_group(values: Mapping[str, ValueT], group: str, otherwise: ValueT) -> ValueT:
    """Return a group's own value, or that of the group that it is part of, or `otherwise`."""
    return values.get(group, values.get(WIDER.get(group, ""), otherwise))
