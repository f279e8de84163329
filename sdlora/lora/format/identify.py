"""Layers of a LoRA file and their adapter types, from names and shapes of its tensors; no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from sdlora.errors import LoraFileError
from sdlora.lora.format.adapter_types import ADAPTER_TYPES, StoredType
from sdlora.lora.format.adapter_types.stored_type import Measured, Shape, Shapes
from sdlora.lora.format.errors import refusal
from sdlora.lora.format.keys import canonical, embeddings_of
from sdlora.messages import Message

MAX_NAMED, MAX_LETTERS = 3, 80  # of keys that are not known


@dataclass(frozen=True)
class Layer:
    """One layer of a file: adapter type, role -> tensor key, shape of the weight and rank.

    The shape is () when the tensors leave it open, the rank 0 when nothing is factored.
    """

    kind: str
    keys: dict[str, str]
    shape: Shape
    rank: int


def identify_layers(shapes: Shapes) -> dict[str, Layer]:
    """Layer name -> layer, from the names and shapes of all tensors in a file.

    Keys that are unknown are left out. LoraFileError, a row of REFUSALS: most are unknown, a layer
    has too little, too much or what does not fit together, or a rank above 1024 or above what its
    weight can hold.
    """
    bundled = embeddings_of(shapes)
    for key, (name, _) in bundled.items():
        if len(shapes[key]) != 2:
            raise refusal("embedding", name=name, shape=list(shapes[key]))
    layers: dict[str, dict[str, str]] = {}
    for key, (name, role) in canonical([key for key in shapes if key not in bundled]).items():
        keys = layers.setdefault(name, {})
        if role in keys:
            raise refusal("stands_twice", layer=name, key=keys[role])
        keys[role] = key
    if not layers:
        raise refusal("no_layers", count=len(bundled))
    return {name: _identify(name, keys, shapes) for name, keys in layers.items()}


def unread_keys(shapes: Shapes, layers: Mapping[str, Layer]) -> tuple[str, ...]:
    """The keys of a file that belong to none of its layers and no embedding, sorted."""
    read = {key for layer in layers.values() for key in layer.keys.values()}
    return tuple(sorted(shapes.keys() - read - embeddings_of(shapes).keys()))


def unread_note(file: str, unread: Sequence[str]) -> Message:
    """A message that names keys of a file that are not known and not used."""
    names = [repr(key[:MAX_LETTERS]) for key in unread[:MAX_NAMED]]
    if left := len(unread) - len(names):
        names.append(f"{left} more")
    return Message(
        "{file} has tensors that are not known here and not used: {names}", file=file, names=names
    )


def _identify(name: str, keys: dict[str, str], shapes: Shapes) -> Layer:
    by_role = {role: shapes[key] for role, key in keys.items()}
    candidates = _types_with(frozenset(keys))
    if not candidates:
        raise _odd_roles(name, frozenset(keys))
    if math.prod(by_role.get("alpha", ())) == math.prod(by_role.get("scalar", ())) == 1:
        for row in candidates:
            if measured := row.measure(by_role):
                shape, rank = _check_rank(name, row, measured)
                return Layer(row.name, keys, shape, rank)
    raise refusal(
        "unfit_tensors",
        layer=name,
        shapes=", ".join(f"{role} {list(shape)}" for role, shape in by_role.items()),
    )


def _check_rank(name: str, row: StoredType, measured: Measured) -> Measured:
    shape, rank = measured
    if rank > (limit := row.rank_limit(shape)):
        raise refusal("rank", layer=name, rank=rank, shape=list(shape), limit=limit)
    return measured


@lru_cache(maxsize=1024)
def _types_with(roles: frozenset[str]) -> tuple[StoredType, ...]:
    """The adapter types that have exactly tensors of these roles."""
    return tuple(row for row in ADAPTER_TYPES.values() if row.has_roles(roles))


def _odd_roles(name: str, roles: frozenset[str]) -> LoraFileError:
    """The error for roles that no type has: the nearest type lacks one of them, or has one less."""
    ways = [(row, need) for row in ADAPTER_TYPES.values() for need in row.required if need & roles]
    if not ways:
        return refusal("incomplete", layer=name, role="matrices")
    row, need = max(ways, key=lambda way: (len(way[1] & roles), -len(way[1] - roles)))
    if lacking := sorted(need - roles):
        return refusal("incomplete", layer=name, role=lacking[0])
    more = sorted(roles - need - row.optional)
    return refusal("mixed", layer=name, kind=row.name, role=more[0])
