"""What can be wrong in a workspace: one small function each, and what has to be told of it.

Every poison meets a workspace that has a good one of everything beside it (`benchmarks.poisoned`).
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import zipfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from sdlora.jobs import run_folder
from sdlora.jobs.queue import Queue
from sdlora.workspace import Workspace

NOT_UTF8 = os.fsdecode(b"caf\xe9")
SHOWN = "caf\xe9"  # how that name is shown
POISONED = "poisoned"  # the name of whatever is damaged


@dataclass(frozen=True)
class Place:
    """A workspace, and the folders of the run, the request and the training that are poisoned. The
    run has ended; the others wait."""

    space: Workspace
    queue: Queue
    run: Path
    request: Path | None
    training: Path | None

    @property
    def folders(self) -> tuple[Path, ...]:
        """Those of all poisoned work."""
        return tuple(filter(None, (self.run, self.request, self.training)))


Act = Callable[[Place], object]


@dataclass(frozen=True)
class Poison:
    """`named` has to be told by the page, the list of runs or the queue. Where it is empty,
    `harmless` says why nothing has to be told."""

    act: Act
    named: str = ""
    harmless: str = ""
    loses_queue: bool = False  # what waits is gone with it; what is submitted later has to be done
    refused: bool = False  # the program does not start on it, and says the name


def removed(path: Path) -> Path:
    """The path, with nothing there any more."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    return path


def in_runs(file: str, content: bytes) -> Act:
    """A file of every poisoned run holds `content`."""
    return lambda place: [removed(folder / file).write_bytes(content) for folder in place.folders]


def folder_in_runs(file: str) -> Act:
    """A folder lies where a file of every poisoned run belongs."""
    return lambda place: [removed(folder / file).mkdir() for folder in place.folders]


def loop_in_runs(file: str) -> Act:
    """A link to itself lies there: nobody can open it, not even root."""
    return lambda place: [removed(folder / file).symlink_to(file) for folder in place.folders]


def gone_from_runs(file: str) -> Act:
    """The file is not there."""
    return lambda place: [removed(folder / file) for folder in place.folders]


def events(*rows: object) -> Act:
    """Lines of JSON, as another program would write them."""
    return in_runs(run_folder.EVENTS_FILE, "".join(json.dumps(row) + "\n" for row in rows).encode())


def at(path: str, content: bytes) -> Act:
    """A file of the workspace holds `content`."""

    def act(place: Place) -> None:
        file = removed(place.space.root / path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)

    return act


def folder_at(path: str) -> Act:
    """A folder lies there."""
    return lambda place: removed(place.space.root / path).mkdir(parents=True)


