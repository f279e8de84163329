"""The verb `dataset`: what a training would learn from, and captions by the many.

Each tool is a row of TOOLS: its settings, which of them stand on the line without a flag, and what
it does.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import Field

from sdlora.cli.flags import add_flags, add_operands, add_shared_flags, given
from sdlora.data.caption_editing import CaptionSettings, Change, editing, planned, undo, write
from sdlora.data.folder import Problem
from sdlora.data.report import CaptionRow, Preflight, check
from sdlora.events import Measured, Warned
from sdlora.messages import readable
from sdlora.settings.base import Settings
from sdlora.settings.captioning import DescribeSettings
from sdlora.settings.presets import with_preset
from sdlora.settings.train import TrainSettings
from sdlora.workspace import Workspace

MOST_TAGS = 15


@dataclass(frozen=True)
class DatasetVerb:
    """One word after `dataset`. `act` yields what it has to say: a line, and for programs a table.
    The first sentence of its docstring says what it is for."""

    settings: type[Settings]
    act: Callable[[Any, Workspace], Iterator[Said]]
    usual: Mapping[str, Any] = field(default_factory=dict)  # of fields that are required elsewhere


@dataclass(frozen=True)
class Said:
    """Something to say: in words, and for programs."""

    words: str
    facts: Mapping[str, Any]


class DatasetCheckSettings(TrainSettings):
    """What a training is checked with: its own settings."""

    measure: bool = Field(False, description="Take a few steps, to tell the time and the memory")


def check_pictures(settings: DatasetCheckSettings, workspace: Workspace) -> Iterator[Said]:
    """Show every picture as a training with these flags would see it, and all that is wrong."""
    given = TrainSettings.of({k: v for k, v in settings.given().items() if k != "measure"})
    found = check(with_preset(given, workspace.preset_family(given.model)), workspace)
    for row in found.rows:
        yield Said(_row(row), row.as_json)
    yield Said(_summary(found), found.as_json)
    if settings.measure:
        yield from _measured(found, workspace)


def _measured(found: Preflight, workspace: Workspace) -> Iterator[Said]:
    from sdlora.training.measure_step import measure  # loads torch

    *_, cost = (event for event in measure(found, workspace) if isinstance(event, Measured))
    words = (
        f"time: {cost.step_s:.2f} s a step at the largest size, {cost.training_s / 60:.0f} min for "
        f"all steps, samples aside\n"
        f"memory: {cost.peak_gib:.1f} GiB at most, {cost.free_gib:.1f} GiB free ({cost.device})"
    )
    yield Said(words, asdict(cost))


def _row(row: CaptionRow) -> str:
    (width, height), bucket = row.example.size, row.bucket
    cut = "" if row.cut.width * row.cut.height > 0.995 * width * height else (
        f", cut to {row.cut.width:.0f} x {row.cut.height:.0f} "
        f"at {row.cut.left:.0f}, {row.cut.top:.0f}"
    )  # fmt: skip
    marks = [f"{row.example.repeats} times"] if row.example.repeats > 1 else []
    marks += ["regularisation"] if row.example.regularisation else []
    marks += ["held out"] if row.held_out else []
    marks += ["masked"] if row.example.mask else []
    marks += [row.length] if row.length else []
    lines = [
        f"{row.example.image.name}: {width} x {height}{cut}, scaled by {row.cut.scale:.2f} "
        f"to {bucket.width} x {bucket.height}{''.join(f', {mark}' for mark in marks)}",
        f"    {row.caption!r}",
        *(f"    or {text!r}" for text in row.drawn if text != row.caption),
        *(f"  ! {p.beside(row.example.image)}{_advice(p)}" for p in row.problems),
    ]
    return "\n".join(lines)


def _summary(found: Preflight) -> str:
    sizes = ", ".join(f"{count} at {b.width} x {b.height}" for b, count in found.buckets.items())
    tags = ", ".join(f"{tag} ({count})" for tag, count in [*found.tags.items()][:MOST_TAGS])
    wrong = sum(bool(row.problems) for row in found.rows)
    lines = [
        "",
        *(f"not used as meant: {p.path.name} {p.what}{_advice(p)}" for p in found.others),
        *(f"! {p.path.name} {p.what}{_advice(p)}" for p in found.general),
        f"pictures: {len(found.rows)}, {sizes}; {wrong} of them with something to look at",
        f"trigger word: {found.trigger or 'none'}",
        f"tags: {tags}",
        f"steps: {found.settings.steps}, in rounds of {found.steps_per_round}: every picture "
        f"{found.rounds:.1f} times",
    ]
    return "\n".join(lines)


def _advice(problem: Problem) -> str:
    return f" ({problem.advice})" if problem.advice else ""


def edit_captions(settings: CaptionSettings, workspace: Workspace) -> Iterator[Said]:
    """Find and replace in the captions of a folder, put text around them, take tags out."""
    folder = workspace.picture_folder(settings.data)
    if settings.undo:
        changes, done = undo(folder), "taken back"
    else:
        changes = planned(folder, editing(settings))
        done = "written; --undo takes it back" if settings.write else "not written yet: add --write"
        if settings.write and changes:
            write(folder, changes)
    for change in changes:
        facts = {"file": str(change.path), "before": change.before, "after": change.after}
        lines = [change.path.name, f"  - {change.before.strip()}", f"  + {change.after}"]
        lines += [f"  ! {change.note}"] if change.note else []
        yield Said("\n".join(lines), {**facts, "note": change.note})
    count = f"{len(changes)} captions change" if len(changes) != 1 else "1 caption changes"
    yield Said(f"{count}, {done}" if changes else "no caption changes", {"changed": len(changes)})


def describe_pictures(settings: DescribeSettings, workspace: Workspace) -> Iterator[Said]:
    """Let a model that looks at the pictures write captions, to be corrected by hand."""
    from sdlora.data.captioning import describe  # loads torch

    count = 0
    for event in describe(settings, workspace.picture_folder(settings.data)):
        if isinstance(event, Change):
            count += 1
            facts = {"file": str(event.path), "before": event.before, "after": event.after}
            yield Said(f"{event.path.stem}: {event.after}", facts)
        elif isinstance(event, Warned):
            print(f"warning: {event.message}", file=sys.stderr)
    done = "written" if settings.write else "not written yet: add --write"
    yield Said(f"{count} captions, {done}" if count else "no picture lacks one", {"changed": count})


TOOLS = {
    "check": DatasetVerb(DatasetCheckSettings, check_pictures, {"name": "check"}),
    "captions": DatasetVerb(CaptionSettings, edit_captions),
    "describe": DatasetVerb(DescribeSettings, describe_pictures),
}


def add_tools(parser: argparse.ArgumentParser) -> None:
    """A parser for each tool below that of `dataset`."""
    tools = parser.add_subparsers(title="tools", metavar="TOOL", dest="tool", required=True)
    for name, tool in TOOLS.items():
        words = (tool.act.__doc__ or "").strip()
        one = tools.add_parser(name, help=words, description=words)
        add_operands(one, tool.settings, ("data",))
        add_flags(one, tool.settings, but=("data", *tool.usual))
        add_shared_flags(one)


def dataset(options: argparse.Namespace) -> int:
    """Look at picture folders before a training, and change captions by the many."""
    tool = TOOLS[options.tool]
    settings = tool.settings.of({**tool.usual, **given(options, tool.settings)})
    for said in tool.act(settings, Workspace.open(options.workspace)):
        text = json.dumps(said.facts, ensure_ascii=False) if options.json else said.words
        print(readable(text))
    return 0
