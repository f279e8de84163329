"""Run a script and note when its optimizer steps: `python step_times.py TIMES SCRIPT [ARG ...]`.

For any trainer on torch, by its own interpreter: it needs nothing of ours. `-m MODULE` in place of
SCRIPT runs a module. TIMES becomes a JSON list of seconds.
"""

import json
import os
import runpy
import sys
import time
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook


def main() -> None:
    """Run the script, which may end by itself or by an error."""
    _, path, script, *arguments = sys.argv
    times: list[float] = []

    def note(*_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter())
        with open(path, "w", encoding="utf-8") as file:
            json.dump(times, file)

    register_optimizer_step_post_hook(note)
    if script == "-m":
        sys.argv, sys.path[0] = arguments, os.getcwd()
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [script, *arguments]
        sys.path[0] = os.path.dirname(script)
        runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
