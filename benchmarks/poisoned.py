"""Poisoned workspaces: the page opens, lists the good, names the bad, and the queue goes on.

`python -m benchmarks.poisoned` makes a workspace for every row of `benchmarks.poisons`, and one
with all of them at once: a good run, set, LoRA and picture, and a good request that waits behind
poisoned work. It opens the page, lists the runs with the command and lets a worker do the queue. It
prints what went wrong, and exits with 1 if anything did.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from PIL import Image

from benchmarks.poisons import POISONED, POISONS, Place, Poison
from sdlora.cli.main import main as command
from sdlora.errors import SdloraError
from sdlora.events import Done, SampleReady, Started, Step
from sdlora.jobs import run_folder
from sdlora.jobs.queue import Queue
from sdlora.settings.image_request import ImageRequest
from sdlora.settings.train import TrainSettings
from sdlora.workspace import Workspace

TESTS = Path(__file__).parent.parent / "tests"
if str(TESTS) not in sys.path:
    sys.path.insert(0, str(TESTS))

from fakes import fake_worker, write_lora  # noqa: E402
from page_client import Browser, StudioWithoutWorker  # noqa: E402
from webui import markup  # noqa: E402
from webui.first_paint import panel  # noqa: E402
from webui.lora_details import LoraFilter  # noqa: E402

RUN, SET, LORA, PROMPT = "sound-run", "sound-set", "sound-lora", "a sound picture"
PAGE_S = 5.0  # of computing, to open the page
PATIENCE_S = 30.0  # for that on a busy machine
QUEUE_S = 240.0  # on a busy machine
_MEDIA = re.compile(r"/media/[0-9a-f]+(?:/small)?")


def filled(root: Path) -> Workspace:
    """A workspace with a good one of everything."""
    space = Workspace.open(root)
    queue = Queue(space.database)
    run = run_folder.new_folder(TrainSettings.from_values({"name": RUN, "data": "x"}), space)
    list(run_folder.record([Started("steps", 1), Step(1, 1, 0.5), Done("", 1.0)], run))
    day = space.outputs / "2026-01-01"
    day.mkdir()
    pictures = [day / f"{name}.png" for name in ("sound", "damaged")]
    for path in pictures:
        Image.new("RGB", (64, 64), (200, 40, 90)).save(path)
    request = run_folder.start(ImageRequest(prompt=PROMPT), space, queue)
    shown = [SampleReady(str(path), 0, PROMPT, 7) for path in pictures]
    list(run_folder.record([*shown, Done(str(pictures[0]))], request))
    job = queue.claim("1:before")
    assert job
    queue.finish(job, "done")
    (space.datasets / SET).mkdir()
    Image.new("RGB", (64, 64)).save(space.datasets / SET / "1.png")
    (space.datasets / SET / "1.txt").write_text("zibo, a ball", encoding="utf-8")
    write_lora(space.loras / f"{LORA}.safetensors", 1)
    return space


def place_in(
    space: Workspace, name: str, with_request: bool = True, with_training: bool = True
) -> Place:
    """Work to be poisoned: a run that has ended, a request and a training that wait."""
    queue = Queue(space.database)
    run = run_folder.new_folder(TrainSettings.from_values({"name": name, "data": "x"}), space)
    list(run_folder.record([Started("steps", 2), Step(1, 2, 0.5), Step(2, 2, 0.5), Done()], run))
    request = training = None
    if with_request:
        request = run_folder.start(ImageRequest(prompt=POISONED, steps=2), space, queue)
    if with_training:
        settings = TrainSettings.from_values({"name": f"{name}-waits", "data": "x", "steps": 3})
        training = run_folder.start(settings, space, queue)
    return Place(space, queue, run, request, training)


def all_at_once(place: Place) -> None:
    """Every poison that leaves the queue's file, each with work of its own where it needs some; of
    two that want the same place the first has it."""
    for number, (name, poison) in enumerate(POISONS.items()):
        if not (poison.loses_queue or poison.refused or poison is POISONS["job without values"]):
            is_job = name.startswith("job")  # the page shows the newest requests alone
            own = place_in(place.space, f"{POISONED}-{number}", is_job, with_training=False)
            with contextlib.suppress(OSError):
                poison.act(own)


EVERYTHING = Poison(all_at_once, POISONED)


def faults(poison: Poison, root: Path, whole: bool = True) -> list[str]:
    """What is wrong with the program in a workspace with that poison. `whole`: with Gradio's page
    and a training's process, which take seconds; else what they stand on."""
    space = filled(root)
    place = place_in(space, POISONED, with_training=whole)
    look_at = page_faults if whole else studio_faults
    studio = StudioWithoutWorker(space)
    fine = run_folder.start(ImageRequest(prompt="behind it", steps=2), space, place.queue)
    poison.act(place)
    if poison.refused:
        text, wrong = look_at(studio)
        return [*refusal_faults(poison, space), *wrong, *missing(text, SET, LORA)]
    listed, wrong = listed_runs(space)
    text, more = look_at(StudioWithoutWorker(space))
    # the newest pictures are those of the queue's requests
    wrong += [*more, *missing(text, SET, LORA, *([] if poison.loses_queue else [PROMPT]))]
    if poison.loses_queue:
        fine = run_folder.start(
            ImageRequest(prompt="after it", steps=2), space, Queue(space.database)
        )
    wrong += queue_faults(space, fine)
    if poison.named and poison.named not in text + listed + reasons(space):
        wrong.append(f"nothing names {poison.named!r}")
    return wrong


