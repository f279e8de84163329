"""The verb `models`: models listed, described, checked, converted, merged and downloaded.

Each tool is a row of VERBS: its settings, those of them that are positional arguments, its
function, an example, and its own flags. Torch is loaded only when a tool that computes runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sdlora.assets.checkpoints import (
    PREDICTIONS,
    TOLD_BY,
    CheckpointEntry,
    CheckpointLibrary,
)
from sdlora.cli.flags import add_flags, add_operands, add_shared_flags, given
from sdlora.cli.model_download import download
from sdlora.cli.reports import print_reports
from sdlora.errors import ModelError
from sdlora.lora.tools.report import Report
from sdlora.messages import COMMAND
from sdlora.settings.base import Settings
from sdlora.settings.download import DownloadSettings
from sdlora.settings.model_tools import (
    ModelCheckSettings,
    ModelConvertSettings,
    ModelInfoSettings,
    ModelListSettings,
    ModelMergeSettings,
)
from sdlora.workspace import Workspace

Run = Callable[[Any, Workspace], Sequence[Report]]
Act = Callable[[Any, Workspace, argparse.Namespace], int]


@dataclass(frozen=True)
class ModelVerb:
    """A tool of the verb `models`; the docstring of its settings is the help text. `switches`: flag
    -> help of what is no setting."""

    settings: type[Settings]
    operands: tuple[str, ...]
    act: Act
    example: str
    switches: tuple[tuple[str, str], ...] = ()


def describe_model(entry: CheckpointEntry) -> dict[str, Any]:
    """Return the facts of a model as plain values by their names."""
    if entry.problem:
        problem = entry.problem.on(COMMAND)
        return {"name": entry.name, "path": str(entry.path), "problem": problem}
    info, claims = entry.info, entry.info.claims
    told_by = TOLD_BY.get(info.told_by, "")
    prediction = PREDICTIONS.get(info.prediction, "") if info.family else ""
    return {
        "name": entry.name,
        "family": entry.family_title,
        "prediction": f"{prediction} ({told_by})" if prediction else "",
        "zero terminal SNR": info.zero_terminal_snr,
        "inpainting": info.inpainting,
        "few steps": info.few_steps,
        "parts": list(info.parts),
        "missing parts": entry.missing_parts(),
        "numbers": info.dtype,
        "GiB": round(entry.size_gib, 2),
        "title": info.title,
        "sha256": entry.sha256,
        "AutoV2": entry.autov2,
        "claimed title": " ".join(filter(None, (claims.title, claims.version))),
        "claimed base": claims.base,
        "claimed sha256": f"{claims.sha256} (by {claims.by})" if claims.sha256 else "",
        "preview": str(entry.preview or ""),
        "path": str(entry.path),
    }


def list_models(settings: ModelListSettings, workspace: Workspace) -> list[Report]:
    """Report every model in a line; a model that cannot be used is listed, and is no failure."""
    library = CheckpointLibrary(workspace)
    reports = [
        Report(_line(entry), describe_model(entry), is_line=True) for entry in library.list()
    ]
    warnings = tuple(problem.on(COMMAND) for problem in library.problems)
    if warnings:
        first, *rest = reports
        reports = [Report(first.title, first.facts, warnings, is_line=True), *rest]
    return reports


def _line(entry: CheckpointEntry) -> str:
    if entry.problem:
        return f"{entry.name}: not usable: {entry.problem.on(COMMAND)}"
    info = entry.info
    snr = ", zero terminal SNR" if info.zero_terminal_snr else ""
    signs = [
        entry.family_title,
        f"predicts {PREDICTIONS[info.prediction]}{snr} ({TOLD_BY[info.told_by]})",
        info.dtype,
        f"{entry.size_gib:.2f} GiB",
        "inpainting" if info.inpainting else "",
        "for few steps" if info.few_steps else "",
        *(f"no {part}" for part in entry.missing_parts()),
        entry.autov2,
    ]
    return f"{entry.name}: {', '.join(filter(None, signs))}"


def info(settings: ModelInfoSettings, workspace: Workspace) -> list[Report]:
    """Report what each model is."""
    library, reports = CheckpointLibrary(workspace), []
    for name in settings.models:
        try:
            entry = library.find(name)
            entry = library.hashed(entry) if settings.hash else entry
            facts, notes = describe_model(entry), tuple(n.on(COMMAND) for n in entry.info.notes)
            reports.append(Report(entry.name, facts, notes, good=not entry.problem))
        except ModelError as error:
            reports.append(Report(name, {"problem": str(error)}, good=False))
    return reports


def _reported(run: Run) -> Act:
    """Return a tool that prints the reports of `run`, and fails where one of them is bad."""

    def act(settings: Settings, workspace: Workspace, options: argparse.Namespace) -> int:
        return print_reports(run(settings, workspace), options.json)

    return act


def _computing(name: str) -> Act:
    def run(settings: Settings, workspace: Workspace) -> Sequence[Report]:
        from sdlora.cli import model_tools

        tool: Run = getattr(model_tools, name)
        return tool(settings, workspace)

    return _reported(run)


VERBS = {
    "list": ModelVerb(ModelListSettings, (), _reported(list_models), "models list --json"),
    "info": ModelVerb(
        ModelInfoSettings, ("models",), _reported(info), "models info animerge --hash"
    ),
    "check": ModelVerb(ModelCheckSettings, ("models",), _computing("check"), "models check all"),
    "convert": ModelVerb(
        ModelConvertSettings, ("model",), _computing("convert"),
        "models convert old.ckpt --precision fp16 --output animerge",
    ),
    "merge": ModelVerb(
        ModelMergeSettings, ("models",), _computing("merge"),
        "models merge animerge photomerge --weight 0.3 --output between",
    ),
    "download": ModelVerb(
        DownloadSettings, ("source",), download,
        "models download civitai:456 --dry-run",
        (("--dry-run", "only show what would be downloaded, and its size"),),
    ),
}  # fmt: skip


def add_model_tools(parser: argparse.ArgumentParser) -> None:
    """Add a parser for each tool below that of `models`."""
    parser.set_defaults(json=False)
    tools = parser.add_subparsers(title="tools", metavar="TOOL", dest="tool", required=True)
    for name, tool in VERBS.items():
        description = (tool.settings.__doc__ or "").strip()
        program = parser.prog.split()[0]
        tool_parser = tools.add_parser(
            name, help=description, description=description,
            epilog=f"Example: {program} {tool.example}",
        )  # fmt: skip
        add_operands(tool_parser, tool.settings, tool.operands)
        add_flags(tool_parser, tool.settings, but=tool.operands, needed=True)
        for flag, text in tool.switches:
            tool_parser.add_argument(flag, action="store_true", help=text)
        add_shared_flags(tool_parser)


def models(options: argparse.Namespace) -> int:
    """List base models; inspect, check, convert, merge or download them."""
    tool = VERBS[options.tool]
    settings = tool.settings.from_values(given(options, tool.settings))
    return tool.act(settings, Workspace.open(options.workspace), options)
