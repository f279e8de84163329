"""Answers of a server that is not the file asked for, each with a sentence that says what to do."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sdlora.assets.sites import Site
from sdlora.errors import DownloadError

MAX_WAIT_S = 900.0  # a server that wants more time than this is left for later
GATED, NO_REPOSITORY, NO_REVISION, NO_ENTRY = (
    *("GatedRepo", "RepoNotFound"),
    *("RevisionNotFound", "EntryNotFound"),
)  # Hugging Face, header X-Error-Code


@dataclass(frozen=True)
class Resource:
    """Something that is asked for: its name and its page for messages, and the site that it is of;
    None: any other."""

    name: str
    page: str
    site: Site | None = None


@dataclass(frozen=True)
class Answer:
    """Status and headers of an answer, the host that gave it, and whether the request had a
    token."""

    status: int
    headers: Mapping[str, str]
    host: str
    with_token: bool = False

    @property
    def code(self) -> str:
        """Hugging Face's name of the error; '' for none."""
        return self.headers.get("x-error-code", "")

    @property
    def retry_after_s(self) -> float:
        """Seconds that the server asks to wait; 0 where it does not."""
        return retry_after_s(self.headers.get("retry-after", ""))


def retry_after_s(text: str) -> float:
    """Seconds of a Retry-After header, which has seconds or a date (RFC 9110, 10.2.3); 0: none."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = email.utils.parsedate_to_datetime(text)
        return max(0.0, moment.timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return 0.0


def problem_of(answer: Answer, resource: Resource) -> DownloadError:
    """Return the error of an answer that is no success."""
    make = _server_error if answer.status >= 500 else _BY_STATUS.get(answer.status, _other)
    error = (_gated if answer.code == GATED else make)(answer, resource)
    error.http_status = answer.status
    return error


def _login(answer: Answer, resource: Resource) -> DownloadError:
    site = resource.site
    if answer.code == NO_REPOSITORY and site:
        return DownloadError(
            "there is no {name} on {site}, or it is private; check the spelling, or set {variable} "
            "to a token that may read it",
            name=resource.name, site=site.name, variable=site.variables[0],
        )  # fmt: skip
    if site is None:
        return DownloadError(
            "{host} gives {name} only to those who log in (401); download it in a browser and put "
            "it into the workspace",
            host=answer.host, name=resource.name,
        )  # fmt: skip
    if answer.with_token:
        return DownloadError(
            "{site} does not accept your token for {name} (401): it may have expired; make a new "
            "one at {page} and set {variable}",
            site=site.name, name=resource.name, page=site.token_page, variable=site.variables[0],
        )  # fmt: skip
    return DownloadError(
        "{site} gives {name} only to those who log in (401): make a token at {page}, then set "
        "{variable} or put it into the file {file}",
        site=site.name, name=resource.name, page=site.token_page, variable=site.variables[0],
        file=str(site.token_file),
    )  # fmt: skip


def _gated(answer: Answer, resource: Resource) -> DownloadError:
    if answer.with_token:
        return DownloadError(
            "{name} is gated, and your account may not read it yet: accept its terms at {page}, "
            "wait until they let you in, and use a token that may read gated repositories",
            name=resource.name, page=resource.page,
        )  # fmt: skip
    return DownloadError(
        "{name} is gated: log in and accept its terms at {page}, then set HF_TOKEN to a token of "
        "that account",
        name=resource.name, page=resource.page,
    )  # fmt: skip


def _forbidden(answer: Answer, resource: Resource) -> DownloadError:
    if resource.site is None:
        return DownloadError(
            "{host} does not give {name} to us (403): its link may have expired; copy it anew",
            host=answer.host, name=resource.name,
        )  # fmt: skip
    return DownloadError(
        "{site} does not let you have {name} (403): it may be early access, paid for, or under "
        "terms to accept; open {page} with your account, then try again with its token",
        site=resource.site.name, name=resource.name, page=resource.page,
    )  # fmt: skip


def _gone(answer: Answer, resource: Resource) -> DownloadError:
    if answer.code == NO_REVISION:
        return DownloadError(
            "{name} has no such revision; see {page} for its branches and tags",
            name=resource.name, page=resource.page,
        )  # fmt: skip
    return DownloadError(
        "there is no {name} at {host} ({status}): it is gone, or the link is wrong; see {page}",
        name=resource.name, host=answer.host, status=answer.status, page=resource.page,
    )  # fmt: skip


def _wrong_range(answer: Answer, resource: Resource) -> DownloadError:
    return DownloadError(
        "{host} does not go on with {name} where it broke off (416); it begins anew",
        host=answer.host, name=resource.name, transient=True,
    )  # fmt: skip


def _too_many(answer: Answer, resource: Resource) -> DownloadError:
    wait_s = answer.retry_after_s
    return DownloadError(
        "{host} wants fewer requests (429){wait}; try again later, what is here stays",
        host=answer.host, transient=wait_s <= MAX_WAIT_S, wait_s=wait_s,
        wait=f" and asks to wait {wait_s:.0f} s" if wait_s else "",
    )  # fmt: skip


def _server_error(answer: Answer, resource: Resource) -> DownloadError:
    wait_s = answer.retry_after_s
    return DownloadError(
        "{host} has a fault of its own ({status}); try again later, what is here stays",
        host=answer.host, status=answer.status, transient=wait_s <= MAX_WAIT_S, wait_s=wait_s,
    )  # fmt: skip


def _other(answer: Answer, resource: Resource) -> DownloadError:
    return DownloadError(
        "{host} answers the request for {name} with {status}; see {page}",
        host=answer.host, name=resource.name, status=answer.status, page=resource.page,
    )  # fmt: skip


_BY_STATUS: dict[int, Callable[[Answer, Resource], DownloadError]] = {
    401: _login,
    403: _forbidden,
    404: _gone,
    408: _server_error,
    410: _gone,
    416: _wrong_range,
    429: _too_many,
    451: _forbidden,
}