def missing(text: str, *names: str) -> list[str]:
    """What of the good is not shown."""
    return [f"{name} is not on the page" for name in names if name not in text]


def reasons(space: Workspace) -> str:
    """Why work failed, as the queue knows it."""
    with closing(sqlite3.connect(space.database)) as connection:
        return "\n".join(str(row[0]) for row in connection.execute("SELECT reason FROM jobs"))


def refusal_faults(poison: Poison, space: Workspace) -> list[str]:
    """A program that cannot start on it says what is wrong with which file."""
    try:
        StudioWithoutWorker(space)
    except SdloraError as error:
        return [] if poison.named in str(error) else [f"refused without a name: {error}"]
    except Exception as error:
        return [f"traceback at the start: {error!r}"]
    return ["it starts"]


def listed_runs(space: Workspace) -> tuple[str, list[str]]:
    """What `runs list` prints, and what is wrong with that."""
    printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    try:
        with contextlib.redirect_stdout(printed):
            code = command(["runs", "list", "--workspace", str(space.root)])
            code |= command(["runs", "list", "--json", "--workspace", str(space.root)])
            printed.flush()
    except Exception as error:
        return "", [f"traceback of `runs list`: {error!r}"]
    text = printed.buffer.getvalue().decode("utf-8")  # type: ignore[attr-defined]
    wrong = [f"`runs list` ends with {code}"] if code else []
    return text, wrong if f"{RUN}: done" in text else [*wrong, "`runs list` has lost the good run"]


def page_faults(studio: StudioWithoutWorker) -> tuple[str, list[str]]:
    """What the page shows, newly opened and for each of its runs, and what is wrong with that."""
    with contextlib.redirect_stderr(io.StringIO()):  # Gradio prints what its handlers raise
        try:
            browser = Browser(studio)
            began, computed = time.monotonic(), time.process_time()
            status = browser.http.get("/").status_code
            browser.open()
        except Exception as error:
            return "", [f"the page: {error!r:.300}"]
        seconds, computed = time.monotonic() - began, time.process_time() - computed
        wrong = [f"the page answers {status}"] if status != 200 else []
        if computed > PAGE_S or seconds > PATIENCE_S:
            wrong.append(f"the page takes {seconds:.1f} s")
        text, after = shown(browser, studio)
    return text, wrong + after


