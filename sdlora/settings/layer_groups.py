"""Groups of layers that learn, and a setting's value for single ones of them; no torch.

A value for some groups is written as words, `cross_attention=8 conv=4`, in flags, forms and files.
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


def by_group(words: Iterable[str], read: Callable[[str], ValueT]) -> dict[str, ValueT]:
    """Group -> value, of words such as conv=4. ValueError: what is wrong with one of them."""
    values: dict[str, ValueT] = {}
    for word in words:
        group, equals, text = word.partition("=")
        if not equals or group not in GROUPS:
            raise InvalidValue(
                "{word!r} is not GROUP=VALUE, such as conv=4; the groups are {groups}.{near}",
                word=word, groups=GROUPS, near=did_you_mean(group, GROUPS),
            )  # fmt: skip
        if group in values:
            raise InvalidValue("{group} is given twice", group=group)
        values[group] = read(text)
    return values


def of_group(values: Mapping[str, ValueT], group: str, otherwise: ValueT) -> ValueT:
    """A group's own value, or that of the group that it is part of, or `otherwise`."""
    return values.get(group, values.get(WIDER.get(group, ""), otherwise))
