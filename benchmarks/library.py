"""How fast LoRA files are listed: `python -m benchmarks.library [--files 10000]`.

Makes a folder of files with the headers that trainers write (their numbers are a hole on the disk),
sidecars and pictures, and times the first listing, without an index; the listing of a program that
has just started, with one; the same after a file has changed; and finding one by its name. The
headers were written a moment ago, so that the first listing reads them from memory, not from disk.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sdlora.errors import LoraFileError
from sdlora.lora.library.library import Library

RANKS = (4, 8, 16, 32, 64, 128)
FOLDERS = 40
# the attention blocks of Stable Diffusion 1: diffusers' name, channels
BLOCKS = (
    *((f"down_blocks_{b}_attentions_{i}", 320 * 2**b) for b in range(3) for i in range(2)),
    ("mid_block_attentions_0", 1280),
    *((f"up_blocks_{b}_attentions_{i}", 320 * 2 ** (3 - b)) for b in range(1, 4) for i in range(3)),
)
WORDS = ("night", "sea", "snow", "house", "robot", "neon", "paint", "sky", "tall", "city", "rain")

Sizes = dict[str, tuple[int, int]]  # layer -> (in, out)
TABLES: dict[tuple[int, int], tuple[str, int]] = {}  # (layers, rank) -> what `tensors` gave


def text_layers() -> Sizes:
    """The 72 of CLIP's text encoder."""
    inner = {f"self_attn_{name}_proj": (768, 768) for name in ("q", "k", "v", "out")}
    inner |= {"mlp_fc1": (768, 3072), "mlp_fc2": (3072, 768)}
    return {
        f"lora_te_text_model_encoder_layers_{i}_{name}": sizes
        for i in range(12)
        for name, sizes in inner.items()
    }


def unet_layers(blocks: int, whole: bool) -> Sizes:
    """Of the first blocks, twelve layers each; or only the two that read the text."""
    found: Sizes = {}
    for name, width in BLOCKS[:blocks]:
        sizes = {f"transformer_blocks_0_attn2_to_{way}": (768, width) for way in "kv"}
        if whole:
            ways = ("attn1_to_q", "attn1_to_k", "attn1_to_v", "attn1_to_out_0")
            ways = (*ways, "attn2_to_q", "attn2_to_out_0")
            sizes |= {f"transformer_blocks_0_{way}": (width, width) for way in ways}
            sizes |= {"proj_in": (width, width), "proj_out": (width, width)}
            sizes |= {"transformer_blocks_0_ff_net_0_proj": (width, 8 * width)}
            sizes |= {"transformer_blocks_0_ff_net_2": (4 * width, width)}
        found |= {f"lora_unet_{name}_{layer}": size for layer, size in sizes.items()}
    return found


# what people train, and how often: 792, 576 and 30 to 96 tensors
MIXTURE: tuple[tuple[int, Callable[[random.Random], Sizes]], ...] = (
    (5, lambda rng: text_layers() | unet_layers(16, whole=True)),
    (2, lambda rng: unet_layers(16, whole=True)),
    (3, lambda rng: unet_layers(rng.randint(5, 16), whole=False)),
)
Ranks = Callable[[], int]  # of the next layer


def tensors(layers: Sizes, ranks: Ranks) -> tuple[str, int]:
    """(the entries of a header, the bytes they speak of)."""
    entries, at = {}, 0
    for layer, (width, out) in layers.items():
        rank = ranks()
        shapes = {"alpha": [], "lora_down.weight": [rank, width], "lora_up.weight": [out, rank]}
        for role, shape in shapes.items():
            end = at + 2 * (shape[0] * shape[1] if shape else 1)
            place = {"dtype": "F16", "shape": shape, "data_offsets": [at, end]}
            entries[f"{layer}.{role}"], at = place, end
    return json.dumps(entries, separators=(",", ":"))[1:-1], at


