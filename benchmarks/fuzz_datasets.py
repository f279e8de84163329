"""Damaged side data against the reader of picture folders: no traceback, no good picture lost, and
nothing left out unnamed.

`python -m benchmarks.fuzz_datasets` mutates the EXIF of 12,000 pictures whose pixels are whole, and
10,000 caption files, tables and JSON files. It prints what went wrong and exits with 1 if anything
did. The same seed makes the same inputs.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import random
import struct
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image, TiffImagePlugin

from sdlora.data.folder import FolderReading, open_captions, scan_folder
from sdlora.errors import DataError

BATCH = 300
SIZE = (24, 16)
TURNED = (16, 24)  # by orientation 6
CAPTIONS = (
    "zibo, a red ball", "zibo, ein Häuschen am Meer, später", "зибо, красный мяч, море",
    "zibo、赤いボール, 夜の海", "ज़ीबो, लाल गेंद, समुद्र", "zibo, כדור אדום, ים", "zibo, a 😀 ball",
)  # fmt: skip
ENCODINGS = (
    "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be",
)  # fmt: skip
Counts = Counter[str]


def exif_of(rng: random.Random) -> tuple[bytes, bool]:
    """(EXIF that was damaged, whether its orientation, 6, can still be read)."""
    raw = bytearray(_sound_exif())
    first = struct.unpack_from("<I", raw, 4)[0] + 2
    rows = range(first, first + 12 * struct.unpack_from("<H", raw, first - 2)[0], 12)
    place = next(row for row in rows if struct.unpack_from("<H", raw, row)[0] == 0x0112)
    needed = {*range(8), first - 2, first - 1, *range(place, place + 12)}
    before = {byte for row in rows if row < place for byte in (row, row + 1)}
    touched: set[int] = set()
    for _ in range(rng.randrange(1, 5)):
        row = rng.choice(rows)
        at, value = rng.choice((
            (row + 2, struct.pack("<H", rng.choice((0, 1, 2, 5, 7, 12, 13, 255)))),
            (row + 4, struct.pack("<I", rng.choice((0, 1, 2, 9, 65_535, 2**31, 2**32 - 1)))),
            (row + 8, struct.pack("<I", rng.choice((0, 7, len(raw) - 1, 10**6, 2**32 - 1)))),
            (rng.randrange(len(raw)), rng.randbytes(1)),
        ))  # fmt: skip
        raw[at : at + len(value)] = value
        touched |= {*range(at, at + len(value))}
    if rng.random() < 0.2:
        del raw[rng.randrange(8, len(raw)) :]
        touched |= {*range(len(raw), max(rows) + 12)}
    return bytes(raw), not touched & (needed | before)


def _sound_exif() -> bytes:
    exif = Image.Exif()
    exif.endian = "<"
    exif[0x010F], exif[0x0110], exif[0x0131] = "Maker", "Model", "Program 1.0"
    exif[0x0112] = 6
    exif[0x011A] = exif[0x011B] = TiffImagePlugin.IFDRational(72, 1)
    exif[0x0128] = 2
    exif.get_ifd(0x8769).update({0x829A: TiffImagePlugin.IFDRational(1, 60), 0x9286: b"a comment"})
    exif.get_ifd(0x8825).update({1: "N", 2: (1.0, 2.0, 3.0)})
    return exif.tobytes().removeprefix(b"Exif\0\0")


def _saved(kind: str, **extras: object) -> bytes:
    with io.BytesIO() as file:
        Image.linear_gradient("L").resize(SIZE).convert("RGB").save(file, kind, **extras)
        return file.getvalue()


def jpeg(exif: bytes) -> bytes:
    """A JPEG with these bytes as its EXIF, and no resolution of its own."""
    whole = _saved("JPEG")
    segment = b"Exif\0\0" + exif
    length = struct.unpack_from(">H", whole, 4)[0]  # of the JFIF segment, which is left out
    marker = b"\xff\xe1" + struct.pack(">H", len(segment) + 2)
    return whole[:2] + marker + segment + whole[4 + length :]


def png(exif: bytes) -> bytes:
    """A PNG with these bytes as its eXIf chunk."""
    whole, body = _saved("PNG"), b"eXIf" + exif
    chunk = struct.pack(">I", len(exif)) + body + struct.pack(">I", zlib.crc32(body))
    return whole[:33] + chunk + whole[33:]


def webp(exif: bytes) -> bytes:
    """A WebP with these bytes as its EXIF chunk."""
    return _saved("WEBP", exif=exif)


def avif(exif: bytes) -> bytes:
    """An AVIF whose sound EXIF is overwritten by these bytes; its orientation is kept elsewhere."""
    whole, mark = _saved("AVIF", exif=_unturned()), _unturned()
    place = whole.find(mark)
    piece = exif[: len(mark)]
    return whole[:place] + piece + whole[place + len(piece) :]


def _unturned() -> bytes:
    exif = Image.Exif()
    exif.load(_sound_exif())
    del exif[0x0112]
    return exif.tobytes().removeprefix(b"Exif\0\0")


MAKERS: dict[str, Callable[[bytes], bytes]] = {
    "jpg": jpeg, "png": png, "webp": webp, "avif": avif,
}  # fmt: skip


def fuzz_exif(count: int, seed: int, folder: Path) -> Counts:
    """Read `count` pictures of whole pixels and damaged EXIF; what went wrong, by kind."""
    rng, counts = random.Random(seed), Counter[str]()
    for start in range(0, count, BATCH):
        place = folder / f"exif-{start}"
        place.mkdir()
        readable: set[str] = set()
        for number in range(start, min(count, start + BATCH)):
            kind = list(MAKERS)[number % len(MAKERS)]
            exif, turned = exif_of(rng)
            name = f"{number:06}.{kind}"
            (place / name).write_bytes(MAKERS[kind](exif))
            (place / name).with_suffix(".txt").write_text("zibo")
            readable |= {name} if turned and kind != "avif" else set()
            counts["inputs"] += 1
        counts += _outcome(place, readable)
    return counts


def _outcome(place: Path, readable: set[str]) -> Counts:
    counts = Counter[str]()
    try:
        examples, problems = scan_folder(place)
    except Exception as error:
        counts[f"traceback: {type(error).__name__}"] += 1
        return counts
    sizes = {example.image.name: example.size for example in examples}
    named = {problem.path.name for problem in problems}
    pictures = {file.name for file in place.iterdir() if file.suffix != ".txt"}
    counts["named"] = len(named & sizes.keys())
    counts["good pictures lost"] = len(pictures - sizes.keys())
    counts["left out unnamed"] = len(pictures - sizes.keys() - named)
    counts["not turned"] = sum(sizes.get(name) != TURNED for name in readable)
    return counts


def fuzz_captions(count: int, seed: int, folder: Path) -> Counts:
    """Read `count` folders of three pictures with a damaged or oddly encoded caption file each."""
    rng, counts = random.Random(seed), Counter[str]()
    for name in ("a", "b", "c"):
        Image.new("RGB", (8, 8), "teal").save(folder / f"{name}.png")
    for _ in range(count):
        file, raw, expected = _case(rng)
        (folder / file).write_bytes(raw)
        counts["inputs"] += 1
        counts += _caption_outcome(folder, folder / file, expected)
        (folder / file).unlink()
    return counts


def _caption_outcome(folder: Path, file: Path, expected: dict[str, str]) -> Counts:
    counts = Counter[str]()
    try:
        examples, problems = scan_folder(folder, FolderReading(missing="trigger"))
        captions = open_captions(folder)
        sources = {captions.read(picture).source for picture in captions.pictures}
    except DataError:
        counts["refused"] += 1
        return counts
    except Exception as error:
        counts[f"traceback: {type(error).__name__}"] += 1
        return counts
    learnt = {example.image.name: example.caption for example in examples}
    wrong = [name for name, text in expected.items() if learnt.get(name) != text]
    counts["good captions lost"] = len(wrong)
    named = file in {problem.path for problem in problems}
    counts["named"] = named
    counts["left out unnamed"] = file not in sources and not named
    counts["unprintable"] = sum(_unprintable(text) for text in learnt.values())
    return counts


def _unprintable(text: str) -> bool:
    return any(0xD800 <= ord(c) <= 0xDFFF or c == "\0" for c in text)


def _case(rng: random.Random) -> tuple[str, bytes, dict[str, str]]:
    """(file name, its bytes, captions that must be learnt)."""
    file = rng.choice(list(_WRITERS))
    texts = {f"{name}.png": rng.choice(CAPTIONS) for name in ("a", "b", "c")}
    raw_lines = _WRITERS[file](texts)
    only = not file.startswith("meta")
    whole = {"a.png": texts["a.png"]} if only else texts
    if rng.random() < 0.3:
        encoding = rng.choice(ENCODINGS)
        return file, "\n".join(raw_lines).encode(encoding), whole
    if file == "metadata.jsonl":  # one line is damaged, in ASCII: the others are read
        place = rng.randrange(len(raw_lines))
        raw_lines[place] = _damaged_line(raw_lines[place], rng)
        kept = {name: text for n, (name, text) in enumerate(texts.items()) if n != place}
        return file, "\n".join(raw_lines).encode(), kept
    return file, _damaged("\n".join(raw_lines).encode(rng.choice(ENCODINGS)), rng), {}


def _damaged_line(line: str, rng: random.Random) -> str:
    """JSON that is none any more, or is of another shape."""
    cut = rng.randrange(len(line))
    values = (None, 5, True, [], {}, {"en": "x"}, ["one", 2], float("nan"), "nan", "\ud83d", 1e400)
    row = {"file_name": rng.choice(("", "gone.png", "../a.png", "x" * 300, "b\0.png", 5))}
    row["text"] = rng.choice(values)
    return rng.choice((line[:cut], line[cut:], json.dumps(row), "[" * 5000, "null", "\ud83d"[:0]))


def _damaged(raw: bytes, rng: random.Random) -> bytes:
    data = bytearray(raw)
    for _ in range(rng.randrange(1, 6)):
        place = rng.randrange(len(data) + 1)
        change = rng.randrange(5)
        if change == 0:
            data[place : place + 1] = rng.randbytes(1)
        elif change == 1:
            data[place:place] = rng.choice((b"\0", b'"', b",", b";", b"\r", b"\xff", b"{", b"\\("))
        elif change == 2:
            del data[place : place + rng.randrange(1, 9)]
        elif change == 3:
            data[place:place] = rng.randbytes(rng.randrange(1, 40))
        else:
            del data[place:]
    return bytes(data)


def _table(texts: dict[str, str]) -> list[str]:
    return ["file_name,text", *(f'{name},"{text}"' for name, text in texts.items())]


_WRITERS: dict[str, Callable[[dict[str, str]], list[str]]] = {
    "a.txt": lambda texts: [texts["a.png"]],
    "a.caption": lambda texts: [texts["a.png"]],
    "a.png.txt": lambda texts: [texts["a.png"]],
    "a.json": lambda texts: [json.dumps({"caption": texts["a.png"]}, ensure_ascii=False)],
    "metadata.csv": _table,
    "metadata.jsonl": lambda texts: [
        json.dumps({"file_name": name, "text": text}) for name, text in texts.items()
    ],
    "meta_cap.json": lambda texts: [
        json.dumps({name[0]: {"caption": text} for name, text in texts.items()})
    ],
}
FINE = ("inputs", "named", "refused")


def failures(counts: Counts) -> dict[str, int]:
    """What must not happen, and how often it did."""
    return {kind: count for kind, count in counts.items() if count and kind not in FINE}


def report(title: str, counts: Counts, seconds: float) -> Iterator[str]:
    """The counts as lines."""
    wrong = failures(counts)
    yield f"{title}: {counts['inputs']:,} inputs in {seconds:.0f} s, {counts['named']:,} named"
    tracebacks = sum(n for kind, n in wrong.items() if kind.startswith("traceback"))
    yield f"  tracebacks: {tracebacks}"
    yield from (f"  {kind}: {count}" for kind, count in sorted(wrong.items()))
    yield "  " + ("nothing lost, nothing left out unnamed" if not wrong else "FAILED")


def main() -> int:
    """Run both and print what went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=12_000)
    parser.add_argument("--captions", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # Pillow's, of the EXIF that was damaged on purpose
    print(f"{platform.machine()}, seed {options.seed}")
    wrong = False
    for title, fuzz, count in (
        ("damaged EXIF", fuzz_exif, options.pictures),
        ("damaged captions", fuzz_captions, options.captions),
    ):
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            counts = fuzz(count, options.seed, Path(folder))
            print("\n".join(report(title, counts, time.monotonic() - began)), flush=True)
            wrong |= bool(failures(counts))
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
