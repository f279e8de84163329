"""Damaged and strange picture texts through the reader: `python -m benchmarks.fuzz_infotexts`.

A1111's parameters, the JSON of InvokeAI, SwarmUI, Fooocus and NovelAI, ComfyUI's graphs and EXIF
comments are changed at random, then read and made into requests. Some changes may cost anything
but a traceback; others leave the good values whole, which have to come back, and what is added has
to be named. Ends with 1 where a traceback, a lost value or an unnamed addition was found.
"""

from __future__ import annotations

import copy
import io
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from benchmarks.report import asked, show
from sdlora.errors import DataError
from sdlora.image_metadata.a1111 import ImageMetadata
from sdlora.image_metadata.reader import parse_infotext, read_parameters
from sdlora.image_metadata.to_request import request_of
from sdlora.lora.library.library import Library
from sdlora.workspace import Workspace

TESTS = Path(__file__).parent.parent / "tests"
HEADER = 33  # bytes of a PNG before its second chunk
SLOW_S = 5.0  # of one text, on any machine
LINE = (
    "Steps: 20, Sampler: Euler a, Schedule type: Karras, CFG scale: 7, Seed: 156680208700286, "
    'Size: 512x768, Lora hashes: "neon: 1a2b3c4d5e6f", Version: v1.10.1'
)
WANTED = {"Steps": "20", "Sampler": "Euler a", "Seed": "156680208700286", "Size": "512x768"}
PIECES = (
    *("\n", "\r\n", ",", ": ", '"', "\\", "{", "}", "[", "]", "\0", "猫", "\ud800", "Steps: 1, "),
    *("Negative prompt:", "Template: ", "Hashes: {", "Civitai resources: [", "Hires resize: 0x0"),
    *("<lora:a:1>", "Seed: " + "9" * 400, "Size: x", "Lora hashes: ", "a: b, c: d, e: f"),
)
ODD: tuple[Any, ...] = (
    *(None, True, "", "x", -1, 0.5, 1e999, float("nan"), 10**400, [], {}, [[]], [["1", 0]]),
    *({"lora": 1, "on": "x"}, [{"name": 1, "strength": []}], ["3", 0], ["none", 0], [3, "x"]),
    {"__value__": [{"name": "a", "strength": "b"}]},
)


@dataclass(frozen=True)
class Case:
    """A text, or a picture; the fields and the words of the prompt that have to come back, and the
    names that have to be told."""

    kind: str
    text: str = ""
    picture: bytes = b""
    suffix: str = ".png"
    fields: Mapping[str, str] = field(default_factory=dict)
    prompt: str = ""
    named: tuple[str, ...] = ()


def originals() -> dict[str, dict[str, Any]]:
    """Other programs' records, as the tests have them."""
    if str(TESTS) not in sys.path:
        sys.path.insert(0, str(TESTS))
    import recorded_metadata

    names = ("INVOKE", "INVOKE_2", "SWARM", "FOOOCUS", "NOVELAI", "COMFY", "COMFY_FLUX", "WORKFLOW")
    return {name: getattr(recorded_metadata, name) for name in names}


def broken_text(dice: random.Random) -> Case:
    """A1111's text with pieces put in, taken out and doubled."""
    text = f"a cat <lora:neon:0.8>\nNegative prompt: bad\n{LINE}"
    for _ in range(dice.randint(1, 6)):
        begin, end = sorted(dice.choices(range(len(text) + 1), k=2))
        change = dice.randrange(3)
        middle = (dice.choice(PIECES), "", text[begin:end] * 2)[change]
        text = text[:begin] + middle + text[begin if change == 0 else end :]
    return Case("broken text", text)


def moved_text(dice: random.Random) -> Case:
    """A1111's text in another arrangement, with fields and lines of others."""
    odd = f"Odd {dice.randrange(10**6)}"
    more = dice.choice((f"{odd}: 1", f'{odd}: "a, b: c"', f"{odd}: [1, {{}}]"))
    line = f"{LINE}, {more}" if dice.random() < 0.5 else LINE
    breaks = dice.choice((("\n", "\n"), ("\r\n", "\r\n"), (" ", " "), ("\n", " "), (" ", "\n")))
    text = f"a cat{breaks[0]}Negative prompt: bad{breaks[1]}{line}"
    behind = dice.choice(("", "\n", f"\n{odd} behind: x, y: z", "\nTemplate: a {b|c}, d: e, f: g"))
    named = [odd] if line != LINE else []
    named += (
        ["Template"] if "Template" in behind else [f"{odd} behind"] if "behind" in behind else []
    )
    return Case("moved text", text + behind, fields=WANTED, prompt="a cat", named=tuple(named))


