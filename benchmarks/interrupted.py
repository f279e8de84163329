"""Trainings that are killed, that disk or power fail, at every point: are the bits the same?

`python -m benchmarks.interrupted` runs one small training with a kill -9 at each of its calls that
change the disk, one call after the other (strace injects it); with each of these calls failing as
on a full or broken disk, once and from then on; with kills at random moments, several in a row; on
what a disk may hold when the power failed at any moment (`power`); and, without any of these, every
pair of settings interrupted at some step. After each the run is resumed as a user would, and its
LoRA compared with that of a run that nobody disturbed.
"""

from __future__ import annotations

import argparse
import itertools
import random
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.disturbed import ERRORS, NEEDS_NO_ROOM, Proof, said_in
from benchmarks.power import LOSSES, tree_after, trees
from benchmarks.report import show

PARTS = ("kills", "errors", "random", "power", "pairs")


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


def every_error(proof: Proof, errors: Sequence[str]) -> dict[str, object]:
    """Fail at each point, once and for good, in each way that it can."""
    outcomes: Counter[str] = Counter()
    wrong: dict[str, list[str]] = {}
    for call, count in proof.points().items():
        ways = [error for error in errors if error == "EIO" or call not in NEEDS_NO_ROOM]
        for error, at, onward in itertools.product(ways, range(1, count + 1), ("", "+")):
            outcome, found = proof.failed(call, f"{at}{onward}", error)
            outcomes[outcome] += 1
            if found:
                wrong[f"{call} {at}{onward} {error}"] = [outcome, *found]
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


def power_losses(proof: Proof, most: int, resumed: int, every: int = 1) -> dict[str, Any]:
    """Look at `most` things that a disk may hold after a power loss at `every` so many moments one,
    of a run and of one that was taken up again, and resume some of them."""
    rng, moments, lost = random.Random(0), 0, Counter[str]()
    wrong: dict[str, list[str]] = {}
    for which in ("begun", "taken up again"):
        record = proof.record(resumed=which != "begun")
        found = list(trees(record, most // 2, every))
        chosen = set(rng.sample(range(len(found)), min(resumed // 2, len(found))))
        moments += len(record.deeds) + 1 - record.begun
        for number, (moment, what, tree) in enumerate(found):
            lost[what] += 1
            said = said_in(tree_after(record, moment, LOSSES["nothing"], rng))
            if problems := proof.without_power(tree, said, number in chosen):
                wrong[f"{which}, after {moment}, lost: {what}, {number}"] = problems
    counts = {"moments": moments, "looked at": lost.total(), "lost": dict(lost)}
    return {**counts, "resumed": resumed, "wrong": wrong}


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
    parser.add_argument("--what", nargs="+", default=[*PARTS])
    parser.add_argument("--random", type=int, default=200, help="runs killed at random moments")
    parser.add_argument("--states", type=int, default=2000, help="disks after a power loss")
    parser.add_argument("--resumed", type=int, default=60, help="of these resumed to the end")
    parser.add_argument("--errors", nargs="+", default=ERRORS, choices=ERRORS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sdlora-interrupted-") as root:
        proof = Proof(Path(root))
        table: dict[str, object] = {}
        if "kills" in options.what:
            table["a kill at every call that changes the disk"] = every_kill(proof)
        if "errors" in options.what:
            table["every such call failing"] = every_error(proof, options.errors)
        if "random" in options.what:
            table["kills at random moments"] = random_kills(proof, options.random)
        if "power" in options.what:
            losses = power_losses(proof, options.states, options.resumed)
            table["what a power loss leaves"] = losses
        if "pairs" in options.what:
            table["every pair of settings"] = every_pair(Path(root) / "pairs")
    show({**table, "seconds": round(time.monotonic() - began)})


if __name__ == "__main__":
    main()
