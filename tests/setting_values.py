"""Another value for every setting, made from its field: what a new field needs is here already."""

import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MultipleOf

from sdlora.errors import SdloraError
from sdlora.settings.image_request import ImageRequest
from sdlora.settings.train import TrainSettings
from webui.fields import default_value, widget_for

REQUIRED: dict[Any, dict[str, Any]] = {
    TrainSettings: {"data": "pictures", "name": "somebody"},
    ImageRequest: {},
}
# Words with a grammar of their own, which their validators check
WORDS = {
    "group_rank": ("conv=4",), "group_alpha": ("conv=2",), "group_dropout": ("conv=0.1",),
    "group_learning_rate": ("conv=0.002",), "optimizer": "sgd",
    # of what is in every workspace
    "model": "another_model", "vae": "another_model", "text_encoder": "another_model",
    "more_data": ("zibo",), "regularisation": ("zibo",),
    "masks": "zibo", "validation_data": "zibo",
}  # fmt: skip
# What a value of a setting needs beside it
TOGETHER = {"train_unet": {"train_text_encoder": True}}


def another(
    settings: type[Any], name: str, beside: Mapping[str, Any] | None = None, usual: Any = None
) -> Any:
    """A value that is neither the default nor `usual` and that the settings accept, with those of
    `beside`."""
    for value in _candidates(settings, name):
        if value == usual:
            continue
        try:
            settings.from_values(
                {**REQUIRED[settings], **TOGETHER.get(name, {}), **(beside or {}), name: value}
            )
        except SdloraError:
            continue
        return value
    raise AssertionError(f"no other value for {name}")


def _candidates(settings: type[Any], name: str) -> Iterator[Any]:
    field = settings.model_fields[name]
    if name in WORDS:
        yield WORDS[name]
    _, kind = widget_for(field)
    usual = default_value(field)
    if kind is bool:
        yield not usual
    elif kind in (int, float):
        yield from _numbers(field.metadata, kind, usual)
    elif typing.get_origin(kind) is Literal:
        yield from (choice for choice in typing.get_args(kind) if choice != usual)
    elif typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        if typing.get_origin(inner) is Literal:
            yield from ((choice,) for choice in typing.get_args(inner) if (choice,) != usual)
        yield (3,) if inner in (int, float) else ("one thing", "another")
    else:
        yield f"some {name}"


def _numbers(rules: list[Any], kind: Any, usual: Any) -> Iterator[Any]:
    low = next((r.ge if isinstance(r, Ge) else r.gt for r in rules if isinstance(r, (Ge, Gt))), 0)
    high = next((r.le if isinstance(r, Le) else r.lt for r in rules if isinstance(r, (Le, Lt))), 9)
    step = next((rule.multiple_of for rule in rules if isinstance(rule, MultipleOf)), 1)
    if kind is int:
        beside = ((usual if usual is not None else 64 * step) + by * step for by in (1, -1, 2))
        yield from (number for number in beside if low <= number <= high)
    else:
        yield from (number for number in (0.123, low + (high - low) / 8) if number != usual)