def broken_record(dice: random.Random) -> Case:
    """Any record with values of wrong types anywhere."""
    record = copy.deepcopy(dice.choice([*originals().values()]))
    for _ in range(dice.randint(1, 5)):
        places = [*_places(record)]
        if not places:
            break
        holder, key = dice.choice(places)
        action = dice.randrange(4)
        if action == 0 and isinstance(holder, dict):
            del holder[key]
        elif action == 1 and isinstance(holder, dict):
            holder[str(dice.choice((*"12345", "lora", "text", "model", "nodes")))] = holder[key]
        else:
            holder[key] = copy.deepcopy(dice.choice(ODD))
    return Case("broken record", json.dumps(record))


def added_to_record(dice: random.Random) -> Case:
    """A program's record with a key of its own and wrong types where they do no harm."""
    name = dice.choice(("INVOKE", "SWARM", "FOOOCUS", "NOVELAI"))
    record = copy.deepcopy(originals()[name])
    values = record["sui_image_params"] if name == "SWARM" else record
    steps, prompt = (
        str(values["steps"]),
        values["prompt" if "prompt" in values else "positive_prompt"],
    )
    odd = f"odd_{dice.randrange(10**6)}"
    values[odd] = dice.choice((1, "x", [1], {"a": 1}, "\ud800", 1e999))
    values[dice.choice(("cfg_scale", "scale", "cfgscale", "guidance_scale", "loras", "vae"))] = (
        dice.choice(ODD)
    )
    known = prompt.partition(" ")[0] if name != "NOVELAI" else ""
    return Case("added to record", json.dumps(record), fields={"Steps": steps}, prompt=known,
                named=(odd,))  # fmt: skip


def added_to_graph(dice: random.Random) -> Case:
    """ComfyUI's graph with an unknown node before the sampler and anything apart from it."""
    record = copy.deepcopy(originals()["COMFY"])
    odd = f"Odd Node {dice.randrange(10**6)}"
    inputs = {f"odd_{i}": copy.deepcopy(dice.choice(ODD)) for i in range(dice.randrange(4))}
    side = dice.choice(("model", "positive", "latent_image"))
    record["o"] = {"class_type": odd, "inputs": {**inputs, side: record["3"]["inputs"][side]}}
    record["3"]["inputs"][side] = ["o", 0]
    for number in range(dice.randrange(20)):
        linked = [f"x{dice.randrange(20)}", 0]
        record[f"x{number}"] = {"class_type": "Any", "inputs": {"a": linked, "b": dice.choice(ODD)}}
    if dice.random() < 0.3:
        record["o"]["inputs"]["cycle"] = ["3", 0]
    fields = {"Steps": "20", "Seed": "156680208700286", "Size": "512x768", "Sampler": "euler"}
    return Case("added to graph", json.dumps(record), fields=fields, prompt="scenery",
                named=(odd,))  # fmt: skip


def deep_or_huge(dice: random.Random) -> Case:
    """Chains, cycles and lists far beyond what programs write."""
    many = dice.choice((10, 1000, 5000))
    sampler = originals()["COMFY"]["3"]
    chain = {
        f"c{i}": {"class_type": "Chain", "inputs": {"value": [f"c{(i + 1) % many}", 0],
                  "lora_name": [f"c{(i * 7 + 1) % many}", 0], "strength_model": ["c0", 0]}}
        for i in range(many)
    }  # fmt: skip
    inputs = {name: ["c0", 0] for name in sampler["inputs"]}
    graph = {**chain, "3": {"class_type": "KSampler", "inputs": inputs}}
    texts = (
        json.dumps(graph), "[" * many, '{"a":' * many, f'{{"3": {"[" * many}1{"]" * many}}}',
        "a: b, " * many, "Steps: 1, Seed: 2, " * many, f"a\n{LINE}\n" + "x\n" * many,
        json.dumps({**originals()["INVOKE"], "positive_prompt": "(" * many + "a)1.1++" * many}),
    )  # fmt: skip
    return Case("deep or huge", dice.choice(texts))


