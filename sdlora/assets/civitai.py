"""Plan of a download from Civitai: a model version, and the file of it to take.

Source: the site's REST API, https://developer.civitai.com/site/reference/model-versions. A file is
asked for by its id, `?fileId=`; the main file of a version by the version alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sdlora.assets.download_plan import DownloadPlan, RemoteFile
from sdlora.assets.download_sources import CivitaiSource
from sdlora.assets.http_client import HttpClient
from sdlora.assets.http_errors import Resource
from sdlora.assets.model_file_check import MODEL_FILES, is_model_file
from sdlora.errors import DownloadError, SettingsError, did_you_mean
from sdlora.settings.download import AssetKind, DownloadSettings

# The API's type of a model -> ours; what is not here is no model that this program uses
_KINDS: dict[str, AssetKind] = {
    "checkpoint": "checkpoint", "lora": "lora", "locon": "lora", "dora": "lora", "vae": "vae",
    "textualinversion": "embedding", "upscaler": "upscaler",
}  # fmt: skip
_WEIGHTS = ("model", "pruned model", "unet", "vae", "")  # types of files that hold weights
FileRow = Mapping[str, Any]


def civitai_plan(
    source: CivitaiSource, settings: DownloadSettings, client: HttpClient
) -> DownloadPlan:
    """Return the plan of a model version. DownloadError: it has no such file, or is not given."""
    version = _version(source, client)
    number, model_id = version.get("id"), version.get("modelId") or source.model
    page = f"{source.endpoint}/models/{model_id}?modelVersionId={number}"
    model = version["model"] if isinstance(version.get("model"), dict) else {}
    title = f"{model.get('name') or 'model'} {version.get('name') or ''}".strip()
    resource = Resource(title, page, client.site_of(source.endpoint))
    row = _chosen(version, source, settings, resource)
    return DownloadPlan(
        source=f"civitai:{number}",
        kind=settings.chosen_kind or _kind(model, resource),
        files=(_remote_file(row, source, number, resource),),
        claims=_claims(version, model, page),
        version=str(number),
        notes=_notes(row),
    )


def _version(source: CivitaiSource, client: HttpClient) -> dict[str, Any]:
    """Return the API's record of the version."""
    site = client.site_of(source.endpoint)
    number = source.version
    if not number:
        resource = Resource(
            f"model {source.model}", f"{source.endpoint}/models/{source.model}", site
        )
        model = client.json(f"{source.endpoint}/api/v1/models/{source.model}", resource)
        versions = model.get("modelVersions") if isinstance(model, dict) else None
        ids = [row.get("id") for row in versions or () if isinstance(row, dict)]
        if not ids or not isinstance(ids[0], int):
            raise DownloadError("{page} has no version to download", page=resource.page)
        number = ids[0]
    page = f"{source.endpoint}/api/v1/model-versions/{number}"
    shown = f"{source.endpoint}/models/{source.model or ''}?modelVersionId={number}"
    version = client.json(page, Resource(f"model version {number}", shown, site))
    if not isinstance(version, dict) or version.get("id") != number:
        raise DownloadError(
            "{page} gives something else than a model version; try again later", page=page
        )
    return version


def _kind(model: Mapping[str, Any], resource: Resource) -> AssetKind:
    given = str(model.get("type", ""))
    kind = _KINDS.get(given.lower())
    if kind is None:
        raise DownloadError(
            "{name} is of the type {type} at {page}, which is not used here; if it is something "
            "that is, say which kind of model",
            name=resource.name, type=repr(given[:40]), page=resource.page,
        )  # fmt: skip
    return kind


def _chosen(
    version: Mapping[str, Any], source: CivitaiSource, settings: DownloadSettings, page: Resource
) -> FileRow:
    """Return the file to take: the one that is asked for, else the main one. DownloadError: there
    is none, or it is a pickle."""
    rows = [row for row in version.get("files") or () if isinstance(row, dict)]
    usable = [row for row in rows if _is_usable(row)]
    if settings.file:
        return _named(rows, settings.file)
    if source.file_id:
        usable = [row for row in usable if row.get("id") == source.file_id]
    usable = [row for row in usable if _has_traits(row, source.traits)]
    if not usable:
        names = [str(row.get("name", "")) for row in rows]
        raise DownloadError(
            "{name} has no file to take: it needs one that ends with {endings}, and has {files}; "
            "see {page}",
            name=page.name, endings=MODEL_FILES, files=names or "none", page=page.page,
        )  # fmt: skip
    return min(usable, key=lambda row: row.get("primary") is not True)


def _is_usable(row: FileRow) -> bool:
    kind = str(row.get("type", "")).lower()
    return is_model_file(str(row.get("name", ""))) and kind in _WEIGHTS


def _named(rows: Sequence[FileRow], wanted_name: str) -> FileRow:
    for row in rows:
        if wanted_name in (str(row.get("name")), str(row.get("id"))):
            if is_model_file(str(row.get("name"))):
                return row
            raise DownloadError(
                "{file} is no .safetensors or .gguf file; others can hold a program and are not "
                "downloaded",
                file=wanted_name,
            )
    names = [str(row.get("name", "")) for row in rows]
    raise SettingsError(
        "there is no file {file} in this version, which has: {files}.{near}",
        file=repr(wanted_name), files=names, near=did_you_mean(wanted_name, names),
    )  # fmt: skip


def _has_traits(row: FileRow, traits: Mapping[str, str]) -> bool:
    about = row["metadata"] if isinstance(row.get("metadata"), dict) else {}
    known = {**about, "type": row.get("type")}
    return all(
        str(known.get(name)).lower() == value.lower()
        for name, value in traits.items()
        if known.get(name) is not None
    )


def _remote_file(
    row: FileRow, source: CivitaiSource, number: object, resource: Resource
) -> RemoteFile:
    url = f"{source.endpoint}/api/download/models/{number}"
    if row.get("primary") is not True and isinstance(row.get("id"), int):
        url += f"?fileId={row['id']}"
    hashes = row["hashes"] if isinstance(row.get("hashes"), dict) else {}
    sha256 = str(hashes.get("SHA256", "")).lower()
    return RemoteFile(
        url,
        str(row.get("name", "")),
        resource,
        sha256=sha256 if re.fullmatch("[0-9a-f]{64}", sha256) else "",
    )


def _claims(version: Mapping[str, Any], model: Mapping[str, Any], page: str) -> dict[str, Any]:
    trigger_words = [word for word in version.get("trainedWords") or () if isinstance(word, str)]
    text = _texts(version)
    return {
        "page": page, "name": _texts(model)("name"), "version": text("name"),
        "base_model": text("baseModel"), "trained_words": trigger_words,
        "type": _texts(model)("type"), "model_id": version.get("modelId"),
        "version_id": version.get("id"),
    }  # fmt: skip


def _texts(row: Mapping[str, Any]) -> Callable[[str], str]:
    return lambda name: str(row[name])[:500] if isinstance(row.get(name), str) else ""


def _notes(row: FileRow) -> tuple[str, ...]:
    scans = [str(row.get(name)) for name in ("pickleScanResult", "virusScanResult")]
    if "Danger" in scans:
        return ("the site's own scan of this file says Danger",)
    return ()
