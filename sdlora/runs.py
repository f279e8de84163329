"""The run folder: `settings.json  events.jsonl  log.txt  samples/  lora/  stop  pid`.

It is the only thing the trainer, the worker, the command and the page share. Who can read the folder
can follow a run; who can create the file `stop` in it can end it.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sdlora.errors import SdloraError, SettingsError, did_you_mean
from sdlora.events import Event, Failed, RunState, fold, from_line, to_line
from sdlora.processes import alive, identity

EVENTS_FILE, STOP_FILE, PID_FILE, LOG_FILE = "events.jsonl", "stop", "pid", "log.txt"


def record(events: Iterable[Event], folder: Path) -> Iterator[Event]:
    """Pass `events` on, each written to the folder first. An exception becomes a `Failed` event:
    the user's own mistakes by their sentence, anything else with its traceback in the log."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PID_FILE).write_text(identity(os.getpid()) or "", encoding="utf-8")
    with (folder / EVENTS_FILE).open("a", encoding="utf-8", newline="\n") as lines:

        def written(event: Event) -> Event:
            lines.write(to_line(event) + "\n")
            lines.flush()
            return event

        try:
            for event in events:
                yield written(event)
        except SdloraError as error:
            yield written(Failed(str(error)))
        except Exception as error:
            with (folder / LOG_FILE).open("a", encoding="utf-8") as log:
                traceback.print_exc(file=log)
            yield written(failure(error, folder))


def failure(error: Exception, folder: Path) -> Failed:
    """What to tell of an error nobody expected."""
    name = type(error).__name__
    if name == "OutOfMemoryError":
        return Failed(
            "the device ran out of memory",
            "use a smaller batch_size or resolution, or turn gradient_checkpointing on",
        )
    return Failed(f"{name}: {error}", f"the full report is in {folder / LOG_FILE}")


@dataclass
class Follower:
    """Reads a folder's events as they come, each line once."""

    folder: Path
    state: RunState = RunState()
    _offset: int = 0

    def poll(self) -> RunState:
        """The state now. A process that died without a word is a failed run."""
        path = self.folder / EVENTS_FILE
        if path.exists():
            with path.open("rb") as file:
                file.seek(self._offset)
                block = file.read()
            whole = block[: block.rfind(b"\n") + 1]
            self._offset += len(whole)
            lines = whole.decode("utf-8", errors="replace").splitlines()
            self.state = fold((from_line(line) for line in lines if line), self.state)
        if self.state.ended or not self._died():
            return self.state
        lost = f"the process ended without a word at step {self.state.step}"
        return fold([Failed(lost, f"see {self.folder / LOG_FILE}")], self.state)

    def _died(self) -> bool:
        pid = self.folder / PID_FILE
        return pid.exists() and not alive(pid.read_text(encoding="utf-8"))


def read(folder: Path) -> RunState:
    """The state of the run in `folder`, read from its beginning."""
    return Follower(folder).poll()


def stop(folder: Path) -> None:
    """Ask the run to stop after its present step. What it has learnt is kept."""
    (folder / STOP_FILE).touch()


def stop_asked(folder: Path) -> bool:
    """True when somebody asked the run to stop."""
    return (folder / STOP_FILE).exists()


def list_runs(runs: Path) -> dict[str, RunState]:
    """Name -> state of every run in the folder, newest first."""
    folders = [p for p in runs.iterdir() if p.is_dir()] if runs.is_dir() else []
    return {
        p.name: read(p) for p in sorted(folders, key=lambda p: p.stat().st_ctime_ns, reverse=True)
    }


def find_run(runs: Path, name: str) -> Path:
    """The folder of the run `name`. SettingsError with near names when there is none."""
    names = [p.name for p in runs.iterdir() if p.is_dir()] if runs.is_dir() else []
    if name not in names:
        raise SettingsError(f"there is no run {name!r}.{did_you_mean(name, names)}")
    return runs / name
