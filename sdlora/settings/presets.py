"""What a goal, a model family and an effort want different from the defaults, from data files.

One TOML file per family beside this page, and `any.toml` for all. In a file, what stands first is
for every training of that family; the tables `[quality]`, `[style]` and `[style.quality]` are for
one effort, one goal, and both. The more particular wins, a family's file over `any.toml`, and what
the user set over all of it. `[drift]` holds prompts that hardly any LoRA is about.
"""

from __future__ import annotations

import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

from sdlora.errors import SettingsError
from sdlora.settings.train import Effort, Goal, TrainSettings

FOLDER = Path(__file__).parent / "preset_values"
ANY = "any"


@lru_cache
def table(family: str) -> dict[str, Any]:
    """A family's file as it is written; empty when there is none."""
    path = FOLDER / f"{family}.toml"
    if not path.is_file():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(
            "the presets in {path} cannot be read: {why}", path=path, why=error
        ) from None


def preset(family: str, goal: Goal, effort: Effort = "balanced") -> dict[str, Any]:
    """The values that a family, goal and effort want."""
    values: dict[str, Any] = {}
    for name in (ANY, family):
        rows = table(name)
        by_goal = rows.get(goal, {})
        for row in (rows, rows.get(effort, {}), by_goal, by_goal.get(effort, {})):
            values |= {key: value for key, value in row.items() if not isinstance(value, dict)}
    return {key: tuple(its) if isinstance(its, list) else its for key, its in values.items()}


def unrelated(family: str) -> tuple[str, ...]:
    """Prompts that hardly any LoRA for this family is about."""
    said = table(family).get("drift") or table(ANY)["drift"]
    return tuple(said["prompts"])


def families() -> tuple[str, ...]:
    """The families that have a file of their own, and `any`."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def with_preset(settings: TrainSettings, family: str) -> TrainSettings:
    """What the user set, over the preset of `family`, goal and effort; everything counts as set."""
    wanted = preset(family, settings.goal, settings.effort)
    chosen = TrainSettings.of({**wanted, **settings.given()})
    return TrainSettings.of(chosen.model_dump(mode="json"))


EFFORTS: tuple[Effort, ...] = get_args(Effort)
GOALS: tuple[Goal, ...] = get_args(Goal)
