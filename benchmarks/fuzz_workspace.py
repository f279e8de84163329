"""Damaged files of a workspace against whoever reads them: `python -m benchmarks.fuzz_workspace`.

Events, pid files and heartbeats, settings, rows of the queue and of the LoRA index, styles,
wildcard lists, LoRA sidecars and configurations of models are changed at random, in their bytes and
in the types of their values. Nothing may raise but the program's own errors, what is good beside
the damage has to come through, and what is left out has to be told. Ends with 1 where anything went
wrong. The same seed makes the same inputs.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import io
import json
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from benchmarks.report import asked, show
from sdlora.cli.runs import say_run
from sdlora.errors import SdloraError, SettingsError
from sdlora.events import Captioned, Done, Failed, SampleReady, Started, Step, Validated, to_line
from sdlora.jobs import run_folder
from sdlora.jobs.heartbeat import TIMES, Beat, Watch, read_beat, silence_and_idleness
from sdlora.jobs.queue import Job, Queue
from sdlora.lora.library.library import Library
from sdlora.models.registry import detect_family, preset_family
from sdlora.prompt import WildcardFolder
from sdlora.prompt.styles import read_styles
from sdlora.settings.image_request import ImageRequest
from sdlora.settings.train import TrainSettings
from sdlora.workspace import STARTER_MODEL, Workspace
from webui import markup
from webui.app_state import Run

ODD: tuple[Any, ...] = (
    *(None, True, False, "", "x", "\0", "\ud800", -1, 0, 0.5, 10**30, 10**400, 1e308, 1e999),
    *(float("nan"), [], {}, [[]], [1, "x"], {"a": []}, {"\ud800": None}, "é" * 500, "<b>&\n\x1b"),
)
IN_ROWS = (None, -1, 2**62, 1e999, "", "x", "\0", "many", b"", b"\xff\0", "é" * 500, "../..")
PIECES = ('"', ",", ";", "\t", "\n", "\r\n", "\0", "{", "}", "[", "]", ": ", "- ", "&a", "*a", "|")
Dice = random.Random


def damaged(content: bytes, dice: Dice) -> bytes:
    """Some bytes changed, lost or put in, or the end cut off; at times another content."""
    if dice.random() < 0.05:
        return dice.choice((b"", b"\0" * 99, b"[" * 99_999, b"\xff\xfe" + dice.randbytes(9)))
    data = bytearray(content)
    for _ in range(dice.randrange(1, 6)):
        place = dice.randrange(len(data) + 1)
        piece = dice.choice((dice.randbytes(dice.randrange(4)), dice.choice(PIECES).encode()))
        data[place : place + dice.randrange(3)] = piece
    return bytes(data[: dice.randrange(len(data) + 1)] if dice.random() < 0.1 else data)


def mistyped(table: Any, dice: Dice) -> Any:
    """The same table with values of wrong types in a few places, however deep."""
    table = copy.deepcopy(table)
    for _ in range(dice.randrange(1, 4)):
        places = [*_places(table)]
        if places:
            holder, key = dice.choice(places)
            holder[key] = copy.deepcopy(dice.choice(ODD))
    return table


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    if not isinstance(value, dict | list):
        return
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in pairs:
        yield value, key
        yield from _places(inner)


def events(dice: Dice, folder: Path) -> str:
    """Good lines among damaged ones: each good loss is there, each bad line counted."""
    some = (
        Started("steps", 9, {"a": "b"}), Step(1, 9, 0.5), SampleReady("a.png", 1, "a", 7, {"b": 1}),
        Captioned("a.png", "b", "c"), Validated(1, 0.5), Failed("a", "b"), Done("a", 1.0),
    )  # fmt: skip
    good = [Step(number, 9, loss=float(number)) for number in range(1, 5)]
    lines: list[bytes] = []
    for step in good:
        row = json.loads(to_line(dice.choice(some)))
        bad = json.dumps(mistyped(row, dice)).encode()
        bad = bad if dice.random() < 0.6 else damaged(bad, dice).replace(b"\n", b"")
        lines += [bad, to_line(step).encode()]
    (folder / run_folder.EVENTS_FILE).write_bytes(b"\n".join(lines) + b"\n")
    state = run_folder.read(folder)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        say_run("x", state, as_json=False)
        say_run("x", state, as_json=True)
    card = markup.run_card(Run(folder, state), "x")
    card.encode("utf-8")
    printed.getvalue().encode("utf-8", "backslashreplace")  # as the command does
    lost = [step for step in good if (step.step, step.loss) not in [*state.losses]]
    return f"lost: {lost[0]}" if lost else ""


def signs_of_life(dice: Dice, folder: Path) -> str:
    """A damaged pid file and heartbeat are of no living process, and raise nothing."""
    beat = json.dumps(mistyped(vars(Beat("1:x", 1, 1, 1.0, 1.0)), dice)).encode()
    (folder / run_folder.PID_FILE).write_bytes(damaged(b"1:123@abcdef", dice))
    (folder / run_folder.HEARTBEAT_FILE).write_bytes(
        damaged(beat, dice) if dice.random() < 0.5 else beat
    )
    read = read_beat(folder / run_folder.HEARTBEAT_FILE)
    watch = Watch(folder / run_folder.HEARTBEAT_FILE, TIMES)
    silent, idle = silence_and_idleness(
        folder / run_folder.HEARTBEAT_FILE, run_folder.owner(folder)
    )
    figures = [watch.silent_s, silent, idle, *([read.at, read.progress_at] if read else [])]
    if not all(type(figure) is float for figure in figures) or not watch.look():
        return f"a beat of wrong types: {read}"
    if run_folder.pid_alive(folder) or run_folder.read(folder).status != "failed":
        return "taken for a living process"
    return ""


def settings(dice: Dice, folder: Path) -> str:
    """Settings with one wrong value are refused by its name, or read."""
    kind = dice.choice((TrainSettings, ImageRequest))
    given = {"name": "a", "data": "b"} if kind is TrainSettings else {"prompt": "a"}
    good = kind.from_values(given).model_dump(mode="json")
    name, value = dice.choice([*good]), dice.choice(ODD)
    text = json.dumps({**good, name: value}).encode()
    is_whole = dice.random() < 0.7
    (folder / run_folder.SETTINGS_FILE).write_bytes(text if is_whole else damaged(text, dice))
    try:
        kind.load(folder / run_folder.SETTINGS_FILE)
    except SettingsError as error:
        str(error).encode("utf-8")
        return "" if not is_whole or name in error.fields or name in str(error) else (
            f"unnamed: {name} = {value!r:.40}: {error!s:.80}"
        )  # fmt: skip
    return ""


def queue_rows(dice: Dice, folder: Path) -> str:
    """Whatever stands in other rows, the good job is claimed, and nothing raises."""
    queue = Queue(folder / "jobs.db")
    names = ["first", "good", "last"]
    for name in names:
        queue.submit("generate", folder / "jobs" / name)
    columns = [name for name in Job.__dataclass_fields__ if name != "id"]
    with closing(sqlite3.connect(queue.database)) as connection, connection:
        for name in ("first", "last"):
            column, value = dice.choice(columns), dice.choice(IN_ROWS)
            row = f"jobs/{name}"
            with contextlib.suppress(sqlite3.IntegrityError, OverflowError):
                connection.execute(f"UPDATE jobs SET {column} = ? WHERE folder = ?", (value, row))
    for name in names:
        queue.job_of(folder / "jobs" / name)
    [*queue.latest("generate"), *queue.left_running_by_others("1:me"), queue.busy()]
    claimed: list[Job] = []
    while (job := queue.claim("1:me")) and len(claimed) < 9:
        claimed.append(job)
        run_folder.read(job.folder, queue)
        queue.finish(job, "done")
    return "" if folder / "jobs" / "good" in [job.folder for job in claimed] else "lost: the good"


def index_rows(dice: Dice, folder: Path) -> str:
    """A damaged index says nothing else than the files do."""
    lora_file(folder / "loras" / "good.safetensors")
    database = folder / "loras.db"
    (entry,) = Library([folder / "loras"], database).list()
    if dice.random() < 0.7:
        with closing(sqlite3.connect(database)) as connection, connection:
            rows = connection.execute("SELECT name FROM pragma_table_info('files')")
            columns = [name for (name,) in rows]
            column, value = dice.choice(columns), dice.choice(IN_ROWS)
            with contextlib.suppress(sqlite3.IntegrityError, OverflowError):
                connection.execute(f"UPDATE files SET {column} = ?", (value,))
    else:
        database.write_bytes(damaged(database.read_bytes(), dice))
    (again,) = Library([folder / "loras"], database).list()
    return "" if again.facts == entry.facts and again.rank == 2 else f"other facts: {again.facts}"


def lora_file(path: Path) -> None:
    """A LoRA of one layer for the starter model, of rank 2."""
    path.parent.mkdir(exist_ok=True)
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    halves = {"lora_down": np.zeros((2, 8), "f2"), "lora_up": np.zeros((8, 2), "f2")}
    save_file({f"{name}.{half}.weight": value for half, value in halves.items()}, path)


def sidecars(dice: Dice, folder: Path) -> str:
    """A LoRA beside damaged notes is as usable as without; what is not used is told."""
    lora_file(folder / "loras" / "good.safetensors")
    user = {"activation text": "zibo", "preferred weight": 0.7, "negative text": "bad",
            "sd version": "SD1", "notes": ["a", {"b": "c"}]}  # fmt: skip
    page = {"trainedWords": ["zibo", "a"], "baseModel": "SD 1.5", "model": {"name": "Zibo"}}
    is_table = True
    for ending, table in ((".json", user), (".civitai.info", page)):
        content = json.dumps(mistyped(table, dice)).encode()
        content = content if dice.random() < 0.7 else damaged(content, dice)
        (folder / "loras" / f"good{ending}").write_bytes(content)
        try:
            is_table &= isinstance(json.loads(content), dict)
        except (ValueError, RecursionError):
            is_table = False
    (entry,) = Library([folder / "loras"]).list()
    facts = entry.facts
    texts = "".join((facts.alias, facts.title, facts.negative_text, *facts.trigger_words))
    if facts.problem or facts.rank != 2:
        return f"lost: {facts.problem}"
    if not texts.isprintable():
        return f"steering letters: {texts!r:.80}"
    return "" if is_table or facts.notes else "unnamed: damaged notes"


def styles(dice: Dice, folder: Path) -> str:
    """Good rows beside bad ones are there, and each bad row is told."""
    good = {f"s{number}": f"{number}, a \"b\" c, 'd'" for number in range(4)}
    bad = (["", "no name", ""], ["x", "a", "b", "too many"], ["s0", "again", ""], ["", "", "", "y"])
    rows: list[list[str]] = [["name", "prompt", "negative_prompt"]]
    count = 0
    for name, prompt in good.items():
        rows.append([name, prompt, "n"])
        if dice.random() < 0.6:
            rows.append([*dice.choice(bad)])
            count += 1
    text = io.StringIO()
    csv.writer(text, delimiter=dice.choice((",", ";", "\t"))).writerows(rows)
    end = dice.choice(("", '"never closed, a\n', '"never closed\n\n\n'))
    content = (text.getvalue() + end).encode(dice.choice(("utf-8", "utf-8-sig", "utf-16")))
    is_whole = dice.random() < 0.6
    (folder / "styles.csv").write_bytes(content if is_whole else damaged(content, dice))
    try:
        read = read_styles(folder / "styles.csv")
    except SettingsError as error:
        return "" if not is_whole and "styles.csv" in str(error) else f"lost: {error}"
    lost = [name for name in good if name not in read or read[name].prompt != good[name]]
    if is_whole and lost:
        return f"lost: {lost[0]}"
    told = len(read.problems)
    return f"unnamed: {count} bad rows, {told} told" if is_whole and told < count else ""


def wildcard_lists(dice: Dice, folder: Path) -> str:
    """Lists beside damaged ones are there; a list that cannot be read is told."""
    lists = folder / "wildcards"
    lists.mkdir()
    (lists / "good.txt").write_text("red\nblue\n", encoding="utf-8")
    table = {"shoes": {"winter": ["boots"], "summer": ["a", "b"]}, "one": "word", "fine": ["x"]}
    wrong = {name: mistyped(value, dice) for name, value in table.items() if name != "fine"}
    content = json.dumps({**wrong, "fine": ["x"]}, allow_nan=False, default=str) if not _odd(
        wrong
    ) else json.dumps({"fine": ["x"]})  # fmt: skip
    is_whole = dice.random() < 0.6
    raw = content.encode() if is_whole else damaged(content.encode(), dice)
    suffix = dice.choice((".json", ".yaml", ".txt"))
    (lists / f"bad{suffix}").write_bytes(raw)
    found = WildcardFolder(lists)
    if list(found("good") or ()) != ["red", "blue"]:
        return "lost: good.txt"
    words = found("bad" if suffix == ".txt" else "fine")
    [found(name) for name in ("bad*", "shoes/winter", "shoes/*", "*", "**")]
    if is_whole and suffix != ".txt" and list(words or ()) != ["x"]:
        return f"lost: fine of bad{suffix}: {words!r:.80} {content!r:.120}"
    return "" if words is None or words or words.problems or not raw.strip() else "unnamed: bad"


def _odd(value: object) -> bool:
    """Whether JSON has no words for it."""
    try:
        json.dumps(value, allow_nan=False).encode()
        return "\\ud800" in json.dumps(value)
    except ValueError:
        return True


def models(dice: Dice, folder: Path) -> str:
    """A model with damaged configurations has a family or is refused by its name; the page can ask
    for its preset."""
    space = Workspace(folder)
    for part in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json"):
        path = space.models / "bad" / part
        path.parent.mkdir(parents=True, exist_ok=True)
        content = (STARTER_MODEL / part).read_bytes()
        if dice.random() < 0.5:
            content = json.dumps(mistyped(json.loads(content), dice)).encode()
        path.write_bytes(content if dice.random() < 0.6 else damaged(content, dice))
    if "bad" not in space.model_names() or not preset_family(space.model_source("bad")):
        return "lost: the model"
    try:
        detect_family(space.model_source("bad"))
    except SdloraError as error:
        str(error).encode("utf-8")
        return "" if "bad" in str(error) else f"unnamed: {error!s:.80}"
    return ""


READERS: tuple[Callable[[Dice, Path], str], ...] = (
    events, signs_of_life, settings, queue_rows, index_rows, sidecars, styles, wildcard_lists,
    models,
)  # fmt: skip


def fuzzed(count: int, seed: int, root: Path) -> tuple[Counter[str], list[str]]:
    """(inputs by reader, what went wrong)."""
    kinds: Counter[str] = Counter()
    wrong: list[str] = []
    for number in range(count):
        reader = READERS[number % len(READERS)]
        folder = root / "runs" / "x"
        folder.mkdir(parents=True)
        kinds[reader.__name__] += 1
        try:
            problem = reader(random.Random(f"{seed} {number}"), folder)
        except Exception as error:
            problem = f"traceback: {type(error).__name__}: {error!s:.200}"
        if problem:
            wrong.append(f"{reader.__name__} {number}: {problem}")
        shutil.rmtree(root / "runs")
    return kinds, wrong


def main() -> int:
    options = asked(__doc__, inputs=10_000, seed=0)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as root:
        kinds, wrong = fuzzed(options.inputs, options.seed, Path(root))
    print("\n".join(wrong[:30]))
    parts = Counter(line.split(": ")[1] for line in wrong)
    figures = {name: parts[name] for name in ("traceback", "lost", "unnamed")}
    show({**kinds, **figures, "wrong": len(wrong), "seconds": round(time.monotonic() - began)})
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
