"""The verb `dataset`: the report of a dataset, captioning, and bulk editing of captions.

Each tool is a row of TOOLS: its settings, those of them that are positional arguments, and its
function.
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
from sdlora.data.caption_editing import (
    CaptionSettings,
    Change,
    caption_editor,
    plan_changes,
    undo,
    write_changes,
)
from sdlora.data.folder import Problem
from sdlora.data.report import CaptionRow, Preflight, check_dataset
from sdlora.events import Measured, Warned
from sdlora.messages import readable
from sdlora.models.registry import preset_family
from sdlora.settings.base import Settings
from sdlora.settings.captioning import DescribeSettings
from sdlora.settings.presets import with_preset
from sdlora.settings.train import TrainSettings
from sdlora.workspace import Workspace

MAX_TAGS = 15  # that the summary lists


@dataclass(frozen=True)
class DatasetVerb:
    """A tool of the verb `dataset`. `act` yields its output; its docstring is the help text."""

    settings: type[Settings]
    act: Callable[[Any, Workspace], Iterator[OutputLine]]
    usual: Mapping[str, Any] = field(default_factory=dict)  # of fields that are required elsewhere


@dataclass(frozen=True)
class OutputLine:
    """An output line of a tool, as text and for programs."""

    text: str
    facts: Mapping[str, Any]


class DatasetCheckSettings(TrainSettings):
    """Settings of a dataset report: those of the training."""

    measure: bool = Field(False, description="Take a few steps, to tell the time and the memory")


def check_pictures(settings: DatasetCheckSettings, workspace: Workspace) -> Iterator[OutputLine]:
    """Show every picture as a training with these flags would see it, and all problems."""
    training = TrainSettings.from_values(
        {k: v for k, v in settings.given().items() if k != "measure"}
    )
    report = check_dataset(
        with_preset(training, preset_family(workspace.model_source(training.model))), workspace
    )
    for row in report.rows:
        yield OutputLine(_row(row), row.as_json)
    yield OutputLine(_summary(report), report.as_json)
    if settings.measure:
        yield from _measured(report, workspace)


def _measured(report: Preflight, workspace: Workspace) -> Iterator[OutputLine]:
    from sdlora.device import pick_device, pick_dtype  # these load torch
    from sdlora.training.measure_step import measure
    from sdlora.training.memory_plan import plan_memory

    *_, cost = (event for event in measure(report, workspace) if isinstance(event, Measured))
    text = (
        f"time: {cost.step_s:.2f} s a step at the largest size, {cost.training_s / 60:.0f} min for "
        f"all steps, samples aside\n"
        f"memory: {cost.peak_gib:.1f} GiB at most, {cost.free_gib:.1f} GiB free ({cost.device})"
    )
    settings, (device, _) = report.settings, pick_device()
    itemsize = pick_dtype(device, settings.precision)[0].itemsize
    source = workspace.model_source(settings.model)
    plan = plan_memory(settings, source, itemsize, device)
    text += f"\nplan: {plan}"
    if plan.prediction:
        text += f"\npredicted for the device, before it was measured: {plan.prediction}"
    yield OutputLine(text, asdict(cost))


def _row(row: CaptionRow) -> str:
    (width, height), bucket = row.example.size, row.bucket
    cut = "" if row.cut.width * row.cut.height > 0.995 * width * height else (
        f", cut to {row.cut.width:.0f} x {row.cut.height:.0f} "
        f"at {row.cut.left:.0f}, {row.cut.top:.0f}"
    )  # fmt: skip
    marks = [f"{row.example.repeats} times"] if row.example.repeats > 1 else []
    marks += ["regularisation"] if row.example.regularisation else []
    marks += ["validation"] if row.held_out else []
    marks += ["masked"] if row.example.mask else []
    marks += [row.length] if row.length else []
    lines = [
        f"{row.example.image.name}: {width} x {height}{cut}, scaled by {row.cut.scale:.2f} "
        f"to {bucket.width} x {bucket.height}{''.join(f', {mark}' for mark in marks)}",
        f"    {row.caption!r}",
        *(f"    or {text!r}" for text in row.drawn if text != row.caption),
        *(f"  ! {p.message_beside(row.example.image)}{_advice(p)}" for p in row.problems),
    ]
    return "\n".join(lines)


def _summary(report: Preflight) -> str:
    sizes = ", ".join(f"{count} at {b.width} x {b.height}" for b, count in report.buckets.items())
    tags = ", ".join(f"{tag} ({count})" for tag, count in [*report.tags.items()][:MAX_TAGS])
    faulty = sum(bool(row.problems) for row in report.rows)
    lines = [
        "",
        *(f"not used as meant: {p.path.name} {p.message}{_advice(p)}" for p in report.others),
        *(f"! {p.path.name} {p.message}{_advice(p)}" for p in report.general),
        f"pictures: {len(report.rows)}, {sizes}; {faulty} of them with something to look at",
        f"trigger word: {report.trigger or 'none'}",
        f"tags: {tags}",
        f"steps: {report.settings.steps}, in rounds of {report.steps_per_round}: every picture "
        f"{report.rounds:.1f} times",
    ]
    return "\n".join(lines)


def _advice(problem: Problem) -> str:
    return f" ({problem.advice})" if problem.advice else ""


def edit_captions(settings: CaptionSettings, workspace: Workspace) -> Iterator[OutputLine]:
    """Find and replace in the captions of a folder, add a prefix or suffix, remove tags."""
    folder = workspace.picture_folder(settings.data)
    if settings.undo:
        changes, done = undo(folder), "taken back"
    else:
        changes = plan_changes(folder, caption_editor(settings))
        done = "written; --undo takes it back" if settings.write else "not written yet: add --write"
        if settings.write and changes:
            write_changes(folder, changes)
    for change in changes:
        facts = {"file": str(change.path), "before": change.before, "after": change.after}
        lines = [change.path.name, f"  - {change.before.strip()}", f"  + {change.after}"]
        lines += [f"  ! {change.note}"] if change.note else []
        yield OutputLine("\n".join(lines), {**facts, "note": change.note})
    count = f"{len(changes)} captions change" if len(changes) != 1 else "1 caption changes"
    yield OutputLine(
        f"{count}, {done}" if changes else "no caption changes", {"changed": len(changes)}
    )


def describe_pictures(settings: DescribeSettings, workspace: Workspace) -> Iterator[OutputLine]:
    """Caption pictures with an image-to-text model, to be corrected by hand."""
    from sdlora.data.captioning import caption_images  # loads torch

    count = 0
    for event in caption_images(settings, workspace.picture_folder(settings.data)):
        if isinstance(event, Change):
            count += 1
            facts = {"file": str(event.path), "before": event.before, "after": event.after}
            yield OutputLine(f"{event.path.stem}: {event.after}", facts)
        elif isinstance(event, Warned):
            print(f"warning: {event.message}", file=sys.stderr)
    done = "written" if settings.write else "not written yet: add --write"
    yield OutputLine(
        f"{count} captions, {done}" if count else "no picture lacks one", {"changed": count}
    )


TOOLS = {
    "check": DatasetVerb(DatasetCheckSettings, check_pictures, {"name": "check"}),
    "captions": DatasetVerb(CaptionSettings, edit_captions),
    "describe": DatasetVerb(DescribeSettings, describe_pictures),
}


def add_tools(parser: argparse.ArgumentParser) -> None:
    """Add a parser for each tool below that of `dataset`."""
    tools = parser.add_subparsers(title="tools", metavar="TOOL", dest="tool", required=True)
    for name, tool in TOOLS.items():
        description = (tool.act.__doc__ or "").strip()
        tool_parser = tools.add_parser(name, help=description, description=description)
        add_operands(tool_parser, tool.settings, ("data",))
        add_flags(tool_parser, tool.settings, but=("data", *tool.usual))
        add_shared_flags(tool_parser)


def dataset(options: argparse.Namespace) -> int:
    """Check picture folders before a training, and edit captions in bulk."""
    tool = TOOLS[options.tool]
    settings = tool.settings.from_values({**tool.usual, **given(options, tool.settings)})
    for line in tool.act(settings, Workspace.open(options.workspace)):
        text = json.dumps(line.facts, ensure_ascii=False) if options.json else line.text
        print(readable(text))
    return 0
