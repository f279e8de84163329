"""The kinds of adapter that LoRA files hold: which tensors each has, and what these tell; no torch.

The papers: LoRA arXiv:2106.09685, DoRA arXiv:2402.09353, LoHa arXiv:2108.06098, LoKr
arXiv:2212.10650, GLoRA arXiv:2306.07967, IA3 arXiv:2205.05638, OFT arXiv:2306.07280, BOFT
arXiv:2311.06243. The tensors are named as LyCORIS names them (arXiv:2309.14859).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from sdlora.errors import LoraFileError
from sdlora.lora.format.errors import refusal
from sdlora.lora.format.keys import canonical, embeddings_of
from sdlora.messages import Message

MAX_RANK = 1024
MOST_NAMED, MOST_LETTERS = 3, 80  # of keys that are not known
Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]  # tensor key or role -> shape
Told = tuple[Shape, int]  # the weight's shape, () when the tensors do not tell; rank, 0 for none


@dataclass(frozen=True)
class StoredType:
    """One kind of adapter: the roles of its tensors, and what their shapes tell.

    `measure` gives None when the shapes, by role, do not fit together. A `flat` kind may leave the
    window of a convolution open: (out, in k k) then stands for (out,in,k,k).
    """

    name: str
    needs: tuple[frozenset[str], ...]  # one of these sets
    may: frozenset[str]
    measure: Callable[[Shapes], Told | None]
    flat: bool = False
    bounded: bool = True  # by the smaller side of the weight: a higher rank adds nothing


@dataclass(frozen=True)
class Layer:
    """One layer of a file: role -> tensor key, and what the shapes tell of weight and rank."""

    kind: str
    keys: dict[str, str]
    shape: Shape
    rank: int


def _lora(of: Shapes) -> Told | None:
    """up (out,r[,1,1]) · down (r,in[,k,k]); with mid (r,r,k,k) between, down is (r,in,1,1).

    LyCORIS' DyLoRA has the up of a convolution without its ones.
    """
    down, up, mid = of["down"], of["up"], of.get("mid")
    sizes = (len(up), len(down))
    if sizes not in ((2, 2), (4, 4), (2, 4)) or up[1:] != (down[0], *(1,) * len(up[2:])):
        return None
    if mid is not None and (mid[:2] != (down[0],) * 2 or len(mid) != 4 or down[2:] != (1, 1)):
        return None
    shape = (up[0], down[1], *(mid or down)[2:])
    fits = (
        _is_side(of.get("dora_scale"), shape)
        and math.prod(of.get("magnitude", up[:1])) == up[0]
        and of.get("diff_b", up[:1]) == up[:1]
    )
    return (shape, down[0]) if fits else None


def _is_side(scale: Shape | None, shape: Shape) -> bool:
    """Whether a `dora_scale` has a number per output (out,1[,1,1]) or per input (1,in[,1,1])."""
    if scale is None:
        return True
    if len(scale) not in (2, 4) or set(scale[2:]) - {1}:
        return False
    if len(scale) > len(shape):  # of a convolution with a flat shape: in divides in k k
        return scale[:2] == (shape[0], 1) or (scale[0] == 1 and shape[1] % scale[1] == 0)
    return len(scale) == len(shape) and scale[:2] in ((shape[0], 1), (1, shape[1]))


def _product(of: Shapes, a: str, b: str, core: str = "") -> Told | None:
    """(shape, r) of a (rows,r) · b (r,columns[,k,k]); with a Tucker core (r,r,k,k) in between both
    a (r,rows) and b (r,columns) have the rank first."""
    first, second, t = of[a], of[b], of.get(core)
    if len(first) != 2 or len(second) not in (2, 4):
        return None
    if t is None:
        return ((first[0], *second[1:]), second[0]) if first[1] == second[0] else None
    fits = len(t) == 4 and len(second) == 2 and t[:2] == (first[0], second[0])
    return ((first[1], second[1], *t[2:]), max(t[:2])) if fits else None


def _loha(of: Shapes) -> Told | None:
    told = _product(of, "hada_w1_a", "hada_w1_b", "hada_t1")
    if told is None or told != _product(of, "hada_w2_a", "hada_w2_b", "hada_t2"):
        return None
    return told if _is_side(of.get("dora_scale"), told[0]) else None


def _lokr(of: Shapes) -> Told | None:
    small, large = (
        (of[whole], 0) if whole in of else _product(of, f"{whole}_a", f"{whole}_b", core)
        for whole, core in (("lokr_w1", ""), ("lokr_w2", "lokr_t2"))
    )
    if not small or not large or len(small[0]) != 2 or len(large[0]) not in (2, 4):
        return None
    shape = (small[0][0] * large[0][0], small[0][1] * large[0][1], *large[0][2:])
    return (shape, large[1] or small[1]) if _is_side(of.get("dora_scale"), shape) else None


def _glora(of: Shapes) -> Told | None:
    """W · a1 · a2 + b1 · b2: a1 (in,r), a2 (r,in), b1 (out,r), b2 (r,in[,k,k]), each [,1,1]; with
    bm (r,r,k,k) between b1 and b2, b2 is (r,in,1,1)."""
    if any(len(of[role]) not in (2, 4) for role in ("a1", "a2", "b1", "b2")):
        return None
    a1, a2, b1, b2 = (of[role] for role in glora_order(of))
    bm = of.get("bm")
    rank, width = b2[:2]
    fits = (a1[:2], a2[:2], b1[1]) == ((width, rank), (rank, width), rank)
    if bm is not None and (len(bm) != 4 or bm[:2] != (rank, rank) or b2[2:] != (1, 1)):
        return None
    ones = set(a1[2:] + a2[2:] + b1[2:]) <= {1}
    return ((b1[0], width, *(bm or b2)[2:]), rank) if fits and ones else None


def glora_order(of: Shapes) -> tuple[str, str, str, str]:
    """The roles that are a1, a2, b1, b2 in `_glora`: files of LyCORIS 1 swap each pair.

    A square weight lets both be: then the lower rank is the true one.
    """
    a1, a2, b1, b2 = (of[role] for role in ("a1", "a2", "b1", "b2"))
    new = a1[1] == a2[0] == b1[1] == b2[0]
    old = a1[0] == a2[1] == b1[0] == b2[1]
    swapped = old and (not new or a1[0] < a1[1])
    return ("a2", "a1", "b2", "b1") if swapped else ("a1", "a2", "b1", "b2")


def _ia3(of: Shapes) -> Told | None:
    weight = of["weight"]
    fits = weight and math.prod(weight) == max(weight) and math.prod(of["on_input"]) == 1
    return ((), 0) if fits else None


def _oft(of: Shapes) -> Told | None:
    """n blocks (n,b,b), each turning b outputs."""
    blocks = of["oft_blocks"]
    return _turned(of, *blocks[:2]) if len(blocks) == 3 and blocks[1] == blocks[2] else None


def _boft(of: Shapes) -> Told | None:
    """m stages (m,n,b,b); stage i turns pairs that stand 2^i b / 2 apart."""
    blocks = of["oft_blocks"]
    if len(blocks) != 4 or blocks[2] != blocks[3] or blocks[2] % 2:
        return None
    stages, count = blocks[:2]
    whole = stages <= count.bit_length() and count % 2 ** (stages - 1) == 0
    return _turned(of, *blocks[1:3]) if whole else None


def _turned(of: Shapes, count: int, size: int) -> Told | None:
    out = (count * size,)
    rescale = of.get("rescale", out)
    return ((), 0) if rescale[:1] == out and set(rescale[1:]) <= {1} else None


def _full(of: Shapes) -> Told | None:
    diff, bias = of.get("diff"), of.get("diff_b")
    if diff is None:
        return ((), 0) if bias and len(bias) == 1 else None
    return (diff, 0) if diff and bias in (None, diff[:1]) else None


def _norm(of: Shapes) -> Told | None:
    weight = of["w_norm"]
    return (weight, 0) if len(weight) == 1 and of.get("b_norm", weight) == weight else None


def _any(*sets: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(roles.split()) for roles in sets)


_SCALE = frozenset({"alpha", "scalar"})
_HADA = "hada_w1_a hada_w1_b hada_w2_a hada_w2_b"
_LOKR = [
    f"{small} {large}"
    for small in ("lokr_w1", "lokr_w1_a lokr_w1_b")
    for large in ("lokr_w2", "lokr_w2_a lokr_w2_b", "lokr_w2_a lokr_w2_b lokr_t2")
]
_SIZED = frozenset({"alpha", "rescale"})
# fmt: off
KINDS: tuple[StoredType, ...] = (
    StoredType("LoRA", _any("down up"), _SCALE | {"mid", "diff_b", "reshape_weight"}, _lora),
    StoredType("DoRA", _any("down up dora_scale", "down up magnitude"), _SCALE | {"mid"}, _lora),
    StoredType(
        "LoHa", _any(_HADA, f"{_HADA} hada_t1 hada_t2"), _SCALE | {"dora_scale"}, _loha, True
    ),
    # LyCORIS factors a half while that makes its longer side smaller
    StoredType("LoKr", _any(*_LOKR), _SCALE | {"dora_scale"}, _lokr, flat=True, bounded=False),
    StoredType("GLoRA", _any("a1 a2 b1 b2"), _SCALE | {"bm"}, _glora),
    StoredType("IA3", _any("weight on_input"), frozenset(), _ia3),
    StoredType("OFT", _any("oft_blocks"), _SIZED, _oft),
    StoredType("BOFT", _any("oft_blocks"), _SIZED, _boft),
    StoredType("full", _any("diff", "diff_b"), frozenset({"diff_b"}), _full),
    StoredType("norm", _any("w_norm"), frozenset({"b_norm"}), _norm),
)
# fmt: on
KIND = {kind.name: kind for kind in KINDS}


def layers_of(shapes: Shapes) -> dict[str, Layer]:
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
    return {name: _layer(name, keys, shapes) for name, keys in layers.items()}


def unread_in(shapes: Shapes, layers: Mapping[str, Layer]) -> tuple[str, ...]:
    """The keys of a file that are in none of its layers and no embedding: nobody knows them."""
    read = {key for layer in layers.values() for key in layer.keys.values()}
    return tuple(sorted(shapes.keys() - read - embeddings_of(shapes).keys()))


def unread_note(file: str, unread: Sequence[str]) -> Message:
    """What to say of a file's keys that are not known and not used."""
    names = [repr(key[:MOST_LETTERS]) for key in unread[:MOST_NAMED]]
    if left := len(unread) - len(names):
        names.append(f"{left} more")
    return Message(
        "{file} has tensors that are not known here and not used: {names}", file=file, names=names
    )


