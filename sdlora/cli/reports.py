"""Reports of tools on the terminal, for people or as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable

from sdlora.lora.tools.report import Report


def print_reports(reports: Iterable[Report], as_json: bool) -> int:
    """Print each report, its warnings to stderr; return the exit status: 1 where one is bad."""
    status = 0
    for report in reports:
        if as_json:
            print(json.dumps(report.as_json, ensure_ascii=False))
        else:
            print("\n".join(report.lines()))
        for warning in report.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        status = status if report.good else 1
    return status
