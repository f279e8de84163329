"""Train the four LoRAs that ship: `python -m sdlora.starter.make_loras [NAME ...]`.

The default presets on the shipped sets; the same seed gives the same files.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from sdlora.settings.presets import with_preset
from sdlora.settings.train import Goal, TrainSettings
from sdlora.starter.sets import SETS
from sdlora.terminal import Printer, follow
from sdlora.training.train import train
from sdlora.workspace import STARTER_LORAS, TRAINING_DATA, Workspace

GOALS: dict[str, Goal] = {"zibo": "character", "cyberpunk_architecture": "object"}


def make(name: str, output: Path) -> Path:
    """Train the set `name` with its goal's preset and put the file into `output`."""
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace.open(folder)
        goal = GOALS.get(name, "style")
        settings = with_preset(
            TrainSettings(data=str(TRAINING_DATA / name), name=name, goal=goal, sample_every=0),
            "starter",
        )
        run = workspace.runs / name
        run.mkdir()
        state = follow(train(settings, workspace, run), Printer(as_json=False))
        output.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copyfile(state.result, output / f"{name}.safetensors"))


def main() -> int:
    """Train the named sets, or all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", default=list(SETS), metavar="NAME")
    parser.add_argument("--output", type=Path, default=STARTER_LORAS)
    options = parser.parse_args()
    for name in options.names:
        path = make(name, options.output)
        print(f"{path.name}: {path.stat().st_size / 2**20:.2f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
