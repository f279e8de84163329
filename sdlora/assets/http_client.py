"""Requests for files and for JSON: redirects, tokens, proxies and failures in one place.

httpx follows HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY and SSL_CERT_FILE, and reads no netrc.
Redirects are followed here, so that every address gets its own headers: a token goes to the hosts
of its site alone, and an encrypted request never ends at an address that is not.
"""

from __future__ import annotations

import functools
import json
import os
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import httpx

from sdlora import __version__
from sdlora.assets.http_errors import Answer, Resource, problem_of
from sdlora.assets.sites import Site, civitai, host_of, hugging_face
from sdlora.errors import DownloadError

MAX_REDIRECTS = 10
MAX_JSON = 32 * 2**20  # bytes
_TIMEOUT = httpx.Timeout(60.0, connect=20.0)
_SUCCESS = (200, 206)


@functools.cache
def _certificates(file: str | None, folder: str | None) -> ssl.SSLContext:
    """Return the trusted certificates, read once for each setting of the environment."""
    return httpx.create_ssl_context()


class HttpClient(AbstractContextManager["HttpClient"]):
    """Client for one download. `plain_http`: also without encryption, from any address."""

    def __init__(
        self, sites: Sequence[Site] = (), plain_http: bool = False, timeout: Any = _TIMEOUT
    ) -> None:
        self.sites = tuple(sites) or (hugging_face(), civitai())
        self.plain_http = plain_http
        try:
            self._client = httpx.Client(
                timeout=timeout,
                verify=_certificates(
                    os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
                ),
                headers={"User-Agent": f"sdlora/{__version__}", "Accept-Encoding": "identity"},
            )
        except (ImportError, ValueError) as error:  # SOCKS without its package, or no address
            raise DownloadError(
                "the proxy of this computer cannot be used: {why}; see HTTPS_PROXY and ALL_PROXY",
                why=error,
            ) from None

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def site_of(self, url: str) -> Site | None:
        """Return the site that an address belongs to; None: any other."""
        return next((site for site in self.sites if site.owns(url)), None)

    @contextmanager
    def get(
        self, url: str, resource: Resource, headers: Mapping[str, str] | None = None
    ) -> Iterator[httpx.Response]:
        """Open the answer to a request; its body is read with `chunks`. DownloadError: it is no
        success, or does not come."""
        response = self._send(url, resource, headers or {})
        try:
            if response.status_code not in _SUCCESS:
                with_token = "authorization" in response.request.headers
                host = host_of(str(response.url))
                answer = Answer(response.status_code, response.headers, host, with_token)
                raise problem_of(answer, resource)
            yield response
        finally:
            response.close()

    def json(self, url: str, resource: Resource) -> Any:
        """Return the JSON at an address. DownloadError: there is none."""
        body = bytearray()
        with self.get(url, resource) as response:
            for chunk in chunks(response, resource, decoded=True):
                body += chunk
                if len(body) > MAX_JSON:
                    break
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            raise DownloadError(
                "{host} gives something else than the data of {name}; see {page}",
                host=host_of(url), name=resource.name, page=resource.page,
            ) from None  # fmt: skip

    def _send(self, url: str, resource: Resource, headers: Mapping[str, str]) -> httpx.Response:
        for _ in range(MAX_REDIRECTS):
            self._check_address(url)
            with _failures(url, resource):
                request = self._client.build_request("GET", url, headers=headers)
                request.headers.update(self._token_header(url))
                response = self._client.send(request, stream=True, auth=_no_login)
            location = response.headers.get("location", "")
            if response.status_code not in (301, 302, 303, 307, 308) or not location:
                return response
            response.close()
            url = self._redirected(url, location, resource)
        raise DownloadError(
            "{host} sends the request for {name} in circles; try again later",
            host=host_of(url), name=resource.name,
        )  # fmt: skip

    def _redirected(self, url: str, location: str, resource: Resource) -> str:
        with _failures(url, resource):
            target = str(httpx.URL(url).join(location))
        if url.startswith("https:") and not target.startswith("https:"):
            raise DownloadError(
                "{host} redirects {name} to an address that is not encrypted; it was not followed",
                host=host_of(url), name=resource.name,
            )  # fmt: skip
        return target

    def _check_address(self, url: str) -> None:
        if not url.startswith("https:") and not self.plain_http:
            if url.startswith("http:") and any(
                site.owns(url) and site.endpoint.startswith("http:") for site in self.sites
            ):
                return  # a mirror that the user has named so
            raise DownloadError(
                "{host} is asked for without encryption; only addresses that begin with https:// "
                "are downloaded from",
                host=host_of(url) or "this address",
            )

    def _token_header(self, url: str) -> dict[str, str]:
        site = self.site_of(url)
        token = site.token() if site else ""
        return {"Authorization": f"Bearer {token}"} if token else {}


def chunks(
    response: httpx.Response, resource: Resource, *, decoded: bool = False
) -> Iterator[bytes]:
    """Yield the bytes of an answer as they come; `decoded`: unpacked, where a server sends them
    packed unasked. DownloadError: the connection broke off."""
    with _failures(str(response.url), resource):
        yield from response.iter_bytes() if decoded else response.iter_raw()


def _no_login(request: httpx.Request) -> httpx.Request:
    return request  # of httpx's own kinds of login, none


@contextmanager
def _failures(url: str, resource: Resource) -> Iterator[None]:
    """Turn httpx's errors into sentences. None of them repeats an address: it may hold a
    signature."""
    host = host_of(url)
    try:
        yield
    except httpx.TimeoutException:
        raise DownloadError(
            "{host} does not answer; check the network, what is here stays",
            host=host, transient=True,
        ) from None  # fmt: skip
    except httpx.ProxyError as error:
        raise DownloadError(
            "the proxy does not let us reach {host}: {why}", host=host, why=error, transient=True
        ) from None
    except httpx.ConnectError as error:
        raise _no_connection(host, error) from None
    except (httpx.TransportError, httpx.StreamError, httpx.DecodingError):
        raise DownloadError(
            "the connection to {host} broke off while {name} came; what is here stays",
            host=host, name=resource.name, transient=True,
        ) from None  # fmt: skip
    except (httpx.InvalidURL, UnicodeError):
        raise DownloadError(
            "the address of {name} at {host} cannot be used", host=host, name=resource.name
        ) from None


def _no_connection(host: str, error: httpx.ConnectError) -> DownloadError:
    if "CERTIFICATE" in str(error).upper():
        return DownloadError(
            "{host} has a certificate that this computer does not trust; behind a company's proxy, "
            "set SSL_CERT_FILE to its certificate",
            host=host,
        )
    if isinstance(cause := _cause(error), ConnectionRefusedError):
        problem = DownloadError(
            "{host} refuses the connection: check the address and its port; what is here stays",
            host=host, transient=True,
        )  # fmt: skip
    elif isinstance(cause, socket.gaierror):
        problem = DownloadError(
            "there is no host {host}, or this computer has no network: check both; what is here "
            "stays",
            host=host, transient=True,
        )  # fmt: skip
    else:
        return DownloadError(
            "{host} cannot be reached: check the network; what is here stays",
            host=host, transient=True,
        )  # fmt: skip
    problem.refused = True
    return problem


def _cause(error: BaseException) -> BaseException:
    """Return the system's error under those of the libraries."""
    while (under := error.__cause__ or error.__context__) is not None:
        error = under
    return error
