"""Trainings that are killed, or that the disk fails, at every point: are the bits the same?

`python -m benchmarks.interrupted` runs one small training with a kill -9 at each of its calls that
change the disk, one call after the other (strace injects it); with each of these calls failing as
on a full or broken disk, once and from then on; with kills at random moments, several in a row;
and, without strace, every pair of settings interrupted at some step. After each the run is resumed
as a user would, and its LoRA compared with that of a run that nobody disturbed.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import show
from sdlora import runs
from sdlora.cli import main as command
from sdlora.errors import SdloraError
from sdlora.events import RunState
from sdlora.lora.hashes import read_hashes
from sdlora.training import checkpoints

TESTS = Path(__file__).parent.parent / "tests"
CHANGES = (
    *("write", "pwrite64", "writev", "ftruncate", "fsync", "fdatasync", "rename", "renameat"),
    *("renameat2", "link", "mkdir", "mkdirat", "unlink", "unlinkat", "rmdir"),
)
ERRORS = {"fsync": "EIO", "fdatasync": "EIO", "unlink": "EIO", "unlinkat": "EIO", "rmdir": "EIO"}
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
        begun = [folder.name for folder in runs.run_folders(self.root / "runs")]
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
        log = self.root.with_suffix(".log").open("a", encoding="utf-8")
        with redirect_stdout(log), redirect_stderr(log):
            return command(line)

    def problems(self, expected: str) -> list[str]:
        """What is not as after a run that nobody disturbed."""
        found = []
        names = sorted(path.name for path in (self.root / "loras").glob("*"))
        if names != [self.lora.name]:
            found.append(f"loras/ holds {names}")
        elif read_hashes(self.lora).body != expected:
            found.append("its LoRA has other bits")
        return found + self.damage()

    def states(self) -> list[RunState]:
        """What the runs say of themselves."""
        return [runs.read(folder) for folder in runs.run_folders(self.root / "runs")]

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

    def failed(self, call: str, at: str) -> tuple[str, list[str]]:
        """How a run fares when the `at`-th `call` fails, `3+`: from the third on; and what is wrong
        then, or after it was resumed on a disk that works again."""
        error = ERRORS.get(call, "ENOSPC")
        with self.disturbed() as place:
            code = place.run(inject=f"{call}:error={error}:when={at}")
            damaged = place.damage()
            if code == 0:
                return "went on", damaged + place.problems(self.expected)
            said = _log(place) + "".join(state.error for state in place.states())
            outcome = "ended without a word"  # where no word can be written
            if re.search(r"No space left|Input/output error|disk is full", said):
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


def pairwise(factors: Mapping[str, Sequence[Any]], seed: int = 0) -> list[dict[str, Any]]:
    """Cases in which every two values of two factors meet at least once: greedy, repeatable."""
    rng, names = random.Random(seed), list(factors)
    missing = {
        ((a, i), (b, j))
        for a, b in itertools.combinations(names, 2)
        for i in range(len(factors[a]))
        for j in range(len(factors[b]))
    }
    cases: list[dict[str, Any]] = []
    while missing:
        pair = dict(min(missing))
        tries = [{n: rng.randrange(len(factors[n])) for n in names} | pair for _ in range(60)]
        met = [set(itertools.combinations(one.items(), 2)) & missing for one in tries]
        best = max(range(len(tries)), key=lambda at: len(met[at]))
        missing -= met[best]
        cases.append({name: factors[name][at] for name, at in tries[best].items()})
    return cases


def every_kill(proof: Proof) -> dict[str, object]:
    """Kill at each point."""
    points = proof.points()
    wrong = {
        f"{call} {at}": found
        for call, count in points.items()
        for at in range(1, count + 1)
        if (found := proof.killed(call, at))
    }
    return {"points": points, "kills": sum(points.values()), "wrong": wrong}


def every_error(proof: Proof) -> dict[str, object]:
    """Fail at each point, once and for good."""
    outcomes: Counter[str] = Counter()
    wrong: dict[str, list[str]] = {}
    for call, count in proof.points().items():
        for at, onward in itertools.product(range(1, count + 1), ("", "+")):
            outcome, found = proof.failed(call, f"{at}{onward}")
            outcomes[outcome] += 1
            if found:
                wrong[f"{call} {at}{onward}"] = [outcome, *found]
    return {"errors": outcomes.total(), "outcomes": dict(outcomes), "wrong": wrong}


def random_kills(proof: Proof, count: int) -> dict[str, object]:
    """Kill at random moments of as many runs."""
    rng, began = random.Random(0), time.monotonic()
    with proof.disturbed() as place:
        place.run()
    typical_s = time.monotonic() - began
    kills, wrong = 0, {}
    for number in range(count):
        some, found = proof.killed_at_random(rng, typical_s)
        kills += some
        if found:
            wrong[number] = found
    return {"runs": count, "kills": kills, "wrong": wrong}


def every_pair(root: Path) -> dict[str, object]:
    """Every two values of the matrix of tests/test_resume.py, interrupted and gone on with."""
    from test_resume import MATRIX, Interrupted, compare

    cases, wrong = pairwise(MATRIX), []
    for number, case in enumerate(cases):
        try:
            compare(Interrupted(root / str(number)), {**case})
        except AssertionError as error:
            wrong.append(f"{case}: {error}")
    return {"factors": {k: len(v) for k, v in MATRIX.items()}, "cases": len(cases), "wrong": wrong}


def main() -> None:
    """Disturb runs; what was done, and what went wrong, printed as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--what", nargs="+", default=["kills", "errors", "random", "pairs"])
    parser.add_argument("--random", type=int, default=200, help="runs killed at random moments")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sdlora-interrupted-") as root:
        proof = Proof(Path(root))
        table: dict[str, object] = {}
        if "kills" in options.what:
            table["a kill at every call that changes the disk"] = every_kill(proof)
        if "errors" in options.what:
            table["every such call failing"] = every_error(proof)
        if "random" in options.what:
            table["kills at random moments"] = random_kills(proof, options.random)
        if "pairs" in options.what:
            table["every pair of settings"] = every_pair(Path(root) / "pairs")
    show({**table, "seconds": round(time.monotonic() - began)})


if __name__ == "__main__":
    main()
