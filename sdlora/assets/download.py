"""Download of a model: planned, checked against the disk, received, verified, given its name.

Everything is asked for by the user; nothing is overwritten. A download that ends early, whatever
ended it, leaves its parts, and the same request goes on from them. No torch.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from sdlora.assets.civitai import civitai_plan
from sdlora.assets.direct_files import direct_plan, probed
from sdlora.assets.download_clock import (
    DownloadClock,
    DownloadInterrupted,
    TransferRate,
    with_retries,
)
from sdlora.assets.download_plan import DownloadPlan, RemoteFile
from sdlora.assets.download_sources import (
    CivitaiSource,
    DirectSource,
    HubSource,
    ModelSource,
    parse_source,
)
from sdlora.assets.http_client import HttpClient
from sdlora.assets.hugging_face import hub_plan
from sdlora.assets.model_file_check import MODEL_FILES
from sdlora.assets.transfer import (
    DownloadSession,
    FileTransfer,
    WholeDownload,
    check_room,
    file_sha256,
    public_url,
)
from sdlora.disk_room import free_bytes
from sdlora.errors import DownloadError, SettingsError
from sdlora.events import Done, Event, Progress, Started, Stopped, Warned
from sdlora.file_names import MAX_NAME_LETTERS, checked_name
from sdlora.files import (
    claim_name,
    free_path,
    make_folder,
    sync_folder,
    write_atomically,
    write_if_absent,
)
from sdlora.messages import Message, Setting, size_in_words
from sdlora.settings.download import AssetKind, DownloadSettings
from sdlora.workspace import Workspace

SOURCE_FILE = "source.json"  # in a folder; beside a file `NAME.source.json`
RECORD_FORMAT = 1


def kind_folder(kind: AssetKind, workspace: Workspace) -> Path:
    """Return the folder that models of a kind are in."""
    return {
        "checkpoint": workspace.models,
        "lora": workspace.loras,
        "vae": workspace.vaes,
        "embedding": workspace.embeddings,
        "upscaler": workspace.upscalers,
    }[kind]


def open_session(should_stop: Callable[[], bool] = lambda: False) -> DownloadSession:
    """Return a session of the real network and the real clock. Close its client."""
    return DownloadSession(HttpClient(), DownloadClock(should_stop))


def download(
    settings: DownloadSettings, workspace: Workspace, session: DownloadSession
) -> Iterator[Event]:
    """Download what the settings name. SdloraError: it cannot be; what is here stays."""
    began = session.clock.now()
    try:
        plan = yield from plan_download(settings, session)
        yield from map(Warned, plan.notes)
        target = _target(plan, settings, workspace)
        yield Started(f"download of {target.name}", 0, details(plan, target))
        if plan.folder:
            path = yield from _download_folder(plan, settings, target, session)
        else:
            path = yield from _download_file(plan, settings, target, session)
        yield Done(str(path), session.clock.now() - began)
    except DownloadInterrupted:
        yield Stopped()


def plan_download(
    settings: DownloadSettings, session: DownloadSession
) -> Generator[Event, None, DownloadPlan]:
    """Return the plan of a download, all sizes known that the server gives. SdloraError: there is
    none."""
    yield Progress("asking what there is to download")
    source = parse_source(settings.source, session.client.sites)
    _check_fits(source, settings)

    def ask() -> DownloadPlan:
        if isinstance(source, HubSource):
            return hub_plan(source, settings, session.client)
        if isinstance(source, CivitaiSource):
            plan = civitai_plan(source, settings, session.client)
            return plan.with_file(probed(plan.files[0], session.client))
        return direct_plan(source, settings, session.client)

    return (yield from with_retries(ask, session.clock))


def _check_fits(source: ModelSource, settings: DownloadSettings) -> None:
    """Check that no setting is left unused. SettingsError: one is."""
    revisions = {settings.revision, source.revision} if isinstance(source, HubSource) else set()
    if settings.revision and revisions not in ({settings.revision}, {settings.revision, ""}):
        raise SettingsError(
            "{revision} is for repositories of Hugging Face whose address names no other revision",
            revision=Setting("revision"),
        )
    if settings.file and isinstance(source, DirectSource):
        raise SettingsError(
            "{file} is for pages with several files; this is the address of one",
            file=Setting("file"),
        )


def details(plan: DownloadPlan, target: Path) -> dict[str, str]:
    """Return the facts of a plan that are shown before it begins. What its page says of it is
    called so."""
    count = f" in {len(plan.files)} files" if plan.folder else ""
    size = "not known" if plan.size is None else size_in_words(plan.size)
    claims = {
        f"{name.replace('_', ' ')} (its page says)": _claim_text(value)
        for name, value in plan.claims.items()
        if value and name in ("base_model", "trained_words", "license", "version")
    }
    free = size_in_words(free_bytes(target.parent))
    return {
        "from": plan.source, "size": size + count, "to": str(target), "free there": free, **claims,
    }  # fmt: skip


def _claim_text(value: Any) -> str:
    text = ", ".join(value) if isinstance(value, list) else str(value)
    return "".join(letter if letter.isprintable() else " " for letter in text)[:200]


def _target(plan: DownloadPlan, settings: DownloadSettings, workspace: Workspace) -> Path:
    """Return the path to write, whether or not there is something already."""
    folder = kind_folder(plan.kind, workspace)
    if plan.folder:
        return folder / _safe_name(plan.folder)
    name, suffix = _split_name(plan.files[0].path)
    if settings.output:
        own_name, own_suffix = _split_name(settings.output)
        name = own_name if own_suffix == suffix else settings.output
    return folder / f"{_safe_name(name)}{suffix}"


def _split_name(name: str) -> tuple[str, str]:
    """Return the name of a model file without its ending, and the ending."""
    lower = name.lower()
    suffix = next((end for end in MODEL_FILES if lower.endswith(end)), "")
    return name[: len(name) - len(suffix)], suffix


def _safe_name(name: str) -> str:
    """Return a name that every disk takes, as near to `name` as can be."""
    last = re.split(r"[/\\]", name)[-1]
    tidy = re.sub(r"[^\w .-]", "_", last).strip(" .")[:MAX_NAME_LETTERS]
    with suppress(SettingsError):
        return checked_name(tidy)
    return checked_name(re.sub(r"[^A-Za-z0-9]", "_", tidy)[:60] + "_model")


# One file


def _download_file(
    plan: DownloadPlan, settings: DownloadSettings, target: Path, session: DownloadSession
) -> Generator[Event, None, Path]:
    (remote,) = plan.files
    yield Progress("looking for it on this computer")
    numbered = not settings.output
    if present := _present_file(
        target, remote.size, remote.sha256, session.clock, numbered=numbered
    ):
        yield _here_already(present)
        return present
    target = _free_target(target, settings)
    _check_room_for(plan, target, session)
    whole = WholeDownload(target.name, TransferRate(session.clock), remote.size)
    transfer = FileTransfer(remote, target, session, whole)
    yield from transfer.run()
    sha256 = transfer.sha256.hexdigest()
    if present := _present_file(_first_name(target), transfer.done, sha256, session.clock):
        transfer.discard()
        yield _here_already(present)
        return present
    while not claim_name(transfer.part, target):
        target = free_path(target)
    sync_folder(target.parent)
    transfer.record.unlink(missing_ok=True)
    row = {"sha256": sha256, "size": transfer.done, "verified": bool(remote.sha256)}
    write_source(target.with_name(f"{target.stem}.{SOURCE_FILE}"), plan, row)
    _write_civitai_info(target, plan)
    return target


def _first_name(target: Path) -> Path:
    """`name-2` -> `name`, where that is there."""
    first = target.with_name(re.sub(r"-\d+$", "", target.stem) + target.suffix)
    return first if first.exists() else target


def _present_file(
    target: Path, size: int | None, sha256: str, clock: DownloadClock, *, numbered: bool = True
) -> Path | None:
    """Return the file of this name, or `numbered` of `name-2` and so on, with the same content;
    None: none is known to be."""
    number, path = 2, target
    while sha256 and os.path.lexists(path):
        with suppress(OSError):
            if size in (None, path.stat().st_size) and file_sha256(path, clock) == sha256:
                return path
        if not numbered:
            return None
        path = target.with_name(f"{target.stem}-{number}{target.suffix}")
        number += 1
    return None


def _here_already(path: Path) -> Warned:
    message = Message("{file} is here already, with the same content", file=path)
    return Warned(message, "nothing was downloaded")


def _free_target(target: Path, settings: DownloadSettings) -> Path:
    if settings.output and os.path.lexists(target):
        raise DownloadError(
            "there is another {file} already; choose another name to save under", file=target
        )
    return free_path(target)


def _check_room_for(plan: DownloadPlan, target: Path, session: DownloadSession) -> None:
    if plan.size is not None:
        part = target.with_name(target.name + ".part")
        received = part.stat().st_size if part.is_file() else 0
        check_room(target.parent, max(plan.size - received, 0), session)


# A folder


def _download_folder(
    plan: DownloadPlan, settings: DownloadSettings, target: Path, session: DownloadSession
) -> Generator[Event, None, Path]:
    if _is_same_version(target, plan):
        yield _here_already(target)
        return target
    target = _free_target(target, settings)
    partial = target.with_name(f".{target.name}-{plan.version[:12]}.partial")
    make_folder(partial)
    missing = [file for file in plan.files if not _is_finished(partial, file)]
    here = [file.size or 0 for file in plan.files if file not in missing]
    needed = sum(file.size or 0 for file in missing) - _part_bytes(partial)
    check_room(target.parent, max(needed, 0), session)
    whole = WholeDownload(target.name, TransferRate(session.clock), plan.size, sum(here))
    for remote in missing:
        transfer = FileTransfer(remote, partial / remote.path, session, whole)
        yield from transfer.run()
        os.replace(transfer.part, partial / remote.path)
        transfer.record.unlink(missing_ok=True)
        whole.before += transfer.done
    plan.finish(partial)
    hashes = {file.path: file.sha256 for file in plan.files if file.sha256}
    write_source(partial / SOURCE_FILE, plan, {"size": plan.size, "sha256_of_files": hashes})
    target = free_path(target)
    os.rename(partial, target)
    sync_folder(target.parent)
    return target


def _is_finished(partial: Path, remote: RemoteFile) -> bool:
    """True if a file has its name: it gets it once it is verified."""
    path = partial / remote.path
    return path.is_file() and (remote.size is None or path.stat().st_size == remote.size)


def _part_bytes(partial: Path) -> int:
    return sum(path.stat().st_size for path in partial.glob("**/*.part"))


def _is_same_version(target: Path, plan: DownloadPlan) -> bool:
    try:
        row = json.loads((target / SOURCE_FILE).read_text("utf-8"))
        return bool(row["source"] == plan.source)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


# What is known of it


def write_source(path: Path, plan: DownloadPlan, row: dict[str, Any]) -> None:
    """Write where a model came from. What its page says of it stands under `claimed`, unverified;
    addresses are written without their queries."""
    record = {
        "format": RECORD_FORMAT,
        "source": plan.source,
        "url": "" if plan.folder else public_url(plan.files[0].url),
        "version": plan.version,
        "kind": plan.kind,
        "downloaded_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **row,
        "claimed": dict(plan.claims),
    }
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda to: to.write_text(text, encoding="utf-8"))


def _write_civitai_info(target: Path, plan: DownloadPlan) -> None:
    """Write the sidecar that other programs and the LoRA browser read, for a file of Civitai."""
    claims = plan.claims
    if not isinstance(claims.get("version_id"), int):
        return
    row = {
        "id": claims["version_id"], "modelId": claims["model_id"], "name": claims["version"],
        "baseModel": claims["base_model"], "trainedWords": claims["trained_words"],
        "model": {"name": claims["name"], "type": claims["type"]},
    }  # fmt: skip
    text = json.dumps(row, indent=2, ensure_ascii=False) + "\n"
    with suppress(FileExistsError):
        path = target.with_name(f"{target.stem}.civitai.info")
        write_if_absent(path, lambda to: to.write_text(text, encoding="utf-8"))
