"""A workspace in which LoRAs are trained on the drawn world, and eyes for what comes of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from benchmarks.judge import Judge
from benchmarks.strength import picture, words
from sdlora.events import RunState, fold
from sdlora.jobs import run_folder
from sdlora.settings.presets import with_preset
from sdlora.settings.train import TrainSettings
from sdlora.starter.draw import Scene
from sdlora.starter.measure import StyleAxis, scenes_for, style_statistics
from sdlora.starter.sets import SETS
from sdlora.training.train import train
from sdlora.worker.worker import open_engine
from sdlora.workspace import STARTER_MODEL, TRAINING_DATA, Workspace

STYLE, SOMEBODY = "neon_lighting", "zibo"
USUAL = 0.8  # weight of the pictures that are measured
SCENES, HELD_OUT, FEW = 24, 12, 3
UNRELATED = (
    "a red ball, meadow background",
    "a yellow fish, sea background",
    "a green tree, snow background",
    "a white rocket, desert background",
)


@dataclass(frozen=True)
class Look:
    """Pictures of one LoRA, and what is to be seen in them."""

    images: list[Image.Image]
    style: float  # 0 a plain picture, 1 the training set
    said: list[dict[str, str]]  # the judge's answers

    def share(self, question: str, answers: Iterable[str]) -> float:
        """How many of the pictures show what they should."""
        right = [one[question] == answer for one, answer in zip(self.said, answers, strict=True)]
        return round(sum(right) / len(right), 3)


class Lab:
    """A workspace to train in, and the eyes that look at what comes of it."""

    def __init__(self, work: Path, judge: Judge) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self.workspace, self.judge = Workspace.open(work), judge
        self.engine = open_engine(self.workspace)

    @cached_property
    def axis(self) -> StyleAxis:
        """Of the style that is trained."""
        from diffusers import AutoencoderKL

        vae = AutoencoderKL.from_pretrained(STARTER_MODEL, subfolder="vae").float().eval()
        return StyleAxis(vae, STYLE)

    def fresh(self, name: str) -> Path:
        """A folder of pictures of the set `name` that are not in it, to validate with."""
        folder = self.workspace.root / "fresh" / name
        folder.mkdir(parents=True, exist_ok=True)
        chosen = SETS[name]
        for number, scene in enumerate(scenes_for(name, HELD_OUT, seed=5)):
            chosen.draw(scene).save(folder / f"{number:02}.png")
            (folder / f"{number:02}.txt").write_text(chosen.caption(scene), encoding="utf-8")
        return folder

    def few(self) -> Path:
        """The style's first pictures alone."""
        folder = self.workspace.root / "few"
        folder.mkdir(exist_ok=True)
        for path in sorted((TRAINING_DATA / STYLE).glob("*.png"))[:FEW]:
            for file in (path, path.with_suffix(".txt")):
                shutil.copyfile(file, folder / file.name)
        return folder

    def train(self, name: str, data: str = STYLE, **changes: Any) -> RunState:
        """The run `name`: the starter's preset with `changes`; as it was, if it is there. One that
        diverged has no result."""
        folder = self.workspace.runs / name
        folder.mkdir(exist_ok=True)
        if run_folder.read(folder).status not in ("done", "failed"):
            kind = data if data in SETS else STYLE
            values: dict[str, Any] = {
                "data": str(TRAINING_DATA / data if data in SETS else data), "name": name,
                "goal": "character" if kind == SOMEBODY else "style", "sample_every": 0,
                "validate_every": 60, "validation_data": str(self.fresh(kind)),
                "drift_prompts": UNRELATED, **changes,
            }  # fmt: skip
            settings = with_preset(TrainSettings.from_values(values), "starter")
            fold(run_folder.record(train(settings, self.workspace, folder), folder))
        state = run_folder.read(folder)
        assert state.status == "done" or "diverged" in state.error, f"{name}: {state.error}"
        print(f"{name}: {state.error or f'{state.seconds:.0f} s'}", flush=True)
        return state

    def look(self, prompts: Iterable[str]) -> Look:
        """A picture of each prompt, its place among them the seed."""
        images = [picture(self.engine, text, seed) for seed, text in enumerate(prompts)]
        return Look(
            images, round(self.axis.score(images).mean().item(), 3), self.judge.answers(images)
        )

    def statistics(self, images: Sequence[Image.Image]) -> Tensor:
        """(F,) what is in the pictures when one forgets where things are, on the axis's scale."""
        return style_statistics(self.axis.vae, images).mean(0) / self.axis.spread

    def styled(self, tag: str = "", count: int = SCENES) -> tuple[Look, list[Scene]]:
        """Scenes in the style's words, with a tag or without."""
        scenes = scenes_for(STYLE, count, seed=11)
        return self.look(f"{SETS[STYLE].trigger}, {words(s)} {tag}".strip() for s in scenes), scenes


def tag_of(state: RunState, weight: float = USUAL) -> str:
    """What a prompt names the run's LoRA by."""
    return f"<lora:{Path(state.result).stem}:{weight:g}>"
