"""Presets: values of a goal, a model family and an effort that differ from the defaults, from data
files.

One TOML file per family is beside this module, and `any.toml` for all. In a file, the top values
are for every training of that family; the tables `[quality]`, `[style]` and `[style.quality]` are
for one effort, one goal, and both. The more specific value wins, a family's file over `any.toml`,
and a value that the user set over all of them. `based_on` names the family that a file refines.
`[drift]` holds prompts unrelated to most LoRAs.
"""

from __future__ import annotations

import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

from sdlora.errors import SettingsError
from sdlora.settings.train import PLANNED, Effort, Goal, TrainSettings

FOLDER = Path(__file__).parent / "preset_values"
ANY = "any"
BASED_ON = "based_on"


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
    """Return the preset values of a family, goal and effort."""
    values: dict[str, Any] = {}
    for name in (ANY, *_lineage(family)):
        rows = {key: value for key, value in table(name).items() if key != BASED_ON}
        by_goal = rows.get(goal, {})
        for row in (rows, rows.get(effort, {}), by_goal, by_goal.get(effort, {})):
            values |= {key: value for key, value in row.items() if not isinstance(value, dict)}
    return {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}


def _lineage(family: str) -> list[str]:
    """Return the family that this one is based on, if there is one, and the family."""
    base = table(family).get(BASED_ON)
    return [*_lineage(base), family] if base else [family]


def preset_drift_prompts(family: str) -> tuple[str, ...]:
    """Return prompts unrelated to most LoRAs for this family."""
    rows = [table(name).get("drift") for name in reversed(_lineage(family))]
    drift = next((row for row in rows if row), table(ANY)["drift"])
    return tuple(drift["prompts"])


def families() -> tuple[str, ...]:
    """The families that have a file of their own, and `any`."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def with_preset(settings: TrainSettings, family: str) -> TrainSettings:
    """Return the user's settings over the preset of `family`, goal and effort. All values count as
    set, but for those that are left to the memory plan."""
    defaults = preset(family, settings.goal, settings.effort)
    merged = TrainSettings.from_values({**defaults, **settings.given()})
    left = {
        name for name in PLANNED - settings.model_fields_set
        if getattr(merged, name) == TrainSettings.model_fields[name].default
    }  # fmt: skip
    return TrainSettings.from_values(merged.model_dump(mode="json", exclude=left))


EFFORTS: tuple[Effort, ...] = get_args(Effort)
GOALS: tuple[Goal, ...] = get_args(Goal)
