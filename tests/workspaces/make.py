"""Make the archive of a workspace by the version at hand: see README.md beside this file."""

import json
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))

from sdlora.events import Event, Step
from sdlora.jobs import run_folder
from sdlora.jobs.queue import Queue
from sdlora.settings.image_request import ImageRequest
from sdlora.settings.train import TrainSettings
from sdlora.training.train import train
from sdlora.worker.worker import open_engine
from sdlora.workspace import TRAINING_DATA, Workspace
from webui import fields

PAUSED: dict[str, Any] = {
    "data": "zibo_small", "name": "paused", "goal": "character", "steps": 12, "rank": 1, "alpha": 1,
    "batch_size": 2, "resolution": 64, "seed": 11, "learning_rate": 1e-3, "warmup_steps": 2,
    "sample_every": 6, "sample_prompts": ("zibo",), "save_every": 4, "keep_checkpoints": 1,
    "validate_every": 6, "validation_share": 0.25, "measure_drift": False,
}  # fmt: skip
FINISHED = {**PAUSED, "name": "finished", "steps": 3, "sample_every": 3, "save_every": 3}
FINISHED |= {"validate_every": 0, "validation_share": 0.0}
PICTURE = {
    "prompt": "zibo, meadow background <lora:finished:0.8>",
    "width": 64,
    "height": 64,
    "steps": 2,
}
DRAFTS = {
    ImageRequest: {
        "prompt": "zibo, sea background <lora:finished:0.8>", "negative_prompt": "blurry",
        "steps": 12, "guidance": 4.5, "seed": 2**40 + 1, "sampler": "euler", "width": 64,
    },
    TrainSettings: {
        "name": "next", "learning_rate": 3e-4, "steps": 50, "rank": 4, "optimizer": "prodigy",
        "adapter": "dora", "sample_prompts": ("zibo, night background", "zibo"),
        "targets": ("attention", "conv"), "group_rank": ("conv=4",), "flip": True,
    },
}  # fmt: skip
PLACES = {ImageRequest: "generate", TrainSettings: "train"}


def pictures(space: Workspace) -> None:
    """Write the picture set: four of those that ship, small."""
    folder = space.datasets / "zibo_small"
    folder.mkdir()
    for picture in sorted((TRAINING_DATA / "zibo").glob("*.png"))[:4]:
        Image.open(picture).resize((64, 64)).convert("RGB").save(folder / picture.name)
        shutil.copy(picture.with_suffix(".txt"), folder)


def run(space: Workspace, values: dict[str, Any], pause_at: int | None = None) -> None:
    """Train to the end, or until it pauses after a step."""
    settings = TrainSettings.from_values(values)
    folder = run_folder.new_folder(settings, space)
    events: Iterable[Event] = run_folder.record(train(settings, space, folder), folder)
    for event in events:
        if isinstance(event, Step) and event.step == pause_at:
            run_folder.request(folder, "pause")


def jobs(space: Workspace) -> None:
    """A request that is done, one that waits, and a training that waits."""
    queue = Queue(space.database)
    request = ImageRequest.from_values({**PICTURE, "seed": 5})
    folder = run_folder.start(request, space, queue)
    job = queue.claim("1:1")
    for _ in run_folder.record(open_engine(space).generate(request, lambda: False), folder):
        pass
    if job:
        queue.finish(job, "done")
    time.sleep(1.1)  # folders are named by the second
    run_folder.start(ImageRequest.from_values({**PICTURE, "seed": 6}), space, queue)
    run_folder.start(TrainSettings.from_values({**PAUSED, "name": "waiting"}), space, queue)


def drafts() -> str:
    """What the browser keeps of the fields, by tab."""
    return json.dumps(
        {
            PLACES[settings]: {
                name: fields.shown(settings.model_fields[name], value)
                for name, value in values.items()
            }
            for settings, values in DRAFTS.items()
        }
    )


def main(archive: Path) -> None:
    """Make everything, and pack it."""
    with tempfile.TemporaryDirectory() as other:
        whole = Workspace.open(other)
        pictures(whole)
        run(whole, PAUSED)
        space = Workspace.open("workspace")
        pictures(space)
        run(space, PAUSED, pause_at=5)
        run(space, FINISHED)
        jobs(space)
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
            for path in sorted(space.root.rglob("*")):
                if path.name not in ("pid", "heartbeat"):
                    file.write(path, Path("workspace") / path.relative_to(space.root))
            file.write(whole.loras / "paused.safetensors", "uninterrupted.safetensors")
            file.writestr("drafts.json", drafts())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