def studio_faults(studio: StudioWithoutWorker) -> tuple[str, list[str]]:
    """What the parts of the page say without Gradio around them, and what is wrong with that."""
    try:
        trainings, media = studio.trainings(), studio.media
        parts = [panel(studio, ""), markup.notices(studio.problems())]
        parts += [markup.run_card(run, run.name) for run in (*trainings, *studio.requests())]
        parts.append(markup.gallery(studio.recent_pictures(None), media, reuse=True))
        for entry in studio.library.list():
            parts += [entry.full_name, entry.problem, *entry.facts.notes]
        parts += [*studio.workspace.dataset_folders(), *studio.workspace.model_names()]
        parts += [*studio.library.problems, *map(studio.model_base, studio.workspace.model_names())]
        text = "\n".join(parts)
        text.encode("utf-8")
    except Exception as error:
        return "", [f"the page: {error!r:.300}"]
    return text, _without_run(studio)


def _without_run(studio: StudioWithoutWorker) -> list[str]:
    names = [run.name for run in studio.trainings()]
    return [] if RUN in names else ["the good run is not among the page's"]


def shown(browser: Browser, studio: StudioWithoutWorker) -> tuple[str, list[str]]:
    """All that the page shows, also where its address names each of the runs; and what is wrong
    with that."""
    wrong: list[str] = []
    for _ in range(100):
        if not studio.loras.search(LoraFilter()).reading:
            break
        time.sleep(0.1)
    texts: list[str] = []
    for query in ("", *(f"?run={run.name}" for run in studio.trainings()[:6])):
        try:
            if (status := browser.http.get(f"/{query}").status_code) != 200:
                wrong.append(f"the page of {query} answers {status}")
            browser.open(query)
        except Exception as error:
            wrong.append(f"the page of {query}: {error!r:.300}")
        values = [*browser.values.values(), *(part["props"] for part in browser.parts.values())]
        texts.append(json.dumps(values, ensure_ascii=False, default=str))
    text = "\n".join(texts)
    for link in sorted(set(_MEDIA.findall(text)))[:20]:
        if (status := browser.http.get(link).status_code) >= 500:
            wrong.append(f"{link} answers {status}")
    return text, wrong + _without_run(studio)


def queue_faults(space: Workspace, fine: Path) -> list[str]:
    """What is wrong with a worker's way through the queue."""
    raised: list[str] = []

    def work() -> None:
        try:
            fake_worker(space.root, idle_s=0.05).run()
        except Exception as error:
            raised.append(f"the worker died: {error!r}")

    with contextlib.redirect_stderr(io.StringIO()):  # the worker's log
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(QUEUE_S)
    if thread.is_alive():
        return ["the queue stands still"]
    status = run_folder.read(fine).status
    job = Queue(space.database).job_of(fine)
    if status != "done" or not job or job.status != "done":
        raised.append(f"the good request is {status}, {job.status if job else 'not queued'}")
    return raised


def all_faults(names: list[str], root: Path) -> Iterator[tuple[str, list[str], float]]:
    """(poison, what is wrong, seconds) of each."""
    for number, name in enumerate(names):
        poison = POISONS.get(name) or replace(EVERYTHING)
        began = time.monotonic()
        wrong = faults(poison, root / str(number))
        yield name, wrong, time.monotonic() - began


def main() -> int:
    """Print the table; 1 when anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="a part of the names")
    only = parser.parse_args().only
    names = [name for name in (*POISONS, "all at once") if only in name]
    count = 0
    with tempfile.TemporaryDirectory() as root:
        for name, wrong, seconds in all_faults(names, Path(root)):
            poison = POISONS.get(name, EVERYTHING)
            how = f"named {poison.named!r}" if poison.named else f"harmless: {poison.harmless}"
            print(f"{seconds:5.1f} s  {name}: {'; '.join(wrong) or how}", flush=True)
            count += bool(wrong)
    print(f"{len(names)} poisoned workspaces, {count} with faults")
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main())
