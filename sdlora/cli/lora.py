"""The verb `lora`: LoRA files described, checked, converted, merged, resized, extracted, fused and
compared.

Each tool is a row of TOOLS: its settings, those of them that are positional arguments, and its
function. Torch is loaded only when a tool that computes runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sdlora.cli.flags import add_flags, add_operands, add_shared_flags, given
from sdlora.cli.reports import print_reports
from sdlora.errors import LoraFileError
from sdlora.lora.library.describe import describe, find_file
from sdlora.lora.tools.report import Report
from sdlora.settings.base import Settings
from sdlora.settings.lora_tools import (
    CheckSettings,
    CompareSettings,
    ConvertSettings,
    ExtractSettings,
    FuseSettings,
    InfoSettings,
    MergeSettings,
    ResizeSettings,
)
from sdlora.workspace import Workspace

Act = Callable[[Any, Workspace], Sequence[Report]]


@dataclass(frozen=True)
class LoraVerb:
    """A tool of the verb `lora`; the docstring of its settings is the help text."""

    settings: type[Settings]
    operands: tuple[str, ...]
    act: Act


def info(settings: InfoSettings, workspace: Workspace) -> list[Report]:
    """Report the metadata of each file, from its header."""
    reports = []
    for name in settings.files:
        try:
            facts = describe(find_file(name, workspace))
            reports.append(Report(facts["name"], facts))
        except LoraFileError as error:
            reports.append(Report(name, {"problem": str(error)}, good=False))
    return reports


def _computing(name: str) -> Act:
    def act(settings: Settings, workspace: Workspace) -> Sequence[Report]:
        from sdlora.cli import lora_tools

        tool: Act = getattr(lora_tools, name)
        return tool(settings, workspace)

    return act


TOOLS = {
    "info": LoraVerb(InfoSettings, ("files",), info),
    "check": LoraVerb(CheckSettings, ("files",), _computing("check")),
    "convert": LoraVerb(ConvertSettings, ("file",), _computing("convert")),
    "merge": LoraVerb(MergeSettings, ("files",), _computing("merge")),
    "resize": LoraVerb(ResizeSettings, ("file",), _computing("resize")),
    "extract": LoraVerb(ExtractSettings, ("base", "tuned"), _computing("extract")),
    "fuse": LoraVerb(FuseSettings, ("files",), _computing("fuse")),
    "compare": LoraVerb(CompareSettings, ("first", "second"), _computing("compare")),
}


def add_tools(parser: argparse.ArgumentParser) -> None:
    """Add a parser for each tool below that of `lora`."""
    tools = parser.add_subparsers(title="tools", metavar="TOOL", dest="tool", required=True)
    for name, tool in TOOLS.items():
        description = (tool.settings.__doc__ or "").strip()
        tool_parser = tools.add_parser(name, help=description, description=description)
        add_operands(tool_parser, tool.settings, tool.operands)
        add_flags(tool_parser, tool.settings, but=tool.operands, needed=True)
        add_shared_flags(tool_parser)


def lora(options: argparse.Namespace) -> int:
    """Inspect LoRA files, and convert, merge, resize or compare them."""
    tool = TOOLS[options.tool]
    settings = tool.settings.from_values(given(options, tool.settings))
    reports = tool.act(settings, Workspace.open(options.workspace))
    return print_reports(reports, options.json)
