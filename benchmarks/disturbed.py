"""A small training in a workspace of its own, that can be killed or given a failing disk.

`Place` is the workspace and what a user would type there; `Proof` knows what an undisturbed run
makes, and disturbs others. Both are for `interrupted` and the tests.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch

from benchmarks import power
from sdlora.cli.main import main as command
from sdlora.errors import SdloraError
from sdlora.events import RunState, fold, from_line
from sdlora.jobs import run_folder
from sdlora.jobs.processes import identity
from sdlora.lora.format.hashes import read_hashes
from sdlora.training import checkpoints, disk_space
from sdlora.workspace import Workspace

TESTS = Path(__file__).parent.parent / "tests"
CHANGES = (
    *("write", "pwrite64", "writev", "ftruncate", "fsync", "fdatasync", "rename", "renameat"),
    *("renameat2", "link", "mkdir", "mkdirat", "unlink", "unlinkat", "rmdir"),
)
WAITS = 75  # how a training that waits for room on the disk ends here
ERRORS = ("ENOSPC", "EIO")
NEEDS_NO_ROOM = ("fsync", "fdatasync", "unlink", "unlinkat", "rmdir")
NAME, STEPS, EVERY = "zibo", 6, 2


@dataclass
class Place:
    """A workspace of its own, a training in it, and what a user would type."""

    root: Path
    pictures: Path
    model: Path
    flags: Sequence[str] = ()

    @property
    def lora(self) -> Path:
        """Where the finished LoRA is."""
        return self.root / "loras" / f"{NAME}.safetensors"

    def line(self) -> list[str]:
        """The command that begins the training, or goes on with it."""
        place = ["--workspace", str(self.root)]
        begun = [folder.name for folder in run_folder.run_folders(self.root / "runs")]
        if begun:
            return ["runs", "resume", begun[0], *place]
        settings = {
            "name": NAME, "model": self.model, "steps": STEPS, "save-every": EVERY, "rank": 2,
            "sample-every": 0, "keep-checkpoints": 2, "warmup-steps": 1, "learning-rate": 0.01,
            "validation-share": 0.3, "validate-every": 3, "cache-gib": 0,
        }  # fmt: skip
        flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        return ["train", str(self.pictures), *flags, *self.flags, *place]

    def run(
        self,
        inject: str = "",
        kill_after_s: float | None = None,
        prepare: Callable[[], None] = lambda: None,
    ) -> int:
        """Do what the line says in a process of its own; its exit code, -9 for killed. `inject` is
        for strace, such as `write:signal=KILL:when=3`; `prepare` is called there first."""
        line = self.line()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                prepare()
                code = self._in_child(line, stopped=bool(inject))
            finally:
                os._exit(code)
        tracer = _trace(child, inject, self.root.with_suffix(".trace")) if inject else None
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if tracer:
            tracer.wait()
        return os.waitstatus_to_exitcode(status)

    def _in_child(self, line: list[str], stopped: bool) -> int:
        torch.set_num_threads(1)  # the parent's threads are not in a fork
        if stopped:
            os.kill(os.getpid(), signal.SIGSTOP)
        return self._say(line)

    def in_this_process(self) -> int:
        """Do what the line says without another process."""
        return self._say(self.line())

    def _say(self, line: list[str]) -> int:
        log = self.root.with_suffix(".log").open("a", encoding="utf-8")
        with redirect_stdout(log), redirect_stderr(log):
            return command(line)

    def problems(self, expected: str, hidden: bool = True) -> list[str]:
        """What is not as after a run that nobody disturbed; `hidden`: temporary files count too."""
        found = []
        names = sorted(path.name for path in (self.root / "loras").glob("*" if hidden else "[!.]*"))
        if names != [self.lora.name]:
            found.append(f"loras/ holds {names}")
        elif read_hashes(self.lora).body != expected:
            found.append("its LoRA has other bits")
        return found + self.damage()

    def states(self) -> list[RunState]:
        """What the runs say of themselves."""
        return [run_folder.read(folder) for folder in run_folder.run_folders(self.root / "runs")]

    def damage(self) -> list[str]:
        """Checkpoints with a good name that cannot be read."""
        found = []
        for folder in (self.root / "runs").glob("*"):
            for path in checkpoints.checkpoint_folders(folder):
                try:
                    checkpoints.read_checkpoint(path)
                except SdloraError as error:
                    found.append(str(error))
        return found


def _trace(child: int, inject: str, output: Path) -> subprocess.Popen[bytes]:
    """strace, attached to a child that has stopped itself for it, which then goes on."""
    os.waitpid(child, os.WUNTRACED)
    calls = ",".join(CHANGES)
    command = ["strace", "-f", "-qq", "-p", str(child), "-o", str(output), "-e", f"trace={calls}"]
    if inject != "nothing":
        command += ["-e", f"inject={inject}"]
    tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while "TracerPid:\t0\n" in Path(f"/proc/{child}/status").read_text("ascii"):
        time.sleep(0.005)
    os.kill(child, signal.SIGCONT)
    return tracer


class Proof:
    """The undisturbed run, and the others beside it."""

    def __init__(self, root: Path, flags: Sequence[str] = ()) -> None:
        sys.path.insert(0, str(TESTS))
        from tiny import tiny

        self.root, self.numbers, self.flags = root, itertools.count(1), flags
        self.pictures, self.model = draw_pictures(root / "pictures"), tiny("sd1")
        whole = self.place()
        assert whole.run() == 0, "the undisturbed run failed"
        self.expected = read_hashes(whole.lora).body

    def place(self) -> Place:
        """A fresh one."""
        return Place(self.root / str(next(self.numbers)), self.pictures, self.model, self.flags)

    def points(self) -> dict[str, int]:
        """How often an undisturbed run makes each call that changes the disk."""
        place = self.place()
        place.run(inject="nothing")
        lines = place.root.with_suffix(".trace").read_text("utf-8").splitlines()
        counted = Counter(m[1] for line in lines if (m := re.match(r"\d+ +(\w+)\(", line)))
        return {name: counted[name] for name in CHANGES if counted[name]}

    @contextmanager
    def disturbed(self) -> Iterator[Place]:
        """A place, taken away afterwards."""
        place = self.place()
        yield place
        for left in self.root.glob(f"{place.root.name}*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()

    def killed(self, call: str, at: int) -> list[str]:
        """What goes wrong when the `at`-th `call` is a kill -9, and the run is then resumed."""
        with self.disturbed() as place:
            code = place.run(inject=f"{call}:signal=KILL:when={at}")
            if code not in (-signal.SIGKILL, 0):
                return [f"ended with {code}"]
            return self.resumed(place)

    def resumed(self, place: Place) -> list[str]:
        """What is wrong after the run was resumed to its end."""
        done = "done" in [state.status for state in place.states()]
        if not done and (code := place.run()):
            return [f"resuming failed with {code}: {_log(place)[-300:]}"]
        return place.problems(self.expected)

    def failed(self, call: str, at: str, error: str) -> tuple[str, list[str]]:
        """How a run fares when the `at`-th `call` fails, `3+`: from the third on; and what is wrong
        then, or after it was resumed on a disk that works again."""
        onward = at.endswith("+")
        with self.disturbed() as place:
            inject = f"{call}:error={error}:when={at}"
            code = place.run(inject=inject, prepare=end_waiting if onward else lambda: None)
            damaged = place.damage()
            if code == 0:
                return "went on", damaged + place.problems(self.expected)
            said = _log(place) + "".join(state.error for state in place.states())
            outcome = "ended without a word"  # where no word can be written
            if code == WAITS:
                outcome = "waited for room"
            elif re.search(r"No space left|Input/output error|disk is full", said):
                outcome = "ended and said why"
            elif "failed" in [state.status for state in place.states()]:
                outcome = "ended, its words lost with the disk; the run shows as failed"
            return outcome, damaged + self.resumed(place)

    def killed_at_random(self, rng: random.Random, typical_s: float) -> tuple[int, list[str]]:
        """Kills at random moments, one to five in a row; how many, and what is wrong after."""
        with self.disturbed() as place:
            kills = rng.choice((1, 1, 1, 2, 3, 4, 5))
            for number in range(kills):
                if place.run(kill_after_s=rng.uniform(0, typical_s)) == 0:
                    return number, place.problems(self.expected)
            return kills, self.resumed(place)

    def record(self, resumed: bool) -> power.Record:
        """What a run does to its workspace, which is there before; or one that is `resumed`, when
        its second checkpoint was written whole, and had no name yet."""
        place = self.place()
        Workspace.open(place.root)
        if resumed:
            assert place.run(prepare=die_before_a_name) == -signal.SIGKILL
        with power.recorded(place.root, unseen="jobs.db") as record:  # SQLite's own business
            assert place.in_this_process() == 0, "the recorded run failed"
        # this process lives on; the one that wrote this did not
        me, gone = (identity(os.getpid()) or "").encode(), b"1:gone"
        record.change(lambda content: content.replace(me, gone.ljust(len(me))))
        return record

    def without_power(self, tree: power.Tree, said: RunState, resume: bool) -> list[str]:
        """What is wrong with what a disk holds after a power loss, when so much had been `said`;
        and, if asked to `resume`, after the run was resumed there."""
        with self.disturbed() as place:
            power.rebuild(tree, place.root)
            found = place.damage() + self.broken_promises(place, said)
            return found + (self.resumed(place) if resume else [])

    def broken_promises(self, place: Place, said: RunState) -> list[str]:
        """What the run had said and is not so."""
        found, begun = [], run_folder.run_folders(place.root / "runs")
        if said != RunState() and not begun:
            found.append("the run is lost")
        there = [path for folder in begun for path in checkpoints.checkpoint_folders(folder)]
        steps = [int(path.name.removeprefix("step-")) for path in there]
        if said.checkpoint is not None and said.checkpoint > max(steps, default=-1):
            found.append(f"the checkpoint of step {said.checkpoint} is lost: there are {steps}")
        shown = [path.name for path in (place.root / "loras").glob("[!.]*")]
        if shown or said.result:
            # until it has said that the LoRA is saved, its next process takes away what is hidden
            found += place.problems(self.expected, hidden=bool(said.result))
        return found


def said_in(tree: power.Tree) -> RunState:
    """What a run had said when its folder was like this."""
    lines = next(
        (text for name, text in tree.items() if name.endswith(run_folder.EVENTS_FILE)), b""
    )
    return fold(from_line(line) for line in (lines or b"").decode().splitlines() if line)


def die_before_a_name() -> None:
    """Have this process die where the second checkpoint would get its name."""
    rename, count = Path.rename, itertools.count(1)

    def renamed(path: Path, to: Path) -> Path:
        if to.name.startswith("step-") and next(count) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(path, to)

    Path.rename = renamed  # type: ignore[method-assign, assignment]


def end_waiting() -> None:
    """Have this process end where it would wait for room on the disk."""
    disk_space.time = SimpleNamespace(sleep=lambda _: os._exit(WAITS))  # type: ignore[assignment]


def _log(place: Place) -> str:
    log = place.root.with_suffix(".log")
    return log.read_text("utf-8") if log.exists() else ""


def draw_pictures(folder: Path) -> Path:
    """Five small captioned pictures of two shapes."""
    from sdlora.starter.draw import draw, random_scene

    folder.mkdir(parents=True)
    for number in range(5):
        picture = draw(random_scene(random.Random(number)))
        size = (64, 64) if number % 2 else (96, 64)
        picture.resize(size).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"zibo, picture, {number}", encoding="utf-8")
    return folder
