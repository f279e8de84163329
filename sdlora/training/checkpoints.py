"""A training on disk: `state/step-000100/` holds all that it needs to go on after step 100.

Three files: the LoRA as it was then, for other programs too; every number of the learner; and,
last, `state.json`, which knows the size and the hash of the other two. The folder is written under
a hidden name and renamed when it is complete and on the disk: one with a good name is whole.
No pickle: what is read can only be numbers.

The finished LoRA is exported under the name that prompts call it by. A run owns the file that it
exported: going on after a stop replaces it, and doing the end again after a kill finds it there.
Whatever else has the name stays, and the LoRA gets another.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors.torch import load, save

from sdlora.errors import RunError, SdloraError
from sdlora.files import free_path, make_folder, remove_stale_temp, sync_folder, write_atomically
from sdlora.jobs.control_files import Request, clear_requests, is_requested
from sdlora.lora.format.file import LoraFile, write_lora
from sdlora.lora.format.hashes import read_hashes
from sdlora.messages import Message
from sdlora.text_files import json_value
from sdlora.training.train_state import TrainStateDict

RECORD = "published.json"


@dataclass(frozen=True)
class RunFolder:
    """The files of a training's run folder, and the requests that are laid into it."""

    path: Path

    @property
    def samples(self) -> Path:
        """The folder of sample images."""
        return self.path / "samples"

    def lora_file(self, name: str) -> Path:
        """Return the path of a LoRA that the run keeps for itself."""
        return self.path / "lora" / f"{name}.safetensors"

    def checkpoint(self, step: int) -> Path:
        """Return the folder of a step's checkpoint."""
        return checkpoint_path(self.path, step)

    def is_requested(self, request: Request) -> bool:
        """Return True while a request waits to be acknowledged."""
        return is_requested(self.path, request)

    def requested(self, *requests: Request) -> set[Request]:
        """Return those of the requests that wait."""
        return {request for request in requests if self.is_requested(request)}

    def acknowledge(self, requests: Iterable[Request]) -> None:
        """Remove requests. RunError: one cannot be."""
        clear_requests(self.path, *requests)


def publish_lora(make: Callable[[str], LoraFile], name: str, folder: Path, loras: Path) -> Path:
    """Write the LoRA that `make` gives under a name into the run's `folder`, then into `loras`;
    returns that path. OSError: the disk did not take it; what was there before is whole."""
    own = write_lora(make(name), folder / "lora" / f"{name}.safetensors")
    body = read_hashes(own).body
    wish = loras / f"{name}.safetensors"
    path, is_own = _own_path(folder, wish)
    if _record(folder).get("name") == path.name:  # else what lies there is another run's
        remove_stale_temp(path)
    while True:
        _write_record(folder, path, body)
        try:
            return write_lora(make(path.stem), path, overwrite=is_own)
        except FileExistsError:  # another run took the name in this moment
            path = free_path(wish)


def _write_record(folder: Path, path: Path, body: str) -> None:
    # first what will be ours, then the file: a kill in between leaves a name without a file
    record = json.dumps({"name": path.name, "bodies": [body, *_record(folder).get("bodies", [])]})
    write_atomically(folder / "state" / RECORD, lambda to: to.write_text(record, encoding="utf-8"))


def _own_path(folder: Path, wish: Path) -> tuple[Path, bool]:
    """The path that this run published to before, unless something else is there now; and whether
    the file there is this run's."""
    record = _record(folder)
    path = wish.with_name(record.get("name", wish.name))
    own = record.get("bodies", [])
    if not path.exists():
        return path, False
    if own and read_hashes(path).body in own:
        return path, True
    return free_path(wish), False


def _record(folder: Path) -> dict[str, Any]:
    try:
        record = json_value((folder / "state" / RECORD).read_bytes())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


FORMAT = 1
NUMBERS_FILE, FACTS_FILE = "numbers.safetensors", "state.json"
_NAME, _HIDDEN = re.compile(r"step-(\d{6,})"), ".writing-"


