"""Hostile LoRA files through the gate: `python -m benchmarks.gate [--files 10000] [--seed 0]`.

Well-formed files of every kind are damaged in structure and in values, then read, fitted and
blended into the starter model. Each must end as loaded or as a named refusal, with the model's
weights what they were. Whatever ends otherwise is kept in `--keep`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import save

from benchmarks.report import show
from sdlora.adapters import Blend
from sdlora.errors import LoraFileError
from sdlora.lora.format.errors import REFUSALS
from sdlora.lora.format.file import read_lora
from sdlora.models.base import ModelFamily
from sdlora.models.registry import open_family
from sdlora.workspace import STARTER_MODEL

LINEAR = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"  # (160,160)
CONV = "lora_unet_mid_block_resnets_0_conv1"  # (160,160,3,3)
NORM = "lora_unet_mid_block_resnets_0_norm1"  # (160,)
SIZE, RANK = 160, 4
PAIR = {"lora_down.weight": (RANK, SIZE), "lora_up.weight": (SIZE, RANK), "alpha": ()}
# Kind -> layer -> tensor -> shape
ORIGINALS: dict[str, dict[str, dict[str, tuple[int, ...]]]] = {
    "LoRA": {LINEAR: PAIR},
    "LoCon": {
        CONV: {
            "lora_down.weight": (RANK, SIZE, 1, 1),
            "lora_mid.weight": (RANK, RANK, 3, 3),
            "lora_up.weight": (SIZE, RANK, 1, 1),
            "alpha": (),
        }
    },
    "DoRA": {LINEAR: {**PAIR, "dora_scale": (SIZE, 1)}},
    "LoHa": {
        LINEAR: {f"hada_w{i}_a": (SIZE, RANK) for i in (1, 2)}
        | {f"hada_w{i}_b": (RANK, SIZE) for i in (1, 2)}
    },
    "LoKr": {LINEAR: {"lokr_w1": (4, 4), "lokr_w2": (40, 40)}},
    "GLoRA": {
        LINEAR: {
            "a1.weight": (SIZE, RANK),
            "a2.weight": (RANK, SIZE),
            "b1.weight": (SIZE, RANK),
            "b2.weight": (RANK, SIZE),
        }
    },
    "IA3": {LINEAR: {"weight": (SIZE,), "on_input": ()}},
    "OFT": {LINEAR: {"oft_blocks": (40, 4, 4), "alpha": ()}},
    "BOFT": {LINEAR: {"oft_blocks": (2, 40, 4, 4), "alpha": ()}},
    "full": {CONV: {"diff": (SIZE, SIZE, 3, 3), "diff_b": (SIZE,)}},
    "norm": {NORM: {"w_norm": (SIZE,), "b_norm": (SIZE,)}},
    "PEFT": {
        "unet.mid_block.attentions.0.proj_in": {
            "lora_A.weight": (RANK, SIZE, 1, 1),
            "lora_B.weight": (SIZE, RANK, 1, 1),
        }
    },
}
WORDS = ("", "x", "lora_unet_", "../../evil", "𝕏" * 9, "a" * 300, ".alpha", "bundle_emb.a.clip_l")
NUMBERS = (0, 1, -1, 2**31, 2**63, 10**30, 1.5, True, None, "1", [], {}, [-1], [2**40, 2**40])
VALUES = (math.nan, math.inf, -math.inf, 1e30, -1e30, 1e-40, 6e4)


def originals() -> list[bytes]:
    """A well-formed file of each kind, with small random numbers."""
    rng = torch.Generator().manual_seed(0)
    return [
        save(
            {
                f"{layer}.{tensor}": torch.randn(shape, generator=rng).mul(0.05).contiguous()
                for layer, tensors in layers.items()
                for tensor, shape in tensors.items()
            },
            {"ss_network_dim": "4", "lora_adapter_metadata": '{"unet.lora_alpha": 2}'},
        )
        for layers in ORIGINALS.values()
    ]


def _header(blob: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", blob[:8])
    return json.loads(blob[8 : 8 + length]), blob[8 + length :]


def _joined(header: object, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def _cut(blob: bytes, rng: random.Random) -> bytes:
    return blob[: rng.randrange(len(blob))] + rng.choice((b"", b"\0" * 9))


def _flip(blob: bytes, rng: random.Random) -> bytes:
    """A few bytes of the first thousand, where the header is."""
    bad = bytearray(blob)
    for _ in range(rng.randint(1, 4)):
        bad[rng.randrange(min(1000, len(bad)))] = rng.randrange(256)
    return bytes(bad)


def _length(blob: bytes, rng: random.Random) -> bytes:
    return struct.pack("<Q", rng.choice((0, 1, 2**24 + 1, 2**63, rng.randrange(5000)))) + blob[8:]


def _renamed(blob: bytes, rng: random.Random) -> bytes:
    header, body = _header(blob)
    old = rng.choice(list(header))
    word, at = rng.choice(WORDS), rng.randrange(len(old) + 1)
    new = rng.choice((word, old[:at] + word + old[at:], old[:at], old.swapcase()))
    return _joined({new if key == old else key: value for key, value in header.items()}, body)


def _dropped(blob: bytes, rng: random.Random) -> bytes:
    """A tensor less, its bytes taken out too."""
    header, body = _header(blob)
    names = [name for name in header if name != "__metadata__"]
    gone = rng.choice(names)
    first, end = header.pop(gone)["data_offsets"]
    for name in names:
        if name != gone and header[name]["data_offsets"][0] >= end:
            header[name]["data_offsets"] = [n - end + first for n in header[name]["data_offsets"]]
    return _joined(header, body[:first] + body[end:])


def _reshaped(blob: bytes, rng: random.Random) -> bytes:
    """The same numbers in another shape."""
    header, body = _header(blob)
    entry = header[rng.choice([name for name in header if name != "__metadata__"])]
    shape = [n for n in entry["shape"] if n != 1] or [1]
    rng.shuffle(shape)
    flat = [math.prod(shape[:-1]), shape[-1]]
    entry["shape"] = rng.choice((shape, flat, flat[::-1], [math.prod(shape)], [1, *shape]))
    return _joined(header, body)


def _grafted(blob: bytes, rng: random.Random) -> bytes:
    """A tensor takes the role it has in another kind, or in another naming."""
    header, body = _header(blob)
    old = rng.choice([name for name in header if name != "__metadata__"])
    layers = [(layer, role) for it in ORIGINALS.values() for layer in it for role in it[layer]]
    layer, role = rng.choice(layers)
    stem = rng.choice((layer, old.partition(".")[0]))
    return _joined({f"{stem}.{role}" if k == old else k: v for k, v in header.items()}, body)


def _field(blob: bytes, rng: random.Random) -> bytes:
    """One field of an entry, or one number of its shape, becomes something else."""
    header, body = _header(blob)
    entry = header[rng.choice([name for name in header if name != "__metadata__"])]
    field = rng.choice(("dtype", "shape", "data_offsets"))
    said = entry[field]
    if isinstance(said, list) and said and rng.random() < 0.6:
        said[rng.randrange(len(said))] = rng.choice((*NUMBERS, RANK, SIZE))
    elif rng.random() < 0.5 and field == "shape":
        rng.shuffle(said)
    else:
        entry[field] = rng.choice((*NUMBERS, "F16", "I64", "BF16", "BOOL"))
    return _joined(header, body)


def _metadata(blob: bytes, rng: random.Random) -> bytes:
    header, body = _header(blob)
    said = rng.choice(
        (*NUMBERS, "{", "[]", '{"unet.lora_alpha": [1]}', '{"unet.lora_alpha": 1e999}')
    )
    header["__metadata__"] = rng.choice((said, {"lora_adapter_metadata": said}, {"": said}))
    return _joined(header, body)


def _nested(blob: bytes, rng: random.Random) -> bytes:
    return _joined(rng.choice((b"[" * 9000, b'{"a":' * 9000, b"\xff\xfe{}", b'{"a":1,"a":1}')), b"")


def _values(blob: bytes, rng: random.Random) -> bytes:
    """Numbers that are not finite, or far too large or small, in the body."""
    header, body = _header(blob)
    bad = bytearray(body)
    for _ in range(rng.choice((1, 3, len(bad) // 4))):
        at = rng.randrange(len(bad) // 4) * 4
        bad[at : at + 4] = struct.pack("<f", rng.choice(VALUES))
    return _joined(header, bytes(bad))


def _noise(blob: bytes, rng: random.Random) -> bytes:
    header, body = _header(blob)
    return _joined(header, rng.choice((bytes(len(body)), rng.randbytes(len(body)))))


MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(_cut, _flip, _length, _renamed, _dropped, _reshaped, _grafted, _field, _metadata),
    *(_nested, _values, _noise),
)


def mutants(count: int, seed: int) -> Iterator[bytes]:
    """`count` damaged files, each with one to three kinds of damage; the same for the same seed."""
    files = originals()
    for number in range(count):
        rng = random.Random(f"{seed}-{number}")
        blob = rng.choice(files)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            try:
                blob = rng.choice(MUTATIONS)(blob, rng)
            except (ValueError, LookupError, TypeError, RecursionError, struct.error):
                break  # already too broken for the next kind of damage
        yield blob


def weights_hash(family: ModelFamily) -> str:
    """Of every bit of what a LoRA can change."""
    digest = hashlib.sha256()
    for part in family.components.values():
        for value in part.state_dict().values():
            digest.update(value.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def outcome(blob: bytes, path: Path, blend: Blend) -> str:
    """'loaded', or the short name of the refusal; any other error passes."""
    path.write_bytes(blob)
    try:
        blend.apply([(read_lora(path), 1.0, 1.0)])
    except LoraFileError as error:
        if error.code not in REFUSALS:
            raise
        return error.code
    finally:
        blend.clear()
    return "loaded"


def main() -> None:
    """Send the mutants through, and print what became of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for files that crash the gate")
    options = parser.parse_args()
    family = open_family(str(STARTER_MODEL), torch.float32, torch.device("cpu"))
    before, blend, ends = weights_hash(family), Blend(family), Counter[str]()
    process, began = psutil.Process(), time.monotonic()
    resting = peak = largest = 0
    with tempfile.TemporaryDirectory() as folder:
        for number, blob in enumerate(mutants(options.files, options.seed)):
            largest = max(largest, len(blob))
            try:
                ends[outcome(blob, Path(folder) / "mutant.safetensors", blend)] += 1
            except Exception as error:  # noqa: BLE001 - the crashes are what is looked for
                ends[f"CRASH {type(error).__name__}"] += 1
                if options.keep:
                    options.keep.mkdir(parents=True, exist_ok=True)
                    (options.keep / f"{options.seed}-{number}.safetensors").write_bytes(blob)
            held = process.memory_info().rss
            resting = resting or held
            peak = max(peak, held)
    show(
        {
            "files": options.files,
            "ends": dict(ends.most_common()),
            "weights unchanged": weights_hash(family) == before,
            "extra memory, MiB": round((peak - resting) / 2**20, 1),
            "allowed, MiB": round((2 * largest) / 2**20 + 64, 1),
            "seconds": round(time.monotonic() - began, 1),
        }
    )


if __name__ == "__main__":
    main()
