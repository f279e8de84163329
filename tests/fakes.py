"""Stand-ins for what needs a model: an engine that draws squares, a training that counts.

`python -m fakes DIR` is a worker with them; a test says in the prompt what shall go wrong.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from sdlora.errors import ModelError
from sdlora.events import (
    Checkpoint,
    Done,
    Event,
    Measured,
    Paused,
    Progress,
    SampleReady,
    Saved,
    Started,
    Step,
    Stopped,
    Validated,
    Warned,
)
from sdlora.image_metadata.infotext import infotext, write_png
from sdlora.jobs import control_files, run_folder
from sdlora.jobs.heartbeat import Times
from sdlora.jobs.kinds import Kind, MeasureSettings
from sdlora.jobs.review import loras_by_step
from sdlora.settings.grid import GridSettings
from sdlora.settings.image_request import ImageRequest
from sdlora.settings.presets import with_preset
from sdlora.settings.train import TrainSettings
from sdlora.worker.tasks import Work, run_until_stopped
from sdlora.worker.worker import Worker
from sdlora.workspace import Workspace


class FakeEngine:
    """Draws one coloured square per image; the words of the prompt decide how that goes."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace

    def generate(
        self, request: ImageRequest, should_stop: Callable[[], bool] = lambda: False
    ) -> Iterator[Event]:
        yield Progress("loading the model")
        if "no model" in request.prompt:
            raise ModelError("there is no model 'x'; put one into models/")
        if "crash" in request.prompt:
            raise RuntimeError("<b>boom</b>")
        if "kill" in request.prompt:
            os.kill(os.getpid(), signal.SIGKILL)
        yield Started("images", request.steps)
        if "<lora:" in request.prompt:
            yield Warned("there is no LoRA named <nobody>", "Did you mean somebody?")
        for step in range(1, request.steps + 1):
            if should_stop():
                yield Stopped(step=step)
                return
            time.sleep(0.1 if "slow" in request.prompt else 0.01)
            yield Step(step, request.steps, seconds_left=(request.steps - step) * 0.01)
        folder = self.workspace.outputs / "2026-01-01"
        folder.mkdir(exist_ok=True)
        for index in range(request.count):
            path = folder / f"{len(list(folder.iterdir())):05}.png"
            seed = request.seed + index
            said = {"request": request.model_dump(mode="json"), "image": {"seed": seed}}
            text = infotext(request.prompt, request.negative_prompt, {"Seed": seed})
            write_png(Image.new("RGB", (64, 64), (40 * index, 120, 200)), path, text, said)
            yield SampleReady(str(path), index, request.prompt, seed)
        yield Done(str(folder), seconds=0.5)

    def close(self) -> None:
        """Nothing is open."""


def fake_training(folder: Path, workspace: Workspace) -> Iterator[Event]:
    """Counts to the steps of the settings, drawing a sample now and then."""
    settings = with_preset(TrainSettings.load(folder / run_folder.SETTINGS_FILE), "starter")
    yield Started("steps", settings.steps, {"pictures": "20"})
    lora = write_lora(folder / "lora" / f"{settings.name}.safetensors", 0)
    for step in range(1, settings.steps + 1):
        time.sleep(0.02)
        yield Step(step, settings.steps, loss=1 / step, seconds_left=(settings.steps - step) * 0.02)
        if settings.sample_every and step % settings.sample_every == 0:
            path = folder / "samples" / f"{step}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (64, 64), (200, step % 255, 90)).save(path)
            yield SampleReady(str(path), step, "neon lighting, a house", 0)
            yield Saved(str(lora), step)
            yield Validated(step, 1.5 / step, best=True)
        if control_files.is_requested(folder, "save"):
            state = folder / "state" / f"step-{step}"
            write_lora(state / f"{settings.name}-step-{step}.safetensors", step)
            control_files.clear_requests(folder, "save")
            yield Checkpoint(str(state), step)
        if control_files.is_requested(folder, "pause"):
            yield Paused(step)
            return
        once = folder / "killed"
        if "kill" in settings.trigger_word and step == 3 and not once.exists():
            if "once" in settings.trigger_word:
                once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if run_folder.stop_asked(folder) and "stubborn" not in settings.trigger_word:
            yield Stopped(str(lora), step)
            return
    yield Saved(str(lora), settings.steps)
    yield Done(str(lora), seconds=settings.steps * 0.02)


def write_lora(path: Path, value: int) -> Path:
    """A LoRA of one layer for the starter model."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    halves = {"lora_down": np.full((2, 8), value, "f2"), "lora_up": np.zeros((8, 2), "f2")}
    save_file({f"{name}.{half}.weight": half_ for half, half_ in halves.items()}, path)
    return path


def fake_grid(folder: Path, workspace: Workspace) -> Iterator[Event]:
    """Squares: the more of a LoRA, the redder."""
    settings = GridSettings.load(folder / run_folder.SETTINGS_FILE)
    run = run_folder.find_run(workspace.runs, settings.run)
    files = loras_by_step(run, run_folder.read(run))
    steps, prompts = settings.checkpoints or tuple(files), settings.prompts or ("a house",)
    some = [(0, 0.0), *((step, strength) for step in steps for strength in settings.strengths)]
    cells = [(prompt, *one) for prompt in prompts for one in some]
    yield Started("comparing", len(cells))
    for number, (prompt, step, strength) in enumerate(cells, start=1):
        path = folder / "pictures" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 64), (round(200 * strength), number, 90)).save(path)
        yield SampleReady(str(path), step, prompt, 7, {"strength": strength})
        yield Step(number, len(cells))
    Image.new("RGB", (64, 64)).save(folder / "grid.png")
    yield Done(str(folder / "grid.png"), seconds=1.0)


def fake_measure(folder: Path, workspace: Workspace) -> Iterator[Event]:
    """Takes three steps of nothing."""
    settings = with_preset(MeasureSettings.load(folder / run_folder.SETTINGS_FILE), "starter")
    for step in range(1, 4):
        yield Progress("taking steps to measure them", step, 3)
        time.sleep(1 if "slow" in settings.trigger_word else 0.01)
    yield Measured("cpu", 0.5, 0.5 * settings.steps, settings.steps, 1.25, 20.125)
    yield Done(seconds=1.0)


FAKES: dict[Kind, Work] = {
    "train": fake_training,
    "measure": run_until_stopped(fake_measure),
    "grid": run_until_stopped(fake_grid),
}


def fake_command(kind: str, folder: Path, workspace: Workspace) -> list[str]:
    """Do it by `python -m fakes`, as its child process would."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); "
        f"import fakes; fakes.do({kind!r}, {str(folder)!r}, {str(workspace.root)!r})"
    )
    return ["-c", code]


def do(kind: Kind, folder: str, root: str) -> None:
    events = FAKES[kind](Path(folder), Workspace.open(root))
    for _ in run_folder.record(events, Path(folder), FAST.beat):
        pass


FAST = Times(beat=0.1, silence=2.0, start=30.0, ask_first=0.3, terminate=0.5)


def fake_worker(root: str | Path, idle_s: float = 60, times: Times = FAST) -> Worker:
    space = Workspace.open(root)
    return Worker(
        space, make_engine=FakeEngine, command=fake_command, idle_s=idle_s, poll_s=0.02, times=times
    )


if __name__ == "__main__":
    fake_worker(sys.argv[1]).run()
