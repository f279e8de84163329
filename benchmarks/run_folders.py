"""How long run folders take to read: `python -m benchmarks.run_folders [--readings 40000]`.

One run with many readings of its loss, as long trainings write them, and `runs list` over many runs
of ordinary length. Both are read from disk, each best of three.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.report import asked, show
from sdlora.cli.main import main
from sdlora.events import Done, Event, Saved, Started, Step, to_line
from sdlora.jobs import run_folder
from sdlora.workspace import Workspace

READ_EVERY = 5  # steps, as a training does


def write_run(folder: Path, readings: int) -> None:
    """A finished training that read its loss so many times."""
    steps = readings * READ_EVERY
    events: list[Event] = [Started(f"training {folder.name}", steps)]
    for step in range(1, steps + 1):
        loss = 1 / step if step % READ_EVERY == 0 else None
        events.append(Step(step, steps, loss, 1e-4, float(steps - step)))
    events += [Saved("x.safetensors", steps), Done("x.safetensors", 60.0)]
    folder.mkdir(parents=True)
    (folder / run_folder.SETTINGS_FILE).write_text("{}", encoding="utf-8")
    text = "".join(to_line(event) + "\n" for event in events)
    (folder / run_folder.EVENTS_FILE).write_text(text, encoding="utf-8")


def best_of_three(act: Callable[[], object]) -> dict[str, float]:
    """Seconds that it takes, and those of them that a core works on it."""
    taken = []
    for _ in range(3):
        began, worked = time.perf_counter(), time.process_time()
        act()
        taken.append((time.perf_counter() - began, time.process_time() - worked))
    return {"s": round(min(taken)[0], 3), "cpu_s": round(min(cpu for _, cpu in taken), 3)}


def list_quietly(space: Workspace) -> None:
    """The command `runs list`, its lines thrown away."""
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["runs", "list", "--workspace", str(space.root)]) == 0


def measure(readings: int, count: int, each: int) -> dict[str, object]:
    """One long run read; `count` runs with so many readings `each` listed."""
    with tempfile.TemporaryDirectory() as place:
        space = Workspace.open(place)
        write_run(space.runs / "long", readings)
        long = best_of_three(lambda: run_folder.read(space.runs / "long"))
        assert len(run_folder.read(space.runs / "long").losses) == readings
        (space.runs / "long").rename(space.root / "long")
        for number in range(count):
            write_run(space.runs / f"run-{number}", each)
        return {
            f"one run of {readings} readings": long,
            f"list of {count} runs of {each} readings": best_of_three(lambda: list_quietly(space)),
        }


if __name__ == "__main__":
    options = asked(__doc__, readings=40_000, runs=200, each=300)
    show(measure(options.readings, options.runs, options.each))
