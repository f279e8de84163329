"""Settings that a run may be resumed with in place of its own: its length, its paths, its
intervals.

They lie in the run's folder beside its settings, and override those of its newest checkpoint. Any
other setting would make a different LoRA and needs a new run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdlora.errors import RunError, SettingsError
from sdlora.events import RunState
from sdlora.files import write_atomically
from sdlora.messages import Message, PerSurface, Setting
from sdlora.settings.train import TrainSettings
from sdlora.text_files import json_value

RESUME_FILE = "resume.json"
MAY_CHANGE = (
    *("steps", "epochs", "patience"),
    *("data", "more_data", "regularisation", "masks", "validation_data", "model"),
    *("sample_every", "sample_every_epochs", "sample_prompts"),
    *("validate_every", "validate_every_epochs"),
    *("save_every", "save_every_epochs", "keep_checkpoints"),
)
# A setting that is given in epochs, and the one in steps that it stands in place of
_IN_EPOCHS = {
    "epochs": "steps",
    "sample_every_epochs": "sample_every",
    "validate_every_epochs": "validate_every",
    "save_every_epochs": "save_every",
}
MORE_STEPS = PerSurface(
    command="python launch.py runs resume NAME --steps N goes on with more steps",
    page="More steps goes on with it",
)


def read_changes(folder: Path) -> dict[str, Any]:
    """The settings that the run in `folder` was last resumed with; none without a file.
    SettingsError: the file cannot be read."""
    path = folder / RESUME_FILE
    if not path.exists():
        return {}
    try:
        changes = dict(json_value(path.read_text(encoding="utf-8")).items())
        return {name: changes[name] for name in MAY_CHANGE if name in changes}
    except (OSError, ValueError, AttributeError) as error:
        raise SettingsError("{file} cannot be read: {why}", file=path, why=error) from None


def apply_changes(settings: Mapping[str, Any], folder: Path) -> TrainSettings:
    """Return the settings of a checkpoint with the run's changes applied."""
    changes = read_changes(folder)
    for epochs, steps in _IN_EPOCHS.items():
        if steps in changes and epochs not in changes:
            changes[epochs] = None
    return TrainSettings.from_values(TrainSettings.from_record({**settings, **changes}))


def write_changes(folder: Path, settings: TrainSettings, changes: Mapping[str, Any]) -> None:
    """Write the changes that the run in `folder` is resumed with; earlier changes stay unless these
    override them. SettingsError: one of them may not change, or is not valid."""
    if not changes:
        return
    problems = {
        name: Message(
            "{setting} cannot change in a run that has begun; start a new one for it",
            setting=Setting(name),
        )
        for name in changes
        if name not in MAY_CHANGE
    }
    if problems:
        raise SettingsError(Message.of_lines(problems.values()), fields=problems)
    TrainSettings.from_values({**settings.given(), **changes})
    text = json.dumps({**read_changes(folder), **changes}, ensure_ascii=False, indent=2)
    write_atomically(folder / RESUME_FILE, lambda to: to.write_text(text + "\n", encoding="utf-8"))


def check_finished(name: str, state: RunState, changes: Mapping[str, Any]) -> None:
    """Refuse to resume a finished run without more steps. RunError: what is missing."""
    if state.status != "done" or "epochs" in changes:
        return
    if "steps" not in changes:
        raise RunError(
            "the run {name!r} is finished: its LoRA is {file}; {more}",
            name=name, file=Path(state.result), more=MORE_STEPS,
        )  # fmt: skip
    if int(changes["steps"]) <= state.step:
        raise RunError(
            "the run {name!r} has taken {done} steps already; {setting} = {steps} asks for no more",
            name=name, done=state.step, setting=Setting("steps"), steps=changes["steps"],
        )  # fmt: skip
    if state.checkpoint is None:
        raise RunError(
            "the run {name!r} has no checkpoint to go on from: it was made with {setting} = 0, or "
            "by an earlier version",
            name=name, setting=Setting("save_every"),
        )  # fmt: skip