def _layer(name: str, keys: dict[str, str], shapes: Shapes) -> Layer:
    of = {role: shapes[key] for role, key in keys.items()}
    if fitting := _kinds_with(frozenset(keys)):
        single = math.prod(of.get("alpha", ())) == math.prod(of.get("scalar", ())) == 1
        for kind in fitting if single else ():
            if told := kind.measure(of):
                return Layer(kind.name, keys, *_bounded(name, kind, *told))
        raise refusal(
            "unfit_tensors",
            layer=name,
            shapes=", ".join(f"{role} {list(shape)}" for role, shape in of.items()),
        )
    raise _odd_roles(name, frozenset(keys))


def _bounded(name: str, kind: StoredType, shape: Shape, rank: int) -> Told:
    limited = kind.bounded and rank
    most = min(MAX_RANK, shape[0], math.prod(shape[1:])) if limited else MAX_RANK
    if rank > most:
        raise refusal("rank", layer=name, rank=rank, shape=list(shape), most=most)
    return shape, rank


@lru_cache(maxsize=1024)
def _kinds_with(roles: frozenset[str]) -> tuple[StoredType, ...]:
    """The kinds that have exactly tensors of these roles."""
    return tuple(
        kind for kind in KINDS if any(need <= roles <= need | kind.may for need in kind.needs)
    )


def _odd_roles(name: str, roles: frozenset[str]) -> LoraFileError:
    """What is wrong with roles that no kind has: the nearest kind lacks one, or has one more."""
    ways = [(kind, need) for kind in KINDS for need in kind.needs if need & roles]
    if not ways:
        return refusal("incomplete", layer=name, role="matrices")
    kind, need = max(ways, key=lambda way: (len(way[1] & roles), -len(way[1] - roles)))
    if lacking := sorted(need - roles):
        return refusal("incomplete", layer=name, role=lacking[0])
    more = sorted(roles - need - kind.may)
    return refusal("mixed", layer=name, kind=kind.name, role=more[0])