@dataclass(frozen=True)
class SavedState:
    """A checkpoint that was read back and is whole; `facts` are its writer's."""

    path: Path
    step: int
    facts: Mapping[str, Any]

    def state(self) -> TrainStateDict:
        """Return the numbers of the train state."""
        return TrainStateDict(load((self.path / NUMBERS_FILE).read_bytes()), self.facts["learner"])


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the folder of a step's checkpoint in the run's `folder`."""
    return folder / "state" / f"step-{step:06}"


def write_checkpoint(
    folder: Path,
    step: int,
    name: str,
    *,
    lora: LoraFile,
    state: TrainStateDict,
    facts: Mapping[str, Any],
) -> Path:
    """Publish the checkpoint of `step`, its LoRA as `name`; returns its folder. OSError: the disk
    did not take it, and nothing of it is left. LoraFileError: not all of it are numbers."""
    path = checkpoint_path(folder, step)
    hidden = path.parent / f"{_HIDDEN}{step:06}-{uuid4().hex}"
    make_folder(path.parent)
    hidden.mkdir()
    try:
        lora_file = write_lora(lora, hidden / f"{name}.safetensors").name
        _write(hidden / NUMBERS_FILE, save(state.tensors))
        files = {name: _seal(hidden / name) for name in (lora_file, NUMBERS_FILE)}
        table = {**facts, "format": FORMAT, "step": step, "files": files, "learner": state.facts}
        _write(
            hidden / FACTS_FILE, json.dumps({**table, "sha256": _digest(table)}, indent=1).encode()
        )
        sync_folder(hidden)
        _set_aside(path)
        hidden.rename(path)
        sync_folder(path.parent)
        read_checkpoint(path)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    return path


def read_checkpoint(path: Path) -> SavedState:
    """Read a checkpoint. RunError: it is damaged; SdloraError: another version wrote it."""
    try:
        facts = json_value((path / FACTS_FILE).read_bytes())
        if facts["format"] != FORMAT:
            raise SdloraError(
                "{path} has format {format}; this program reads {ours}",
                path=path, format=facts["format"], ours=FORMAT,
            )  # fmt: skip
        if facts["sha256"] != _digest({k: v for k, v in facts.items() if k != "sha256"}):
            raise RunError("{file} is not what was written there", file=path / FACTS_FILE)
        for name, seal in facts["files"].items():
            if _seal(path / name) != seal:
                raise RunError("{file} is not what was written there", file=path / name)
        return SavedState(path, int(facts["step"]), facts)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            "the checkpoint {path} cannot be read: {why}", path=path, why=error
        ) from None


def newest_checkpoint(folder: Path) -> tuple[SavedState | None, list[Message]]:
    """Return the newest whole checkpoint of a run, None when there is none; and what is wrong with
    newer ones, which are set aside. SdloraError: another version wrote it; nothing is touched."""
    problems: list[Message] = []
    for path in reversed(checkpoint_folders(folder)):
        try:
            return read_checkpoint(path), problems
        except RunError as error:
            problems.append(error.message)
            _set_aside(path)
    return None, problems


def checkpoint_folders(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, by step."""
    folders = [path for path in (folder / "state").glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(folders, key=lambda path: int(path.name.removeprefix("step-")))


def prune(folder: Path, keep: int, also: Callable[[int], bool]) -> None:
    """Leave the newest `keep` checkpoints, and those of steps that `also` wants; and nothing that a
    process was writing when it was killed."""
    state = folder / "state"
    for path in checkpoint_folders(folder)[:-keep]:
        if not also(int(path.name.removeprefix("step-"))):
            going = state / f"{_HIDDEN}{uuid4().hex}"  # a kill leaves no half of a good name
            path.rename(going)
    sync_folder(state)  # else the disk may keep the good name, and not what was in it
    for path in state.glob(f"{_HIDDEN}*"):
        shutil.rmtree(path, ignore_errors=True)


def _set_aside(path: Path) -> None:
    if path.exists():
        path.rename(path.with_name(f"broken-{path.name}-{uuid4().hex[:8]}"))


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _seal(path: Path) -> dict[str, Any]:
    """A file's size and hash, as the disk gives them back."""
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _digest(facts: Mapping[str, Any]) -> str:
    """Of facts as JSON, however that is laid out."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
