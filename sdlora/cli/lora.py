"""The verb `lora`: what files are, and files made from files.

Each tool is a row of TOOLS: its settings, which of them stand on the line without a flag, and what
it does. Torch is loaded when a tool runs that computes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sdlora.cli.flags import add_flags, add_operands, add_shared_flags, given
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
    """One word after `lora`; the docstring of its settings says what it is for."""

    settings: type[Settings]
    operands: tuple[str, ...]
    act: Act


def info(settings: InfoSettings, workspace: Workspace) -> list[Report]:
    """What each file says of itself, from its header."""
    answers = []
    for name in settings.files:
        try:
            facts = describe(find_file(name, workspace))
            answers.append(Report(facts["name"], facts))
        except LoraFileError as error:
            answers.append(Report(name, {"problem": str(error)}, good=False))
    return answers


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
    "compare": LoraVerb(CompareSettings, ("one", "other"), _computing("compare")),
}


def add_tools(parser: argparse.ArgumentParser) -> None:
    """A parser for each tool below that of `lora`."""
    tools = parser.add_subparsers(title="tools", metavar="TOOL", dest="tool", required=True)
    for name, tool in TOOLS.items():
        words = (tool.settings.__doc__ or "").strip()
        one = tools.add_parser(name, help=words, description=words)
        add_operands(one, tool.settings, tool.operands)
        add_flags(one, tool.settings, but=tool.operands)
        add_shared_flags(one)


def lora(options: argparse.Namespace) -> int:
    """Look into LoRA files, and make others from them."""
    tool = TOOLS[options.tool]
    settings = tool.settings.of(given(options, tool.settings))
    answers = tool.act(settings, Workspace.open(options.workspace))
    for answer in answers:
        if options.json:
            print(json.dumps(answer.as_json, ensure_ascii=False))
        else:
            print("\n".join(answer.lines()))
        for warning in answer.warnings:
            print(f"warning: {warning}", file=sys.stderr)
    return 0 if all(answer.good for answer in answers) else 1
