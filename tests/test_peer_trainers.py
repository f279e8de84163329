"""Timing of other programs' training scripts from outside."""

import sys
from pathlib import Path

import pytest

from benchmarks import peer_trainers

SCRIPT = """
import sys, time, torch
weight = torch.nn.Parameter(torch.zeros(1))
optimizer = torch.optim.AdamW([weight])
for step in range(int(sys.argv[1])):
    time.sleep(0.2)
    weight.grad = torch.ones(1)
    optimizer.step()
"""


def test_the_time_of_a_step_is_that_between_two_steps_of_the_optimizer(tmp_path: Path) -> None:
    script = tmp_path / "trainer.py"
    script.write_text(SCRIPT, encoding="utf-8")
    assert peer_trainers.step_s(sys.executable, [str(script), "6"], tmp_path) >= 0.2


def test_a_script_that_takes_no_steps_is_said_with_what_it_printed(tmp_path: Path) -> None:
    script = tmp_path / "trainer.py"
    script.write_text("raise SystemExit('no such model')", encoding="utf-8")
    with pytest.raises(RuntimeError, match="no such model"):
        peer_trainers.step_s(sys.executable, [str(script)], tmp_path)