def metadata(rng: random.Random, name: str, rank: int) -> dict[str, str]:
    """Some kilobytes as kohya's scripts write them."""
    tags = {" ".join(rng.choices(WORDS, k=3)): rng.randint(1, 20) for _ in range(80)}
    return {
        "ss_output_name": f"{name} trained",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_base_model_version": "sd_v1",
        "ss_tag_frequency": json.dumps({"10_x": {"trigger word": 40, **tags}}),
        **{f"ss_setting_{i}": str(rng.random()) for i in range(60)},
    }


def write_lora(path: Path, rng: random.Random, own_layout: bool = False) -> None:
    """A file of the mixture. `own_layout`: with ranks that no other file has."""
    (make_layers,) = rng.choices([row[1] for row in MIXTURE], [row[0] for row in MIXTURE])
    layers, rank = make_layers(rng), rng.choice(RANKS)
    if own_layout:
        entries, body = tensors(layers, lambda: rng.randint(1, 128))
    else:
        if (key := (len(layers), rank)) not in TABLES:
            TABLES[key] = tensors(layers, lambda: rank)
        entries, body = TABLES[key]
    said = json.dumps(metadata(rng, path.stem, rank), separators=(",", ":"))
    header = f'{{"__metadata__":{said},{entries}}}'.encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + body)


def write_beside(path: Path, rng: random.Random) -> None:
    """What other programs leave beside a file, as often as not."""
    if rng.random() < 0.3:
        said = {"activation text": "trigger word", "preferred weight": 0.8, "sd version": "SD1"}
        path.with_suffix(".json").write_text(json.dumps(said), "utf-8")
    if rng.random() < 0.5:
        images = [{"url": f"https://example.com/{i}", "meta": {"seed": i}} for i in range(20)]
        said = {"trainedWords": ["trigger word"], "model": {"name": path.stem}, "images": images}
        path.with_suffix(".civitai.info").write_text(json.dumps(said), "utf-8")
    if rng.random() < 0.7:
        path.with_suffix(".preview.png").write_bytes(b"\x89PNG")


def make(root: Path, files: int, own_layout: bool = False) -> None:
    """A tree of `files`, the same every time."""
    rng = random.Random(1)
    for number in range(files):
        folder = root / f"folder {number % FOLDERS}"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"My_{rng.choice(WORDS)}_style-{number}.safetensors"
        write_lora(path, rng, own_layout)
        write_beside(path, rng)


def seconds(act: Callable[[], object]) -> float:
    """How long a call takes."""
    gc.collect()
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def timings(folder: Path, index: Path, turn: int) -> dict[str, float]:
    """Each once; a new Library is that of a program that has just started."""
    some = folder / "folder 0" / "My_neon_style-0.safetensors"
    index.unlink(missing_ok=True)
    found = {
        "cold": seconds(lambda: Library([folder], index).list()),
        "warm": seconds(lambda: Library([folder], index).list()),
    }
    write_lora(some, random.Random(turn))
    library = Library([folder], index)
    found["one_file_changed"] = seconds(library.list)
    found["listed_again"] = seconds(library.list)
    found["find_after_listing"] = seconds(lambda: library.find(some.stem.upper()))
    time.sleep(1)  # so that the folder is listed anew
    found["find_later"] = seconds(lambda: library.find(some.stem))
    found["no_such_name"] = seconds(lambda: _missing(library))
    return found


def _missing(library: Library) -> None:
    try:
        library.find("My_night_stile-1")
    except LoraFileError:
        return
    raise ValueError("a name was found that is not there")


def main() -> None:
    """Measure and print the medians as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--times", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sdlora-library-") as name:
        root = Path(name)
        make(root / "files", options.files)
        timed = [timings(root / "files", root / "index.db", i) for i in range(options.times)]
        kept = (root / "index.db").stat().st_size
        make(root / "own", few := max(1, options.files // 50), own_layout=True)
        own = seconds(lambda: Library([root / "own"]).list())
    from benchmarks.report import show  # not before: it loads torch, which a page does not

    median = {f"{key}_s": round(statistics.median(t[key] for t in timed), 4) for key in timed[0]}
    worst = {"cold_s_per_file_where_no_two_are_alike": round(own / few, 5)}
    show({"files": options.files, **median, **worst, "index_mib": round(kept / 2**20, 2)})


if __name__ == "__main__":
    main()
