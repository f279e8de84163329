"""Meaning of the text that names a download: Hugging Face, Civitai, or the address of a file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from sdlora.assets.model_file_check import is_model_file
from sdlora.assets.sites import CIVITAI, CIVITAI_HOSTS, HUGGING_FACE_HOSTS, Site, host_of, origin_of
from sdlora.errors import DownloadError

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_REPOSITORY = re.compile(rf"({_PART}/{_PART})(?:@([^:\s]+))?(?::(\S.*))?")
_REVISION_WORDS = ("tree", "blob", "resolve", "raw")
_OTHER_REPOSITORIES = ("datasets", "spaces", "docs", "papers", "collections", "blog")


@dataclass(frozen=True)
class HubSource:
    """A repository on Hugging Face, or a file of it. Empty: the main branch; the whole model."""

    repository: str
    revision: str = ""
    path: str = ""


@dataclass(frozen=True)
class CivitaiSource:
    """A model version on Civitai; 0: the newest of `model`. `traits` are the file's metadata as an
    address may ask for them: format, size, fp, type."""

    endpoint: str
    version: int = 0
    model: int = 0
    file_id: int = 0
    traits: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DirectSource:
    """The address of a file anywhere."""

    url: str


ModelSource = HubSource | CivitaiSource | DirectSource


def parse_source(text: str, sites: Sequence[Site]) -> ModelSource:
    """Return the meaning of a text. DownloadError: it has none."""
    text = text.strip()
    civitai = next(site for site in sites if site.name == "Civitai")
    if match := re.fullmatch(r"civitai:(?://)?(\d{1,12})", text, re.IGNORECASE):
        return CivitaiSource(civitai.endpoint, version=int(match[1]))
    if re.match(r"https?://", text, re.IGNORECASE):
        return _parse_address(text, sites)
    if match := _REPOSITORY.fullmatch(text.removeprefix("hf:")):
        return HubSource(match[1], match[2] or "", (match[3] or "").lstrip("/"))
    raise DownloadError(
        "{text} names nothing to download; give owner/name of Hugging Face, owner/name:file, "
        "civitai:VERSION, or the address of a page or a file, with https://",
        text=repr(text[:200]),
    )


def _parse_address(url: str, sites: Sequence[Site]) -> ModelSource:
    try:
        parts, origin = urlsplit(url), origin_of(url)
    except ValueError:
        raise DownloadError("this is no address of a web page; copy it anew") from None
    for site in sites:
        if site.owns(url):
            return _PARSERS[site.name](url, parts, site)
    host = parts.hostname or ""
    if origin.startswith("http:") and host.endswith((*CIVITAI_HOSTS, *HUGGING_FACE_HOSTS)):
        raise DownloadError("begin the address with https://, not http://")
    return _direct(url)


def _direct(url: str) -> DirectSource:
    path = unquote(urlsplit(url).path)
    if "." in path.rpartition("/")[2] and not is_model_file(path):
        raise DownloadError(
            "{name} at {host} is no model that can be downloaded: those end with .safetensors or "
            ".gguf; a .ckpt, .pt, .pth or .bin can hold a program, and a page is no file",
            name=path.rpartition("/")[2][:100], host=host_of(url),
        )  # fmt: skip
    return DirectSource(url)


def _parse_hub(url: str, parts: SplitResult, site: Site) -> ModelSource:
    names = [unquote(name) for name in parts.path.split("/") if name]
    if len(names) < 2 or names[0] in _OTHER_REPOSITORIES or names[0] == "api":
        raise DownloadError(
            "this page of {host} is no model's; open the page of the model and copy its address",
            host=host_of(url),
        )
    repository, rest = "/".join(names[:2]), names[2:]
    if not _REPOSITORY.fullmatch(repository):
        raise DownloadError("{name} is no name of a repository", name=repository)
    if not rest or rest[0] not in _REVISION_WORDS or len(rest) < 2:
        return HubSource(repository)
    count = 3 if rest[1] == "refs" and len(rest) >= 4 else 1  # refs/pr/1 may stand unescaped
    revision, path = "/".join(rest[1 : 1 + count]), "/".join(rest[1 + count :])
    return HubSource(repository, revision, "" if rest[0] == "tree" else path)


def _parse_civitai(url: str, parts: SplitResult, site: Site) -> ModelSource:
    query = {name.lower(): values[-1] for name, values in parse_qs(parts.query).items()}
    # a mirror that the user has named is asked instead
    endpoint = f"{parts.scheme}://{parts.netloc}" if site.endpoint == CIVITAI else site.endpoint
    file_id = _number(query.get("fileid", ""))
    traits: dict[str, str] = {
        name: query[name] for name in ("type", "format", "size", "fp") if name in query
    }
    if match := re.fullmatch(
        r"/api/(?:download/models|v1/model-versions)/(\d{1,12})/?", parts.path
    ):
        return CivitaiSource(endpoint, int(match[1]), file_id=file_id, traits=traits)
    if match := re.match(r"/(?:\w\w/)?models/(\d{1,12})(?:/|$)", parts.path):
        version = _number(query.get("modelversionid", ""))
        return CivitaiSource(endpoint, version, int(match[1]), file_id)
    raise DownloadError(
        "this page of {host} is no model's; open the page of the model and copy its address",
        host=host_of(url),
    )


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 13 else 0


_PARSERS = {"Hugging Face": _parse_hub, "Civitai": _parse_civitai}
