"""How long the first minutes take: `python -m benchmarks.starter_pace [--pictures 10]`.

On the starter model: opening it, a picture of 20 steps with its upscaler, and a training of each
shipped set with the default preset of its goal. Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.report import asked, show
from sdlora.events import Done
from sdlora.settings.image_request import ImageRequest
from sdlora.starter.make_loras import make
from sdlora.starter.sets import SETS
from sdlora.worker.worker import open_engine
from sdlora.workspace import Workspace

PROMPT = "a big blue house, night background"


def picture_seconds(workspace: Workspace, pictures: int) -> dict[str, float]:
    """Seconds until the first picture, the model being opened; the median of those after it."""
    began = time.monotonic()
    engine = open_engine(workspace)
    took = []
    for seed in range(pictures + 1):
        request = ImageRequest(prompt=PROMPT, seed=seed, steps=20)
        took += [e.seconds for e in engine.generate(request) if isinstance(e, Done)]
        if seed == 0:
            first = time.monotonic() - began
    return {"first, with opening": round(first, 2), "median": round(median(took[1:]), 2)}


def main() -> None:
    """Measure and print the table."""
    options = asked(__doc__, pictures=10)
    with tempfile.TemporaryDirectory() as folder:
        table = {"picture": picture_seconds(Workspace.open(folder), options.pictures)}
        trainings = {}
        for name in SETS:
            began = time.monotonic()
            make(name, Path(folder) / "made")
            trainings[name] = round(time.monotonic() - began, 1)
    show({"load before": os.getloadavg()[0], "seconds": {**table, "training": trainings}})


if __name__ == "__main__":
    main()
