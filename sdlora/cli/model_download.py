"""The tool `models download`: what would come is shown, or it is downloaded."""

from __future__ import annotations

import argparse
import json

from sdlora.assets.download import kind_folder, open_session, plan_download
from sdlora.assets.download_plan import DownloadPlan
from sdlora.cli.train import DONE, FAILED
from sdlora.disk_room import free_bytes
from sdlora.jobs import run_folder
from sdlora.messages import size_in_words
from sdlora.settings.download import DownloadSettings
from sdlora.terminal import OnInterrupt, Printer
from sdlora.worker import tasks
from sdlora.workspace import Workspace


def download(settings: DownloadSettings, workspace: Workspace, options: argparse.Namespace) -> int:
    """Download here, beside whatever the worker does; the same command again goes on with what was
    broken off."""
    if options.dry_run:
        return _show_plan(settings, workspace, options.json)
    folder = run_folder.new_folder(settings, workspace)
    with OnInterrupt(lambda: run_folder.stop(folder)):
        state = tasks.run_task("download", folder, workspace, options.json)
    if state.result and not options.json:
        print(state.result)
    return DONE if state.status == "done" else FAILED


def _show_plan(settings: DownloadSettings, workspace: Workspace, as_json: bool) -> int:
    """Show what would be downloaded, and write nothing."""
    session, printer = open_session(), Printer(as_json)
    events = plan_download(settings, session)
    with session.client:
        while True:
            try:
                printer.show(next(events))
            except StopIteration as end:
                plan: DownloadPlan = end.value
                break
    folder = kind_folder(plan.kind, workspace)
    free = free_bytes(folder)
    if as_json:
        files = [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in plan.files]
        facts = {
            "source": plan.source, "kind": plan.kind, "folder": str(folder), "name": plan.folder,
            "version": plan.version, "size": plan.size, "free": free, "files": files,
            "claimed": dict(plan.claims), "notes": list(plan.notes),
        }  # fmt: skip
        print(json.dumps(facts, ensure_ascii=False))
        return DONE
    size = "of unknown size" if plan.size is None else size_in_words(plan.size)
    print(f"{plan.source}: {plan.kind}, {size}, into {folder} ({size_in_words(free)} free)")
    for file in plan.files:
        print(f"  {file.path}" + ("" if file.size is None else f"  {size_in_words(file.size)}"))
    for name, value in plan.claims.items():
        if value:
            print(f"  its page says: {name.replace('_', ' ')} = {value}")
    for note in plan.notes:
        print(f"  note: {note}")
    return DONE
