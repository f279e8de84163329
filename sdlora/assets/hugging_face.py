"""Plan of a download from Hugging Face: a file of a repository, or a whole diffusers model, of one
commit.

The list of files is one request for JSON (https://huggingface.co/docs/hub/api), made by our own
client, not by huggingface_hub: so retries, redirects, tokens and sentences are the same for all
sites, and the files go where the user looks for them, not into a cache. From huggingface_hub come
the settings of its environment: mirror, offline switch, token.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from sdlora.assets.diffusers_files import INDEX, component_names, finish_folder, needed_files
from sdlora.assets.download_plan import DownloadPlan, RemoteFile
from sdlora.assets.download_sources import HubSource
from sdlora.assets.http_client import HttpClient
from sdlora.assets.http_errors import Resource
from sdlora.assets.model_file_check import is_model_file
from sdlora.assets.sites import Site, check_online, hugging_face
from sdlora.errors import DownloadError, SettingsError, did_you_mean
from sdlora.messages import size_in_words
from sdlora.settings.download import AssetKind, DownloadSettings

MAX_SHOWN = 20  # files that a message lists
_COMMIT = re.compile("[0-9a-f]{40}")
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Repository:
    """A repository at one commit: its files by path, with what the site says of each."""

    name: str
    commit: str
    files: Mapping[str, Mapping[str, Any]]
    about: Mapping[str, Any]
    resource: Resource
    endpoint: str

    def remote(self, path: str, local: str = "") -> RemoteFile:
        """Return a file as it is downloaded, with its place below the folder."""
        row = self.files[path]
        lfs = row["lfs"] if isinstance(row.get("lfs"), dict) else {}
        sha256, oid = str(lfs.get("sha256") or lfs.get("oid") or ""), str(row.get("blobId") or "")
        size = lfs.get("size", row.get("size"))
        return RemoteFile(
            f"{self.endpoint}/{self.name}/resolve/{self.commit}/{quote(path)}",
            local or path,
            self.resource,
            size if isinstance(size, int) and size >= 0 else None,
            sha256 if _SHA256.fullmatch(sha256) else "",
            oid if _COMMIT.fullmatch(oid) and not lfs else "",
        )


def hub_plan(source: HubSource, settings: DownloadSettings, client: HttpClient) -> DownloadPlan:
    """Return the plan of a repository or of a file of it. DownloadError: it has no such file;
    SettingsError: the user has to say which."""
    site = next((site for site in client.sites if site.name == "Hugging Face"), hugging_face())
    check_online(site)
    repository = _repository(source, settings, site, client)
    wanted_path = settings.file or source.path
    if not wanted_path and INDEX in repository.files:
        return _diffusers_plan(repository, settings, client)
    return _file_plan(repository, wanted_path, settings)


def _repository(
    source: HubSource, settings: DownloadSettings, site: Site, client: HttpClient
) -> Repository:
    name, revision = source.repository, source.revision or settings.revision or "main"
    resource = Resource(name, f"{site.endpoint}/{name}", site)
    url = f"{site.endpoint}/api/models/{name}/revision/{quote(revision, safe='')}?blobs=true"
    about = client.json(url, resource)
    rows = about.get("siblings") if isinstance(about, dict) else None
    if not isinstance(rows, list) or not _COMMIT.fullmatch(str(about.get("sha"))):
        raise DownloadError("{page} does not list its files; try again later", page=resource.page)
    known = [row for row in rows if isinstance(row, dict)]
    files = {row["rfilename"]: row for row in known if isinstance(row.get("rfilename"), str)}
    return Repository(name, about["sha"], files, about, resource, site.endpoint)


def _diffusers_plan(
    repository: Repository, settings: DownloadSettings, client: HttpClient
) -> DownloadPlan:
    index = client.json(repository.remote(INDEX).url, repository.resource)
    components = component_names(index, repository.name)
    needed = needed_files(repository.files, components, settings.variant)
    return DownloadPlan(
        source=f"{repository.name}@{repository.commit}",
        kind="checkpoint",
        files=tuple(repository.remote(path, local) for path, local in needed.items()),
        claims=_claims(repository),
        folder=settings.output or repository.name.rpartition("/")[2],
        version=repository.commit,
        finish=finish_folder,
    )


def _file_plan(
    repository: Repository, wanted_path: str, settings: DownloadSettings
) -> DownloadPlan:
    path = _chosen(repository, wanted_path)
    return DownloadPlan(
        source=f"{repository.name}@{repository.commit}:{path}",
        kind=settings.chosen_kind or _kind(repository),
        files=(repository.remote(path, _file_name(repository, path)),),
        claims=_claims(repository),
        version=repository.commit,
    )


def _chosen(repository: Repository, wanted_path: str) -> str:
    """Return the path of the file to take."""
    models = [path for path in repository.files if is_model_file(path)]
    if wanted_path:
        ends = [p for p in repository.files if wanted_path in (p, PurePosixPath(p).name)]
        if len(ends) == 1 or wanted_path in ends:
            path = wanted_path if wanted_path in ends else ends[0]
            if is_model_file(path):
                return path
            raise DownloadError(
                "{file} is no .safetensors or .gguf file; others can hold a program and are not "
                "downloaded",
                file=path,
            )
        raise SettingsError(
            "{name} has no one file {file}.{near} It has: {files}",
            name=repository.name, file=repr(wanted_path), near=did_you_mean(wanted_path, models),
            files=_listed(repository, models),
        )  # fmt: skip
    models = [path for path in models if "/" not in path] or models
    if len(models) == 1:
        return models[0]
    if not models:
        raise DownloadError(
            "{name} has no model that can be downloaded: neither a diffusers model nor a "
            ".safetensors or .gguf file; see {page}",
            name=repository.name, page=repository.resource.page,
        )  # fmt: skip
    raise SettingsError(
        "{name} has several files; say which: {files}",
        name=repository.name, files=_listed(repository, models),
    )  # fmt: skip


def _listed(repository: Repository, paths: Iterable[str]) -> list[str]:
    rows = [(path, repository.remote(path).size) for path in sorted(paths)]
    lines = [f"{path} ({size_in_words(size or 0)})" for path, size in rows[:MAX_SHOWN]]
    return [*lines, "..."] if len(rows) > MAX_SHOWN else lines


def _file_name(repository: Repository, path: str) -> str:
    """Return the name to save a file under: of one that is called as all are, the repository's."""
    name = PurePosixPath(path)
    usual = name.stem.startswith(("diffusion_pytorch_model", "pytorch_lora_weights"))
    if usual or name.stem in ("model", "learned_embeds"):
        return f"{repository.name.rpartition('/')[2]}{name.suffix}"
    return name.name


def _kind(repository: Repository) -> AssetKind:
    tags = repository.about.get("tags")
    tags = [str(tag).lower() for tag in tags] if isinstance(tags, list) else []
    if "lora" in tags:
        return "lora"
    return "embedding" if "textual_inversion" in tags else "checkpoint"


def _claims(repository: Repository) -> dict[str, Any]:
    card = repository.about.get("cardData")
    text = partial(_text, card if isinstance(card, dict) else {})
    trigger = text("instance_prompt")
    return {
        "page": repository.resource.page, "name": repository.name,
        "base_model": text("base_model"), "trained_words": [trigger] if trigger else [],
        "license": text("license_name") or text("license"),
        "license_link": text("license_link"), "gated": bool(repository.about.get("gated")),
    }  # fmt: skip


def _text(card: Mapping[str, Any], name: str) -> str:
    value = card.get(name)
    parts = value if isinstance(value, list) else [value]
    return ", ".join(part for part in parts if isinstance(part, str))[:500]
