"""What the benchmarks share: their command line, the machine's name, and a table as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch


def machine() -> str:
    """The machine in words."""
    chip = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}{chip}"


def asked(doc: str | None, **counts: int | str) -> argparse.Namespace:
    """The command line: a flag for each value, with its default, and where the judge is kept."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    for name, default in counts.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--judge", type=Path, default=Path(tempfile.gettempdir()) / "sdlora-judge")
    return parser.parse_args()


def show(table: Mapping[str, object]) -> None:
    """Print what was measured, the machine first."""
    print(json.dumps({"machine": machine(), **table}, indent=2))