def link_at(path: str, target: str) -> Act:
    """A link lies there."""

    def act(place: Place) -> None:
        file = removed(place.space.root / path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.symlink_to(target)

    return act


def in_queue(column: str, value: object) -> Act:
    """A column of every poisoned job holds `value`."""

    def act(place: Place) -> None:
        with closing(sqlite3.connect(place.queue.database)) as connection, connection:
            for folder in place.folders[1:]:
                row = folder.relative_to(place.space.root).as_posix()
                # one value each, for the folders have to differ
                one = f"{value}/{folder.name}" if column == "folder" else value
                given = value if isinstance(value, bytes) and folder == place.request else one
                connection.execute(f"UPDATE jobs SET {column} = ? WHERE folder = ?", (given, row))

    return act


def nulls_in_queue(place: Place) -> None:
    """The queue's table of a program that allows NULL, with rows of nothing else."""
    with closing(sqlite3.connect(place.queue.database)) as connection, connection:
        connection.executescript(
            "CREATE TABLE other AS SELECT * FROM jobs; DROP TABLE jobs;"
            "ALTER TABLE other RENAME TO jobs;"
            "INSERT INTO jobs (id) VALUES (NULL), (0);"
            "INSERT INTO jobs (id, status, kind) VALUES (-1, 'queued', 'train'), "
            "(-2, 'running', NULL), ('x', 'queued', 'generate');"
        )


def emptied_queue(content: bytes | None) -> Act:
    """The queue's file is gone, or something else."""

    def act(place: Place) -> None:
        for file in place.space.root.glob("jobs.db*"):
            file.unlink()
        if content is not None:
            place.queue.database.write_bytes(content)

    return act


def zip_of_folders(place: Place) -> None:
    """A set with a zip whose one member lies 1,500 folders deep."""
    folder = place.space.datasets / POISONED
    folder.mkdir()
    with zipfile.ZipFile(folder / "deep.zip", "w") as archive:
        archive.writestr("a/" * 1500 + "a.png", b"x")


def deep_folders(place: Place) -> None:
    """A set whose folders lie hundreds deep."""
    folder = place.space.datasets / POISONED
    (folder / ("a/" * 400)).mkdir(parents=True)


def named_in_bytes(parent: str, name: str = NOT_UTF8, content: bytes | None = None) -> Act:
    """A folder, or a file with `content`, whose name is not UTF-8."""

    def act(place: Place) -> None:
        path = place.space.root / parent / name
        path.parent.mkdir(exist_ok=True)
        if content is None:
            path.mkdir()
            (path / run_folder.SETTINGS_FILE).write_bytes(b"{}")
        else:
            path.write_bytes(content)

    return act


def state_of_run(file: str, content: bytes | None, target: str = "") -> Act:
    """A checkpoint of the run, with a file of `content`, or a link."""

    def act(place: Place) -> None:
        folder = place.run / "state" / "step-000002"
        folder.mkdir(parents=True)
        for name in (f"{POISONED}-step-000002.safetensors", "numbers.safetensors", "state.json"):
            (folder / name).write_bytes(b"{}")
        path = removed(place.run / file)
        if content is None:
            path.symlink_to(target)
        else:
            path.write_bytes(content)

    return act


def grid_of_run(place: Place) -> None:
    """Comparisons of the run that cannot be read."""
    for name in ("1", "2", NOT_UTF8):
        (place.run / "grids" / name).mkdir(parents=True)
        (place.run / "grids" / name / run_folder.SETTINGS_FILE).write_bytes(b"\xff")
    (place.run / "grids" / "2" / run_folder.EVENTS_FILE).mkdir()


def samples_of_run(place: Place) -> None:
    """Sample pictures that are none: a link to nowhere, a link to itself, a folder."""
    folder = place.space.runs / "sound-lora" / "samples"  # by its name also the LoRA's own face
    folder.mkdir(parents=True)
    (folder / "1.png").symlink_to("nowhere")
    (folder / "2.png").symlink_to("2.png")
    (folder / "3.png").mkdir()


def picture_is_a_folder(place: Place) -> None:
    """A picture of the newest requests is a folder now."""
    removed(place.space.outputs / "2026-01-01" / "damaged.png").mkdir()


def sample(path: str) -> dict[str, object]:
    """The line of a picture that lies at `path`."""
    return {"event": "SampleReady", "path": path, "step": 1, "prompt": "a", "seed": 7}


FAILED = {"event": "Failed", "message": "a \ud800 b", "advice": "\udfff"}
LONG = b'{"event": "Progress", "what": "' + b"x" * 10_000_000 + b'"}\n'
WRONG = (None, True, [], {}, "x", -1, 1e400, float("nan"), 10**400, "\ud800", [[[]]])
NO_LIST = "its content is not listed anywhere: prompts that use it are told"
QUEUE_LOST = "a training that waited is told, and can go back; pictures stay in outputs/"
SAME = "the run is as good as before"

POISONS: dict[str, Poison] = {
    "run named in bytes": Poison(named_in_bytes("runs"), SHOWN),
    "set named in bytes": Poison(named_in_bytes("datasets"), SHOWN),
    "LoRA named in bytes": Poison(named_in_bytes("loras", NOT_UTF8 + ".safetensors", b"x"), "caf"),
    "LoRA folder named in bytes": Poison(
        named_in_bytes("loras"), harmless="it holds no LoRA; those in it are listed"
    ),
    "outputs named in bytes": Poison(
        named_in_bytes("outputs"), harmless="pictures are listed by the requests"
    ),
    "model named in bytes": Poison(
        named_in_bytes("models", NOT_UTF8 + ".safetensors", b"x"), SHOWN
    ),
    "embedding named in bytes": Poison(
        named_in_bytes("embeddings", NOT_UTF8 + ".pt", b"x"), harmless=NO_LIST
    ),
    "job folder named in bytes": Poison(
        named_in_bytes("jobs"), harmless="the queue does not know it"
    ),
    "events are a folder": Poison(folder_in_runs(run_folder.EVENTS_FILE), "events.jsonl"),
    "events cannot be opened": Poison(loop_in_runs(run_folder.EVENTS_FILE), "events.jsonl"),
    "events of wrong types": Poison(
        events(*({"event": "Step", "step": value, "total": value} for value in WRONG), *WRONG),
        "left out",
    ),
    "events with half characters": Poison(events(FAILED), "a \ufffd b"),
    "events with a line of 10 MB": Poison(in_runs(run_folder.EVENTS_FILE, LONG), POISONED),
    "events of NUL bytes": Poison(
        in_runs(run_folder.EVENTS_FILE, b"\0" * 5000 + b"\n"), "left out"
    ),
    "events deeply nested": Poison(
        in_runs(run_folder.EVENTS_FILE, b"[" * 99999 + b"\n"), "left out"
    ),
    "events with pictures nowhere": Poison(
        events(*map(sample, ("\0", "a" * 9999, "/", ".", "\ud800", "/dev/zero", "//"))), POISONED
    ),
    "result in bytes": Poison(
        events({"event": "Done", "path": f"/x/{NOT_UTF8}\ud800.safetensors"}), f"/x/{SHOWN}"
    ),
    "pid is byte 0xff": Poison(in_runs(run_folder.PID_FILE, b"\xff"), POISONED),
    "pid is a folder": Poison(folder_in_runs(run_folder.PID_FILE), POISONED),
    "pid is huge": Poison(in_runs(run_folder.PID_FILE, b"9" * 9_000_000), POISONED),
    "pid is empty": Poison(in_runs(run_folder.PID_FILE, b""), POISONED),
    "pid is a link to itself": Poison(loop_in_runs(run_folder.PID_FILE), POISONED),
    "heartbeat is a folder": Poison(folder_in_runs(run_folder.HEARTBEAT_FILE), harmless=SAME),
    "heartbeat of wrong types": Poison(
        in_runs(run_folder.HEARTBEAT_FILE, b'{"process": [], "count": 1e999}'), harmless=SAME
    ),
    "stop is a folder": Poison(folder_in_runs("stop"), POISONED),
    "pause is a folder": Poison(folder_in_runs("pause"), POISONED),
    "log is a folder": Poison(folder_in_runs(run_folder.LOG_FILE), POISONED),
    "settings missing": Poison(gone_from_runs("settings.json"), "settings"),
    "settings are a list": Poison(in_runs("settings.json", b"[1, 2]"), "settings"),
    "settings of wrong types": Poison(
        in_runs("settings.json", b'{"name": [], "prompt": {}, "steps": "\\ud800"}'), "settings"
    ),
    "settings with a huge number": Poison(
        in_runs("settings.json", b'{"steps": 1' + b"0" * 5000 + b"}"), "settings"
    ),
    "settings are a folder": Poison(folder_in_runs("settings.json"), "settings"),
    "run is a file": Poison(
        lambda place: [removed(one).write_bytes(b"x") for one in place.folders], "is gone"
    ),
    "run is gone": Poison(lambda place: [removed(one) for one in place.folders], "is gone"),
    "run is a link to itself": Poison(
        lambda place: [removed(one).symlink_to(one.name) for one in place.folders], "is gone"
    ),
    "job of unknown kind": Poison(in_queue("kind", "dream"), "dream"),
    "job's kind is no text": Poison(in_queue("kind", b"\xff"), "kind"),
    "job's folder is elsewhere": Poison(in_queue("folder", "/nowhere"), "is gone"),
    "job's folder leads out": Poison(in_queue("folder", "../../../.."), "is gone"),
    "job's folder is no text": Poison(in_queue("folder", b"\xff"), "is gone"),
    "job's numbers are texts": Poison(in_queue("tries", "many"), POISONED),
    "job without values": Poison(nulls_in_queue, "gone"),
    "queue deleted": Poison(emptied_queue(None), harmless=QUEUE_LOST, loses_queue=True),
    "queue of zero bytes": Poison(emptied_queue(b""), harmless=QUEUE_LOST, loses_queue=True),
    "queue is a text": Poison(emptied_queue(b"no database\n" * 99), "jobs.db", refused=True),
    "LoRA index is a text": Poison(at("loras.db", b"x" * 5000), harmless="it is made anew"),
    "LoRA index is a folder": Poison(folder_at("loras.db"), harmless="files are read again"),
    "LoRA folders name /": Poison(at("lora_folders.txt", b"/\n"), "is not searched"),
    "LoRA folders name the workspace": Poison(
        at("lora_folders.txt", b".\n./loras\n"), harmless="each file is listed once"
    ),
    "LoRA folders name a file": Poison(
        at("lora_folders.txt", b"lora_folders.txt\n"), "lora_folders.txt"
    ),
    "LoRA folders are binary": Poison(at("lora_folders.txt", bytes(range(256)) * 9), "cannot"),
    "LoRA folders are a folder": Poison(folder_at("lora_folders.txt"), "lora_folders.txt"),
    "LoRA is a text": Poison(at("loras/poisoned.safetensors", b"no LoRA"), POISONED),
    "LoRA is a folder": Poison(
        folder_at("loras/poisoned.safetensors"), harmless="a folder may be called so"
    ),
    "LoRA's header is huge": Poison(
        at("loras/poisoned.safetensors", b"\xff" * 8 + b"{}"), POISONED
    ),
    "LoRA's notes are damaged": Poison(at("loras/sound-lora.json", b"\xff{["), "sound-lora.json"),
    "LoRA is a link to itself": Poison(
        link_at("loras/poisoned.safetensors", "poisoned.safetensors"), POISONED
    ),
    "links in circles": Poison(
        lambda place: [
            link_at(f"{name}/circle", "..")(place)
            for name in ("loras", "datasets", "runs", "models", "outputs", "wildcards")
        ],
        "circle is not followed",
    ),
    "links to /": Poison(
        lambda place: [
            link_at(f"{name}/all", "/")(place) for name in ("loras", "runs", "models", "outputs")
        ],
        "all is not followed",
    ),
    "lists are damaged": Poison(
        lambda place: [
            at(f"wildcards/{name}", b"\xff\xfe\0[[[{")(place) for name in ("a.txt", "b.yaml")
        ],
        harmless=NO_LIST,
    ),
    "lists are a file": Poison(at("wildcards", b"x"), harmless=NO_LIST),
    "styles are damaged": Poison(at("styles.csv", b'\xff\0\x80,"\n'), harmless=NO_LIST),
    "styles are a folder": Poison(folder_at("styles.csv"), harmless=NO_LIST),
    "picture is a folder": Poison(picture_is_a_folder, harmless="its place stays empty"),
    "samples are none": Poison(samples_of_run, harmless="the LoRA has another face, or none"),
    "comparisons are damaged": Poison(grid_of_run, POISONED),
    "checkpoint's state is damaged": Poison(
        state_of_run("state/step-000002/state.json", b"[[["), POISONED
    ),
    "checkpoint is a link to itself": Poison(
        state_of_run("state/step-000002", None, "step-000002"), POISONED
    ),
    "checkpoints are a file": Poison(state_of_run("state", b"x"), POISONED),
    "model without sense": Poison(at("models/poisoned/model_index.json", b"[\xff"), POISONED),
    "model deeply nested": Poison(
        lambda place: [
            at(f"models/poisoned/{name}", b"[" * 99999)(place)
            for name in ("model_index.json", "unet/config.json")
        ],
        POISONED,
    ),
    "model is a link to itself": Poison(
        link_at("models/poisoned", "poisoned"), harmless="it is no model"
    ),
    "set with a zip of 1,500 folders": Poison(zip_of_folders, POISONED),
    "set of 400 folders": Poison(deep_folders, POISONED),
    "set is a link to itself": Poison(
        link_at("datasets/poisoned", "poisoned"), harmless="it is no folder"
    ),
    "worker's heartbeat is a folder": Poison(
        folder_at("jobs/worker.heartbeat"), harmless="the worker is seen by its process"
    ),
    "worker's log is a folder": Poison(folder_at("jobs/worker.log"), harmless="it is not shown"),
    "cache is a file": Poison(at("cache", b"x"), harmless="trainings tell it"),
}