def picture(dice: random.Random) -> Case:
    """A picture whose comment is encoded in one of the ways that there are, beside broken EXIF."""
    text = f"a cat\nNegative prompt: bad\n{LINE}"
    encoded = dice.choice((
        b"UNICODE\0" + text.encode("utf-16-be"), b"UNICODE\0" + text.encode("utf-16-le"),
        b"UNICODE\0" + text.encode("utf-16"), b"UNICODE\0" + text.encode(),
        b"ASCII\0\0\0" + text.encode(), b"\0" * 8 + text.encode(), text.encode(),
    ))  # fmt: skip
    suffix = dice.choice((".png", ".jpg", ".webp"))
    exif, data = Image.Exif(), io.BytesIO()
    exif.get_ifd(0x8769)[0x9286] = encoded
    exif[dice.choice((0x010E, 0x010F, 0x013B, 0x0131))] = dice.choice(("x", "prompt:{", "\0", "{"))
    image, kind = Image.new("RGB", (8, 8)), {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}[suffix]
    if suffix != ".png":
        image.save(data, kind, exif=exif)
    else:
        info = PngInfo()
        info.add_itxt("parameters", text)
        info.add(b"eXIf", bytes(dice.randrange(256) for _ in range(dice.randrange(40))))
        info.add_text("workflow", dice.choice(("{", "[]", "null", '{"nodes": [1], "links": [2]}')))
        image.save(data, kind, pnginfo=info)
    whole = data.getvalue()
    if suffix == ".png" and dice.random() < 0.3:
        whole = whole[:HEADER] + b"\0\0\0\1pHYskXXXX" + whole[HEADER:]  # a damaged chunk
    return Case("picture", picture=whole, suffix=suffix, fields=WANTED, prompt="a cat")


def broken_picture(dice: random.Random) -> Case:
    """A picture with any bytes changed."""
    case = picture(dice)
    data = bytearray(case.picture[: dice.choice((10**6, dice.randrange(len(case.picture))))])
    for _ in range(dice.randrange(8) if data else 0):
        data[dice.randrange(len(data))] = dice.randrange(256)
    return Case("broken picture", picture=bytes(data), suffix=case.suffix)


MAKERS: tuple[tuple[Callable[[random.Random], Case], int], ...] = (  # and how often of 100
    *((broken_text, 20), (moved_text, 15), (broken_record, 25), (added_to_record, 12)),
    *((added_to_graph, 12), (deep_or_huge, 1), (picture, 8), (broken_picture, 7)),
)


def cases(count: int, seed: int) -> Iterator[Case]:
    """So many cases; the same for the same seed."""
    makers = [maker for maker, share in MAKERS for _ in range(share)]
    for number in range(count):
        dice = random.Random(f"{seed} {number}")
        yield dice.choice(makers)(dice)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(holder, key or index) of everything in a JSON value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(pairs):
        yield value, key
        if isinstance(inner, (dict, list)):
            yield from _places(inner)


def outcome(case: Case, workspace: Workspace, library: Library) -> str:
    """Empty when all is well; else what went wrong: 'traceback', 'lost', 'unnamed' or 'slow', and
    of what."""
    began = time.process_time()
    try:
        recalled = _read(case, workspace)
        values, problems = request_of(recalled, library, workspace)
    except DataError as error:
        return f"lost: {error}" if case.fields else ""
    except Exception as error:
        return f"traceback: {type(error).__name__}: {error}"
    lost = [f"{k}: {v}" for k, v in case.fields.items() if recalled.fields.get(k) != v]
    if lost or not str(values.get("prompt", "")).startswith(case.prompt):
        return f"lost: {', '.join(lost) or case.prompt}"
    told = "\n".join(problems)
    unnamed = [name for name in case.named if name not in told]
    if unnamed:
        return f"unnamed: {', '.join(unnamed)}"
    taken = time.process_time() - began
    return f"slow: {taken:.1f} s" if taken > SLOW_S else ""


def _read(case: Case, workspace: Workspace) -> ImageMetadata:
    if not case.picture:
        return parse_infotext(case.text)
    path = workspace.root / f"fuzz{case.suffix}"
    path.write_bytes(case.picture)
    return read_parameters(path)


def fuzzed(count: int, seed: int, root: Path) -> tuple[Counter[str], list[tuple[Case, str]]]:
    """(cases by kind, those that went wrong with what did)."""
    workspace = Workspace.open(root)
    library = Library.for_workspace(workspace)
    kinds: Counter[str] = Counter()
    wrong: list[tuple[Case, str]] = []
    for case in cases(count, seed):
        kinds[case.kind] += 1
        if problem := outcome(case, workspace, library):
            wrong.append((case, problem))
    return kinds, wrong


def main() -> int:
    options = asked(__doc__, texts=10_000, seed=0)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as root:
        kinds, wrong = fuzzed(options.texts, options.seed, Path(root))
    found = Counter(problem.partition(":")[0] for _, problem in wrong)
    for case, problem in wrong[:20]:
        print(f"{case.kind}: {problem[:200]}\n    {(case.text or case.picture.hex())[:400]!r}")
    figures: dict[str, object] = {
        **kinds, "tracebacks": found["traceback"], "good inputs lost": found["lost"],
        "additions not named": found["unnamed"], "slow": found["slow"],
        "seconds": round(time.monotonic() - began),
    }  # fmt: skip
    show(figures)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
