"""Plan of a download from the address of a file, and the look at a file before it is downloaded."""

from __future__ import annotations

import re
from dataclasses import replace
from email.message import EmailMessage
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

import httpx

from sdlora.assets.download_plan import DownloadPlan, RemoteFile
from sdlora.assets.download_sources import DirectSource
from sdlora.assets.http_client import HttpClient, chunks
from sdlora.assets.http_errors import Resource
from sdlora.assets.model_file_check import HEAD_BYTES, check_head, is_model_file, suffix_of_head
from sdlora.assets.sites import host_of
from sdlora.errors import DownloadError
from sdlora.settings.download import DownloadSettings

_TOTAL = re.compile(r"bytes \d+-\d+/(\d{1,18})")


def direct_plan(
    source: DirectSource, settings: DownloadSettings, client: HttpClient
) -> DownloadPlan:
    """Return the plan of the file at an address."""
    host, parts = host_of(source.url), urlsplit(source.url)
    address = f"{parts.scheme}://{host}{parts.path}"
    name = PurePosixPath(unquote(parts.path)).name
    remote = RemoteFile(source.url, name, Resource(name or host, address))
    return DownloadPlan(
        source=address,
        kind=settings.chosen_kind or "checkpoint",
        files=(probed(remote, client),),
        claims={"page": address},
    )


def probed(remote: RemoteFile, client: HttpClient) -> RemoteFile:
    """Return a file with the size and the name that its server gives, its first bytes checked. One
    small ranged request: signed addresses allow no HEAD. DownloadError: it is no model."""
    headers = {"Range": f"bytes=0-{HEAD_BYTES - 1}"}
    head = b""
    with client.get(remote.url, remote.resource, headers) as response:
        size, given = _size(response), _given_name(response)
        for chunk in chunks(response, remote.resource):
            head += chunk
            if len(head) >= HEAD_BYTES:
                break
        kind = response.headers.get("content-type", "")
    head = head[:HEAD_BYTES]
    name = next((n for n in (remote.path, given) if is_model_file(n)), "")
    if not name:
        check_head(head, f"model{suffix_of_head(head)}", kind)
        name = f"{PurePosixPath(given or remote.path or 'model').stem}{suffix_of_head(head)}"
    check_head(head, name, kind)
    if remote.size is not None and size not in (None, remote.size):
        raise DownloadError(
            "{name} should have {size} bytes, and its server has {given}: it is another file",
            name=name, size=remote.size, given=size or 0,
        )  # fmt: skip
    return replace(remote, path=name, size=size)


def _size(response: httpx.Response) -> int | None:
    if response.status_code == 206:
        match = _TOTAL.fullmatch(response.headers.get("content-range", "").strip())
        return int(match[1]) if match else None
    length = response.headers.get("content-length", "")
    return int(length) if length.isdigit() else None


def _given_name(response: httpx.Response) -> str:
    """Return the file name of a Content-Disposition header (RFC 6266); '' for none."""
    message = EmailMessage()
    try:
        message["Content-Disposition"] = response.headers.get("content-disposition", "")
        name = message.get_filename() or ""
    except (ValueError, TypeError, LookupError, AttributeError, IndexError):
        return ""
    return re.split(r"[/\\]", name)[-1]
